"""Kill -9 at random moments: does the run that is started again and again end as if nothing had happened?

    python -m benchmarks.soak [--kills 50] [--seed 0] [--short-epochs]

Trains a small recipe on the embedded photographs without a break, then again in a process that is killed at a random
moment and started anew with the same command, until it was killed so often; then it may finish. With --short-epochs
there are class-balanced batches and five loader processes, which fetch two epochs and a half ahead, the run without a
break has no loader processes, and every other kill comes in a validation. Every tensor and
counter of the last checkpoint, and metrics.csv without its times, have to be equal. Children are forked from this
process, which has imported everything and computed nothing, so a start costs no imports.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import recipes.building.assemble
import recipes.report.page  # noqa: F401  # imported here once, not in every child
from benchmarks.timing import save
from kernels.batch import Batch
from lightning_modules.tasks.task import Task
from recipes.checkpoints.load import CheckpointStore
from recipes.cli import train
from recipes.running.self_check import differing

COMMON = ["data.batch_size=16", "data.limit_test=80", "trainer.accelerator=cpu"]
LONG = [
    "recipe=grocery_saf",
    *COMMON,
    "backbone=test_efficientnet",
    "data.limit_train=320",
    "trainer.max_epochs=60",
    "save_every=7",
]
SHORT = [
    "recipe=grocery_multi_similarity",
    *COMMON,
    "backbone.kwargs.channels=[8,8]",
    "data.samples_per_class=2",
    "data.limit_train=64",
    "trainer.max_epochs=30",
    "save_every=2",
]
WORKERS = 5
LIFE_S, LIFE_WITH_LOADERS_S = (0.3, 2.5), (0.5, 8.0)
VALIDATIONS = 3  # a kill in validation comes in one of the first so many of a session


def start(folder: str, name: str, words: list[str], validation: int | None = None) -> int:
    """Fork a process that trains; its number.

    Args:
        folder: of all runs.
        name: of the run.
        words: its other words.
        validation: kills itself in the validation of this number in its life; None never does.
    """
    pid = os.fork()
    if pid:
        return pid
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    if validation is not None:
        die_in_validation(validation)
    try:
        code = train([*words, f"output={folder}", f"name={name}"])
    finally:
        os._exit(code)


def die_in_validation(number: int) -> None:
    """Let this process be killed after the first batch of its ``number``-th validation."""
    measure, begun = Task.validation_step, count(1)

    def measure_and_die(task: Task, batch: Batch, batch_idx: int) -> None:
        measure(task, batch, batch_idx)
        if batch_idx == 0 and next(begun) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Task.validation_step = measure_and_die  # type: ignore[method-assign]


def life(draw: random.Random, short: bool, kills: int) -> tuple[float | None, int | None]:
    """How many seconds a process may live, and the validation in which it dies; one of the two is None."""
    if short and kills % 2:
        return None, draw.randint(1, VALIDATIONS)
    return draw.uniform(*(LIFE_WITH_LOADERS_S if short else LIFE_S)), None


def finish(pid: int, seconds: float | None = None) -> int | None:
    """The exit code; None where it was killed: by itself, or because it was still at work after so long."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGKILL else code
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def outcome(folder: str, name: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The last checkpoint, and the rows without their times."""
    (run,) = Path(folder).glob(f"*/{name}")
    found = CheckpointStore(run / "checkpoints").newest("last")
    assert found is not None
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return found[0], [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short-epochs", action="store_true")
    options = parser.parse_args()
    draw, short = random.Random(options.seed), options.short_epochs
    words = SHORT if short else LONG
    workers = [f"data.num_workers={WORKERS}"] if short else []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        assert finish(start(folder, "whole", words)) == 0, Path(folder, "whole.log").read_text(encoding="utf-8")
        alone, kills, in_validation, code = time.monotonic() - begin, 0, 0, None
        while code is None:
            seconds, validation = life(draw, short, kills) if kills < options.kills else (None, None)
            code = finish(start(folder, "killed", [*words, *workers], validation), seconds)
            kills += code is None
            in_validation += code is None and validation is not None
        log = Path(folder, "killed.log").read_text(encoding="utf-8")
        assert code == 0 and kills >= options.kills, f"exit code {code} after {kills} kills\n{log[-3000:]}"
        whole, killed = outcome(folder, "whole"), outcome(folder, "killed")
        different = differing(whole[0], killed[0])
        save(
            "soak_short_epochs" if short else "soak",
            {
                "kills": kills,
                **({"kills_in_validation": in_validation, "loader_processes": WORKERS} if short else {}),
                "updates": whole[0]["update"],
                "seconds_without_kills": round(alone, 1),
                "sessions_that_went_on": log.count("going on from"),
                "damaged_or_unfinished_files_ignored": log.count("is ignored") + log.count("is removed"),
                "values_that_differ": len(different),
                "metrics_equal": whole[1] == killed[1],
            },
        )
        assert not different and whole[1] == killed[1], different[:5]


if __name__ == "__main__":
    main()
