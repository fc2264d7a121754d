"""What each surgery does to the result: the same recipe with and without it, several seeds.

    python -m benchmarks.surgery_effect --data FOLDER [--seeds 3] [--only NAME ...]

Two runs at a time, one thread each, forked from this process. FOLDER holds CIFAR-10; without it only the embedded
photographs are used. Prints and keeps mean, spread and every single run; ``epochs_to`` is the first epoch whose
validation accuracy reaches that of the plain run at its end (for TrAct).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks.timing import save
from benchmarks.training_runs import column_of, results_of, train_all

CIFAR = ["backbone=cifar_resnet20", "data.verify=false", "data.limit_train=2000", "data.limit_test=2000"]
CIFAR += ["data.val_fraction=0.02"]
#: {case: words}; each runs as it is and with ``~surgery``.
CASES = {
    "embedded, ws_bcn, batch 4": ["recipe=grocery_ws_bcn"],
    "embedded, tract": ["recipe=grocery_tract"],
    "embedded, compander": ["recipe=grocery_compander"],
    "embedded, ghost_bn, batch 256": ["recipe=grocery_ghost_bn"],
    "cifar, ws_bcn, batch 2": ["recipe=cifar_ws_bcn_microbatch", "data.batch_size=2", "optimizer.lr=0.0008"],
    "cifar, ws_bcn, batch 128": ["recipe=cifar_baseline", "surgery=[ws,bcn]"],
    "cifar, ws, batch 128": ["recipe=cifar_baseline", "surgery=[ws]"],
    "cifar, bcn, batch 128": ["recipe=cifar_baseline", "surgery=[bcn]"],
    "cifar, tract": ["recipe=cifar_tract"],
    "cifar, compander": ["recipe=cifar_compander"],
    "cifar, ghost_bn, batch 512": ["recipe=cifar_large_batch_ghost_bn", "data.batch_size=512", "optimizer.lr=0.2"],
}
EPOCHS = {"cifar, ws_bcn, batch 2": 3, "cifar": 10, "embedded": 30}


def epochs_of(case: str) -> int | None:
    """How long a case trains; None for as long as its recipe says."""
    return EPOCHS.get(case, EPOCHS.get(case.split(",")[0]))


def words_of(case: str, with_surgery: bool, seed: int, data: str | None) -> list[str]:
    """The command line of one run."""
    words = [*CASES[case], f"seed={seed}"]
    words += [f"data.root={data}", *CIFAR] if case.startswith("cifar") else []
    words += [f"trainer.max_epochs={epochs_of(case)}"] if epochs_of(case) else []
    return [*words, *([] if with_surgery else ["~surgery"])]


def name_of(case: str, with_surgery: bool, seed: int) -> str:
    return f"{case.replace(', ', '-').replace(' ', '')}-{'with' if with_surgery else 'without'}-{seed}"


def result(folder: str, name: str) -> dict[str, Any]:
    """Test accuracy, and validation accuracy of every epoch."""
    found = results_of(folder, name)
    validation = column_of(folder, name, "val/accuracy")
    return {"test": found["test"]["accuracy"], "val": validation, "seconds": found["train_seconds"]}


def summary(runs: dict[bool, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means and spreads in percent, the paired difference, seconds, and how soon the plain end was reached."""
    tests = {key: [100 * run["test"] for run in value] for key, value in runs.items()}
    pairs = [a - b for a, b in zip(tests[True], tests[False], strict=True)]
    reached = [
        next((i + 1 for i, v in enumerate(a["val"]) if v >= b["val"][-1]), None)
        for a, b in zip(runs[True], runs[False], strict=True)
    ]
    return {
        "with": [round(value, 2) for value in tests[True]],
        "without": [round(value, 2) for value in tests[False]],
        "mean_with": round(statistics.mean(tests[True]), 2),
        "mean_without": round(statistics.mean(tests[False]), 2),
        "difference": round(statistics.mean(pairs), 2),
        "difference_sd": round(statistics.stdev(pairs), 2) if len(pairs) > 1 else None,
        "epochs_to_plain_end": reached,
        "epochs": len(runs[False][0]["val"]),
        "seconds_ratio": round(sum(r["seconds"] for r in runs[True]) / sum(r["seconds"] for r in runs[False]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--keep", help="name of the result file", default="surgery_effect")
    options = parser.parse_args()
    cases = [case for case in CASES if (options.data or not case.startswith("cifar"))]
    cases = [case for case in cases if not options.only or any(word in case for word in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            name_of(case, with_, seed): words_of(case, with_, seed, options.data)
            for case in cases
            for seed in range(options.seeds)
            for with_ in (True, False)
        }
        train_all(jobs, folder)
        found = {
            case: summary(
                {w: [result(folder, name_of(case, w, s)) for s in range(options.seeds)] for w in (True, False)}
            )
            for case in cases
        }
    save(options.keep, {"seeds": options.seeds, "cases": found})


if __name__ == "__main__":
    main()
