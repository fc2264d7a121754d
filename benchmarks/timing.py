"""Interleaved timing: several things in one run, in turn, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def arguments(**defaults: int | str) -> argparse.Namespace:
    """The command line: one ``--name value`` for each of these, of the type of its default."""
    parser = argparse.ArgumentParser()
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    candidates: dict[str, Callable[[], object]], repeats: int, warmup: int = 2, pause: float = 0
) -> dict[str, list[float]]:
    """Seconds of each call, all candidates in turn, ``repeats`` times after ``warmup`` rounds.

    Libraries with threads of their own need a pause: those of one wait for more work busily, on the cores of the next.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for round_ in range(warmup + repeats):
        shift = round_ % len(names)  # nobody always comes first
        for name in names[shift:] + names[:shift]:
            synchronize()
            time.sleep(pause)
            start = time.perf_counter()
            candidates[name]()
            synchronize()
            if round_ >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median of the round-by-round ratios, with their quartiles."""
    ratios = sorted(a / b for a, b in zip(times[name], times[base], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def ratios(times: dict[str, list[float]], base: str, digits: int = 4) -> dict[str, list[float]]:
    """``ratio`` of everything but the base, rounded for a result file."""
    return {name: [round(value, digits) for value in ratio(times, name, base)] for name in times if name != base}


def in_fresh_processes(module: str, *words: object, times: int = 3) -> list[str]:
    """What ``python -m benchmarks.MODULE words`` prints, so many times: a peak of memory belongs to one process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
    return [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(times)]


def save(name: str, rows: dict[str, object]) -> None:
    """Keep the figures with hardware and versions, and print them."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    facts = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**facts, **rows}, indent=2)
    (RESULTS / f"{name}_{'gpu' if torch.cuda.is_available() else 'cpu'}.json").write_text(text + "\n")
    print(text)
