"""The command lines of train.py, evaluate.py and export.py. Torch is imported only after the configuration is valid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from recipes.validate import ConfigError

USAGE_ERROR = 2
#: Errors of a run that explain themselves; by name, because their classes come with torch.
EXPECTED = ("NeverActed", "NonFiniteError")


def train(argv: Sequence[str] | None = None) -> int:
    """``python train.py [recipe=NAME] [key=value ...] [-m]``."""

    def run(words: list[str]) -> int:
        from recipes.compose import compose_config, to_yaml

        show = "--config" in words
        config = compose_config([word for word in words if word != "--config"])
        if show:
            print(to_yaml(config), end="")
            return 0
        from recipes.assemble import assemble

        assemble(**config, command=_command("train.py", words)).run()
        return 0

    return _main("train.py", run, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``python evaluate.py checkpoint=PATH [evaluator=NAME] [data.root=FOLDER] ...``."""

    def run(words: list[str]) -> int:
        from recipes.evaluate import configure

        config, data_words = configure(words)
        from recipes.evaluate import evaluate_checkpoint

        evaluate_checkpoint(data_words=data_words, **config)
        return 0

    return _main("evaluate.py", run, argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``python export.py checkpoint=PATH [format=timm] [output=PATH]``."""

    def run(words: list[str]) -> int:
        from recipes.compose import compose_config

        config = compose_config(words, root="export", target="recipes.export_checkpoint.export_checkpoint")
        from recipes.export_checkpoint import export_checkpoint

        export_checkpoint(**config)
        return 0

    return _main("export.py", run, argv)


def _command(program: str, words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["python", program, *words])


def _main(program: str, run: Callable[[list[str]], Any], argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        from recipes.help import help_text

        print(help_text(program))
        return 0
    try:
        multirun = [word for word in words if word in ("-m", "--multirun")]
        words = [word for word in words if word not in ("-m", "--multirun")]
        _refuse_flags(words)
        if multirun:
            from recipes.sweep import sweep

            return sweep(program, [word for word in words if word != "--config"], "--config" in words)
        return int(run(words))
    except ConfigError as error:
        print(_listing(error.problems), file=sys.stderr)
        return USAGE_ERROR
    except RuntimeError as error:
        if type(error).__name__ not in EXPECTED:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _refuse_flags(words: Sequence[str]) -> None:
    flags = [word for word in words if word.startswith("-") and word != "--config"]
    if flags:
        raise ConfigError(
            [f"{flag} is not an option; write key=value, or one of --help, --config, -m" for flag in flags]
        )


def _listing(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)])
