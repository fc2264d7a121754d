"""``-m``: one process and one run directory for each combination; a job that fails does not stop the rest."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from recipes.compose import compose_config
from recipes.overrides import SPELLINGS
from recipes.signature import ROOT
from recipes.validate import ConfigError


def sweep(program: str, words: Sequence[str], show: bool = False) -> int:
    """Run every combination of the comma-separated values; every configuration is checked before the first starts.

    Returns:
        0 when all jobs succeeded, 1 otherwise; a table at the end says which did.
    """
    jobs = expand(words)
    if program == "train.py" and (problems := _problems(jobs)):
        raise ConfigError(problems)
    codes = []
    for number, job in enumerate(jobs):
        print(f"[{number + 1}/{len(jobs)}] {program} {' '.join(job)}", flush=True)
        codes.append(
            subprocess.run(
                [sys.executable, str(ROOT / program), *job, *(["--config"] if show else [])], check=False
            ).returncode
        )
    for job, code in zip(jobs, codes, strict=True):
        print(f"{'ok    ' if code == 0 else f'exit {code}'}  {' '.join(job)}")
    return int(any(codes))


def expand(words: Sequence[str]) -> list[list[str]]:
    """The combinations, in Hydra's order: the last word varies fastest."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
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
