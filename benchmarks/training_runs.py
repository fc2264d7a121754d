"""Many short trainings from one process: two at a time, one thread each, forked so that imports are paid once."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import recipes.building.assemble
import recipes.report.page  # noqa: F401  # imported here once, not in every child
from recipes.cli import train

AT_ONCE = 2


def train_all(jobs: Mapping[str, list[str]], folder: str) -> None:
    """Run every job, ``{name of the run: words}``; a run that fails ends the program."""
    waiting, running = list(jobs.items()), set[int]()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name, words = waiting.pop(0)
            running.add(_start([*words, f"output={folder}", f"name={name}", "callback=[]", "trainer.accelerator=cpu"]))
        pid, status = os.wait()
        running.remove(pid)
        assert os.waitstatus_to_exitcode(status) == 0, "a run failed"


def _start(words: list[str]) -> int:
    """Fork a process that trains; its number."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            code = train(words)
        finally:
            os._exit(code)
    return pid


def results_of(folder: str, name: str) -> dict[str, Any]:
    """results.json of a run."""
    found: dict[str, Any] = json.loads((_run(folder, name) / "results.json").read_text(encoding="utf-8"))
    return found


def column_of(folder: str, name: str, column: str) -> list[float]:
    """A column of metrics.csv, where it has a value."""
    with open(_run(folder, name) / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def _run(folder: str, name: str) -> Path:
    return next(Path(folder).glob(f"*/{name}"))
