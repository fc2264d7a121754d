"""The command lines of train.py, evaluate.py and export.py. Torch is imported only after the configuration is valid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from recipes.allow import allow_words, allowing, take_allow
from recipes.validate import ConfigError

USAGE_ERROR = 2
#: Errors of a run that explain themselves; by name, because their classes come with torch.
EXPECTED = ("ChildStopped", "NeverActed", "NonFiniteError", "OutOfMemory", "ProcessFailed", "Stopped")


def train(argv: Sequence[str] | None = None) -> int:
    """``python train.py [recipe=NAME] [key=value ...] [-m]``."""

    def run(words: list[str]) -> int:
        from recipes.compose import compose_config, to_yaml

        show = "--config" in words
        words = [word for word in words if word != "--config"]
        check, words = _take_self_check(words)
        if any(word.startswith("resume=") for word in words):
            from recipes.resume import configure

            config, directory = configure(words)
        else:
            config, directory = compose_config(words), None
        if show:
            print(to_yaml(config), end="")
            return 0
        if check:
            from recipes.self_check import self_check

            return self_check(words)
        from recipes.assemble import assemble

        assemble(**config, command=_command("train.py", words), resume=directory).run()
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


def _take_self_check(words: list[str]) -> tuple[bool, list[str]]:
    """Whether ``self_check=true`` is among the words, and the other ones."""
    found = [word.partition("=")[2] for word in words if word.startswith("self_check=")]
    if wrong := [value for value in found if value not in ("true", "false")]:
        raise ConfigError([f"self_check={wrong[0]} must be true or false"])
    return "true" in found, [word for word in words if not word.startswith("self_check=")]


def _command(program: str, words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["python", program, *words, *allow_words()])


def _main(program: str, run: Callable[[list[str]], Any], argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        from recipes.help import help_text

        print(help_text(program))
        return 0
    try:
        packages, words = take_allow(words)
        with allowing(packages):
            return _dispatch(program, run, words)
    except ConfigError as error:
        print(_listing(error.problems), file=sys.stderr)
        return USAGE_ERROR
    except RuntimeError as error:
        if type(error).__name__ not in EXPECTED:
            raise
        exit_code = getattr(error, "exit_code", 1)
        print(str(error) if exit_code != 1 else f"error: {error}", file=sys.stderr)
        return int(exit_code)
    except KeyboardInterrupt:  # before or after training, which has its own answer
        print("stopped by SIGINT; nothing was being trained", file=sys.stderr)
        return 130


def _dispatch(program: str, run: Callable[[list[str]], Any], words: list[str]) -> int:
    multirun = [word for word in words if word in ("-m", "--multirun")]
    words = [word for word in words if word not in ("-m", "--multirun")]
    _refuse_flags(words)
    if multirun:
        from recipes.sweep import sweep

        return sweep(program, [word for word in words if word != "--config"], "--config" in words)
    return int(run(words))


def _refuse_flags(words: Sequence[str]) -> None:
    flags = [word for word in words if word.startswith("-") and word != "--config"]
    if flags:
        known = "--help, --config, -m, --allow PACKAGE"
        raise ConfigError([f"{flag} is not an option; write key=value, or one of {known}" for flag in flags])


def _listing(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)])
