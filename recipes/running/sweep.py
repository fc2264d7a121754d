"""``-m``: one process and one run directory for each combination; a job that fails does not stop the rest.

With ``name=trial`` the jobs are called ``trial-seed=0`` and so on, and the same command again runs only what is not
finished: an interrupted job goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from recipes.configuration.allow import allow_words
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.configuration.stages import compose_run
from recipes.configuration.values import split
from recipes.configuration.words import Word, split_words, take
from recipes.processes.child import run_child
from recipes.running.comparison import comparison
from recipes.running.directory import is_finished
from recipes.running.resume import differences, read_config

LONGEST = 100  # characters of a name


def sweep(program: str, words: Sequence[str], show: bool = False) -> int:
    """Run every combination of the comma-separated values; every configuration is checked before the first starts.

    Returns:
        0 when all jobs succeeded, 1 otherwise; a list at the end says which did, and a table compares their results.
    """
    jobs = _named(expand(words))
    if program == "train.py" and (problems := _problems(jobs)):
        raise ConfigError(problems)
    outcomes = [
        _run(program, job, f"[{number + 1}/{len(jobs)}]", ["--config"] if show else [])
        for number, job in enumerate(jobs)
    ]
    for job, outcome in zip(jobs, outcomes, strict=True):
        print(f"{outcome:<8}  {shlex.join(job)}")
    if program == "train.py" and not show:
        for line in comparison(jobs):
            print(line)
    return int(any(outcome.startswith("exit") for outcome in outcomes))


def _run(program: str, job: list[str], number: str, flags: list[str]) -> str:
    """Start one job; what the table says of it."""
    if program == "train.py" and not flags and _is_finished(job):
        print(f"{number} finished before: {shlex.join(job)}", flush=True)
        return "finished"
    print(f"{number} {program} {shlex.join(job)}", flush=True)
    command = [sys.executable, str(ROOT / program), *job, *allow_words(), *flags]
    code = run_child(command)
    return "ok" if code == 0 else f"exit {code}"


def _is_finished(job: list[str]) -> bool:
    config = compose_run(job)
    if config["name"] is None:
        return False
    directory = Path(config["output"]) / config["recipe"] / config["name"]
    if not is_finished(directory):
        return False
    return not differences(read_config(directory), config)  # another one under this name gets a suffix


def _named(jobs: list[list[str]]) -> list[list[str]]:
    """Jobs with a name of their own each, made of the name they share and the words they differ in."""
    shared = set(jobs[0]).intersection(*jobs[1:])
    named = []
    for job in jobs:
        name, others = take(job, "name")
        own = [word for word in others if word not in shared]
        if name not in (None, "null") and own:
            whole = f"{name}-" + re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join(own))
            if len(whole) > LONGEST:
                whole = f"{whole[: LONGEST - 17]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
            job = [*others, f"name={whole}"]
        named.append(job)
    return named


def expand(words: Sequence[str]) -> list[list[str]]:
    """The combinations; the last word varies fastest. Each word of a job means what it means without ``-m``."""
    parsed, problems = split_words(words)
    found = list[list[str]]()
    for word in parsed:
        try:
            found.append([word.typed] if word.sign == "~" else [_with_text(word, text) for text in _texts(word.text)])
        except ValueError as error:
            problems.append(f"cannot read the sweep {word.shown}: {error}; values of a sweep are KEY=1,2,3")
    if problems:
        raise ConfigError(problems)
    return [list(job) for job in product(*found)]


def _texts(text: str) -> list[str]:
    r"""Values between commas outside of brackets and quotes, where ``\,`` is a comma; or those of Hydra's ``range(3)``.

    Raises:
        ValueError: brackets that are not paired.
    """
    if re.fullmatch(r"(range|choice)\(.*\)", text, flags=re.DOTALL):
        try:
            return list(OverridesParser.create().parse_override(f"key={text}").sweep_string_iterator())
        except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
            raise ValueError(str(error).splitlines()[0]) from error
    if "," not in text:
        return [text]
    pieces = [piece.replace("\0", ",") for piece in split(text.replace("\\,", "\0"))]
    return [piece.strip() for piece in pieces] if len(pieces) > 1 else pieces


def _with_text(word: Word, text: str) -> str:
    return f"{word.sign}{word.path}={text}"


def _problems(jobs: list[list[str]]) -> list[str]:
    """What is wrong with any job, each problem once, and names of run directories that several jobs would share."""
    problems: list[str] = []
    places: Counter[tuple[str, str, str]] = Counter()
    for job in jobs:
        try:
            config = compose_run(job)
        except ConfigError as error:
            problems += error.problems
        else:
            places[config["output"], config["recipe"], config["name"]] += 1
    problems += [
        f"name={name} is that of {count} jobs, and each needs a run directory of its own; leave the name out"
        for (_, _, name), count in places.items()
        if name is not None and count > 1
    ]
    return list(dict.fromkeys(problems))
