"""Kill -9 at random moments: does the run that is started again and again end as if nothing had happened?

    python -m benchmarks.soak [--kills 50] [--seed 0]

Trains a small recipe on the embedded photographs without a break, then again in a process that is killed at a random
moment and started anew with the same command, until it was killed so often; then it may finish. Every tensor and
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
from pathlib import Path
from typing import Any

import recipes.assemble
import recipes.report.page  # noqa: F401  # imported here once, not in every child
from benchmarks.timing import save
from recipes.checkpoint import CheckpointStore
from recipes.cli import train
from recipes.self_check import differing

WORDS = [
    "recipe=grocery_saf",
    "backbone=test_efficientnet",
    "data.batch_size=16",
    "data.limit_train=320",
    "data.limit_test=80",
    "trainer.max_epochs=60",
    "trainer.accelerator=cpu",
    "save_every=7",
]
LIFE_S = (0.3, 2.5)


def start(folder: str, name: str) -> int:
    """Fork a process that trains; its number."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        code = train([*WORDS, f"output={folder}", f"name={name}"])
    finally:
        os._exit(code)


def finish(pid: int, seconds: float | None = None) -> int | None:
    """The exit code; None where it was still at work after so long, and was killed."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def outcome(folder: str, name: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The last checkpoint, and the rows without their times."""
    run = Path(folder) / "grocery_saf" / name
    found = CheckpointStore(run / "checkpoints").newest("last")
    assert found is not None
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return found[0], [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        assert finish(start(folder, "whole")) == 0, Path(folder, "whole.log").read_text(encoding="utf-8")
        alone, kills, code = time.monotonic() - begin, 0, None
        while code is None:
            seconds = draw.uniform(*LIFE_S) if kills < options.kills else None
            code = finish(start(folder, "killed"), seconds)
            kills += code is None
        log = Path(folder, "killed.log").read_text(encoding="utf-8")
        assert code == 0 and kills >= options.kills, f"exit code {code} after {kills} kills\n{log[-3000:]}"
        whole, killed = outcome(folder, "whole"), outcome(folder, "killed")
        different = differing(whole[0], killed[0])
        save(
            "soak",
            {
                "kills": kills,
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
