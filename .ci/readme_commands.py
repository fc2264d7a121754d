"""Prints what the README tells a newcomer to type, one command a line: the install, then what follows it.

The lines of its section "Start" all begin with the same install, so that it is printed, and done, once.
"""

import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def readme_commands(text: str) -> list[str]:
    """The install of the section "Start", and after it the command of each of its two lines.

    Args:
        text: The README.

    Returns:
        ``[install, train, test]``.

    Raises:
        ValueError: The section does not hold exactly two lines ``INSTALL && COMMAND`` with the same install.
    """
    section = text.partition("\n## Start\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    pairs = [line.partition(" && ") for line in lines]
    installs, commands = {install for install, _, _ in pairs}, [command for _, _, command in pairs]
    if len(commands) != 2 or len(installs) != 1 or not all(commands):
        raise ValueError(
            f"the section Start of README.md holds the indented lines {lines}; "
            "write two lines INSTALL && COMMAND with the same install: the first trains, the second tests"
        )
    return [*installs, *commands]


if __name__ == "__main__":
    try:
        print("\n".join(readme_commands(README.read_text(encoding="utf-8"))))
    except ValueError as error:
        sys.exit(f"error: {error}")
