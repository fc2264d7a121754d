"""What SAM does to the result: the embedded recipe with and without it, paired seeds.

    python -m benchmarks.sam_effect --folder FOLDER [--seeds 3]

FOLDER keeps the runs: started again, only those that are missing are trained. Prints and keeps mean, spread, every
single run, and the p-value of a paired t-test.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from scipy.stats import ttest_rel

from benchmarks.timing import arguments, save
from benchmarks.training_runs import results_of, train_all

CASES = {
    "baseline": ["recipe=grocery_baseline"],
    "sam": ["recipe=grocery_sam"],
    "asam": ["recipe=grocery_baseline", "gradient=asam"],
}


def main() -> None:
    options = arguments(folder="", seeds=3)
    seeds = range(options.seeds)
    jobs = {f"{case}-{seed}": [*words, f"seed={seed}"] for seed in seeds for case, words in CASES.items()}
    done = {path.parent.name for path in Path(options.folder).glob("*/*/results.json")}
    train_all({name: words for name, words in jobs.items() if name not in done}, options.folder)
    tests = {
        case: [100 * results_of(options.folder, f"{case}-{seed}")["test"]["accuracy"] for seed in seeds]
        for case in CASES
    }
    rows = {
        case: {
            "test accuracy": [round(value, 2) for value in values],
            "mean": round(statistics.mean(values), 2),
            "sd": round(statistics.stdev(values), 2),
            "p against baseline": None if case == "baseline" else float(f"{_p(values, tests['baseline']):.2g}"),
        }
        for case, values in tests.items()
    }
    save("sam_effect", {"seeds": options.seeds, **rows})


def _p(ours: list[float], theirs: list[float]) -> float:
    return float(ttest_rel(ours, theirs).pvalue)


if __name__ == "__main__":
    main()
