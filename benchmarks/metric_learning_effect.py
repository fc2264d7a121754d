"""What Metrix does to retrieval: losses with and without it, several seeds, and the backbone before any training.

    python -m benchmarks.metric_learning_effect [--omniglot FOLDER] [--seeds 3] [--only WORD ...]

The embedded photographs (16 classes train, 4 select, 20 test) and, with FOLDER, Omniglot. Prints and keeps R@1 and
MAP@R on the test classes, with mean and spread, and the utilization of the training embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks.timing import save
from benchmarks.training_runs import results_of, train_all

LOSSES = {"multi_similarity": [], "contrastive": ["loss=contrastive"], "proxy_anchor": ["loss=proxy_anchor"]}
EPOCHS = {"grocery": 30, "omniglot": 6}
EVALUATORS = "evaluator=[retrieval,utilization]"


def words_of(data: str, loss: str, metrix: bool, seed: int, omniglot: str | None) -> list[str]:
    """The command line of one run."""
    base = [f"recipe={data}_multi_similarity", *([] if data == "grocery" else [f"data.root={omniglot}"])]
    words = [*base, *LOSSES[loss], *(["mixing=metrix"] if metrix else []), EVALUATORS]
    words += [] if data == "grocery" else ["data.verify=false"]
    return [*words, "evaluator.retrieval.full_map=false", f"seed={seed}", f"trainer.max_epochs={EPOCHS[data]}"]


def name_of(data: str, loss: str, metrix: bool, seed: int) -> str:
    return f"{data}-{loss}-{'metrix' if metrix else 'plain'}-{seed}"


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Every run in percent, mean and standard deviation; utilization as it is."""
    found: dict[str, Any] = {}
    for metric in ("recall@1", "map@r"):
        values = [100 * run["test"][metric] for run in runs]
        found[metric] = [round(value, 2) for value in values]
        found[f"{metric} mean"] = round(statistics.mean(values), 2)
        found[f"{metric} sd"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
    for metric in ("utilization", "utilization_mixed"):
        values = [run["evaluators"]["utilization"][metric] for run in runs]
        found[metric] = round(statistics.mean(values), 4)
    found["seconds"] = round(statistics.mean(run["train_seconds"] for run in runs), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--omniglot")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    sets = ["grocery", *(["omniglot"] if options.omniglot else [])]
    cases = [(data, loss, metrix) for data in sets for loss in LOSSES for metrix in (False, True)]
    cases = [case for case in cases if not options.only or any(word in name_of(*case, 0) for word in options.only)]
    seeds = range(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        train_all({name_of(*case, s): words_of(*case, s, options.omniglot) for case in cases for s in seeds}, folder)
        found = {
            name_of(*case, 0).rpartition("-")[0]: summary([results_of(folder, name_of(*case, s)) for s in seeds])
            for case in cases
        }
    save("metric_learning_effect", {"seeds": options.seeds, "epochs": EPOCHS, "cases": found})


if __name__ == "__main__":
    main()
