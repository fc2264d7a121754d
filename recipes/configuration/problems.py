"""What is raised where a configuration cannot be run."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message lists every problem that was found."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
