"""``-m``: one process and one run directory for each combination; a job that fails does not stop the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from recipes.compose import compose_config
from recipes.overrides import SPELLINGS
from recipes.validate import ConfigError


def sweep(program: str, words: Sequence[str]) -> int:
    """Run every combination of the comma-separated values; every configuration is checked before the first starts.

    Returns:
        0 when all jobs succeeded, 1 otherwise; a table at the end says which did.
    """
    jobs = expand(words)
    problems = [problem for job in jobs for problem in _problems(job)] if program == "train.py" else []
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    codes = []
    for number, job in enumerate(jobs):
        print(f"[{number + 1}/{len(jobs)}] {program} {' '.join(job)}", flush=True)
        codes.append(subprocess.run([sys.executable, str(Path(sys.argv[0])), *job], check=False).returncode)
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


def _problems(job: list[str]) -> list[str]:
    try:
        compose_config(job)
    except ConfigError as error:
        return error.problems
    return []
