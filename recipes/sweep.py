"""``-m``: one process and one run directory for each combination; a job that fails does not stop the rest.

With ``name=trial`` the jobs are called ``trial-seed=0`` and so on, and the same command again runs only what is not
finished: an interrupted job goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from recipes.allow import allow_words
from recipes.child import run_child
from recipes.compose import compose_config
from recipes.directory import is_finished
from recipes.overrides import SPELLINGS
from recipes.plain import MAX_DEPTH, TOO_DEEP, brackets_open
from recipes.resume import differences, read_config
from recipes.signature import ROOT
from recipes.validate import ConfigError

LONGEST = 100  # characters of a name


def sweep(program: str, words: Sequence[str], show: bool = False) -> int:
    """Run every combination of the comma-separated values; every configuration is checked before the first starts.

    Returns:
        0 when all jobs succeeded, 1 otherwise; a table at the end says which did.
    """
    jobs = _named(expand(words))
    if program == "train.py" and (problems := _problems(jobs)):
        raise ConfigError(problems)
    outcomes = [
        _run(program, job, f"[{number + 1}/{len(jobs)}]", ["--config"] if show else [])
        for number, job in enumerate(jobs)
    ]
    for job, outcome in zip(jobs, outcomes, strict=True):
        print(f"{outcome:<8}  {' '.join(job)}")
    return int(any(outcome.startswith("exit") for outcome in outcomes))


def _run(program: str, job: list[str], number: str, flags: list[str]) -> str:
    """Start one job; what the table says of it."""
    if program == "train.py" and not flags and _is_finished(job):
        print(f"{number} finished before: {' '.join(job)}", flush=True)
        return "finished"
    print(f"{number} {program} {' '.join(job)}", flush=True)
    command = [sys.executable, str(ROOT / program), *job, *allow_words(), *flags]
    code = run_child(command)
    return "ok" if code == 0 else f"exit {code}"


def _is_finished(job: list[str]) -> bool:
    config = compose_config(job)
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
        own = [word for word in job if word not in shared and not word.startswith("name=")]
        name = next((word.removeprefix("name=") for word in job if word.startswith("name=")), "null")
        if name != "null" and own:
            whole = f"{name}-" + re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join(own))
            if len(whole) > LONGEST:
                whole = f"{whole[: LONGEST - 17]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
            job = [word for word in job if not word.startswith("name=")] + [f"name='{whole}'"]
        named.append(job)
    return named


def expand(words: Sequence[str]) -> list[list[str]]:
    """The combinations, in Hydra's order: the last word varies fastest."""
    if deep := [word for word in words if brackets_open(word) > MAX_DEPTH]:
        raise ConfigError([f"{word[:80]!r}...: {TOO_DEEP}" for word in deep])
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ConfigError([f"cannot read the sweep: {SPELLINGS}; values of a sweep as key=1,2,3"]) from error
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def _problems(jobs: list[list[str]]) -> list[str]:
    """What is wrong with any job, each problem once, and names of run directories that several jobs would share."""
    problems: list[str] = []
    places: Counter[tuple[str, str, str]] = Counter()
    for job in jobs:
        try:
            config = compose_config(job)
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
