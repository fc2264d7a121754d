"""The command lines of train.py, evaluate.py and export.py. Torch is imported only after the configuration is valid."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recipes.configuration.allow import allow_words, allowing, take_allow
from recipes.configuration.boundary import VARIABLE, contain
from recipes.configuration.problems import ConfigError

TRACEBACK = "--traceback"


def train(argv: Sequence[str] | None = None) -> int:
    """``python train.py [recipe=NAME] [key=value ...] [-m]``."""

    def run(words: list[str]) -> int:
        from recipes.building.assembled import assembled
        from recipes.configuration.compose import to_yaml
        from recipes.configuration.stages import compose_run
        from recipes.configuration.words import take

        show = "--config" in words
        words = [word for word in words if word != "--config"]
        check, words = _take_self_check(words)
        if take(words, "resume")[0] is not None:
            from recipes.running.resume import configure

            config, directory = configure(words)
        else:
            config, directory = compose_run(words), None
        if show:
            print(to_yaml(config), end="")
            return 0
        if check:
            from recipes.running.self_check import self_check

            return self_check(words)
        assembled(config, command=_command("train.py", words), resume=directory, needs_images=True).run()
        return 0

    return _main("train.py", run, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``python evaluate.py checkpoint=PATH [evaluator=NAME] ...``, or ``query=IMAGE index=FOLDER``."""

    def run(words: list[str]) -> int:
        from recipes.configuration.words import take

        if any(take(words, key)[0] is not None for key in ("query", "index")):
            from recipes.query import configure_query, query

            query(**configure_query(words))
            return 0
        from recipes.evaluate import configure

        config, data_words = configure(words)
        from recipes.evaluate import evaluate_checkpoint

        evaluate_checkpoint(data_words=data_words, **config)
        return 0

    return _main("evaluate.py", run, argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``python export.py checkpoint=PATH [format=timm] [output=PATH]``."""

    def run(words: list[str]) -> int:
        from recipes.configuration.compose import compose_config

        config = compose_config(words, root="export", target="recipes.exporting.export_checkpoint.export_checkpoint")
        from recipes.exporting.export_checkpoint import export_checkpoint

        export_checkpoint(**config)
        return 0

    return _main("export.py", run, argv)


def _take_self_check(words: list[str]) -> tuple[bool, list[str]]:
    """Whether ``self_check=true`` is among the words, and the other ones."""
    from recipes.configuration.words import take

    text, others = take(words, "self_check")
    if text not in (None, "true", "false"):
        raise ConfigError([f"self_check={text} must be true or false"])
    return text == "true", others


def _command(program: str, words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["python", program, *words, *allow_words()])


def _main(program_name: str, run: Callable[[list[str]], Any], argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        from recipes.configuration.help import help_text

        print(help_text(program_name))
        return 0

    def program() -> int:
        packages, rest = take_allow([word for word in words if word != TRACEBACK])
        with allowing(packages):
            return _dispatch(program_name, run, rest)

    with _showing(TRACEBACK in words):
        return contain(program)


@contextmanager
def _showing(tracebacks: bool) -> Iterator[None]:
    """In the environment, so that the processes that are started from here show theirs as well."""
    before = os.environ.get(VARIABLE)
    if tracebacks:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if tracebacks and before is None:
            os.environ.pop(VARIABLE, None)


def _dispatch(program: str, run: Callable[[list[str]], Any], words: list[str]) -> int:
    multirun = [word for word in words if word in ("-m", "--multirun")]
    words = [word for word in words if word not in ("-m", "--multirun")]
    _refuse_flags(words)
    if multirun:
        from recipes.running.sweep import sweep

        return sweep(program, [word for word in words if word != "--config"], "--config" in words)
    return int(run(words))


def _refuse_flags(words: Sequence[str]) -> None:
    flags = [word for word in words if word.startswith("-") and word != "--config"]
    if flags:
        known = "--help, --config, -m, --allow PACKAGE, --traceback"
        raise ConfigError([f"{flag} is not an option; write key=value, or one of {known}" for flag in flags])
