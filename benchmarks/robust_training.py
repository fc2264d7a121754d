"""What robust training does to the result: methods at one budget on a subset of CIFAR-10, paired seeds.

    python -m benchmarks.robust_training --root DATA --folder FOLDER [--seeds 3] [--epochs 8] [--standard 1]

DATA holds cifar-10-batches-py. FOLDER keeps the runs: started again, only those that are missing are trained. Every
method has the same small network, the same updates and the same attack steps (N-FGSM one); the epoch with the best
PGD-10 accuracy of the validation part is tested. Prints and keeps clean accuracy, robust accuracy (``budget=fast``),
worst class, RA-Tail-30 and accuracy under PGD-20, with mean, spread and the paired difference to plain adversarial
training; for the first ``standard`` seeds also robust accuracy by ``budget=standard``.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from benchmarks.timing import arguments, save
from benchmarks.training_runs import results_of, train_all
from lightning_modules.evaluators.base import EvaluationData, Evaluator, evaluate_all
from lightning_modules.evaluators.robustness import RobustnessEvaluator, RobustValidation
from recipes.building.make import make_data
from recipes.building.networks import network_of

PGD = ["attack=pgd", "attack.steps=5", "attack.step_size=3/255"]
HALF = "reweighting.start_epoch=HALF"
CASES = {
    "at": PGD,
    "trades": ["loss=trades", *PGD, "attack.objective=kl", "attack.start=normal"],
    "mart": ["loss=mart", *PGD],
    "gairat": [*PGD, "reweighting=gairat", HALF],
    "mail": [*PGD, "reweighting=mail", HALF],
    "dro_at_batch": [*PGD, "reweighting=kl_dro", "reweighting.level=batch", HALF],
    "dro_at": [*PGD, "reweighting=kl_dro", HALF],
    "n_fgsm": ["attack=n_fgsm"],
}
METRICS = ("accuracy", "robust_accuracy", "worst_class", "tail_30", "pgd_accuracy")


def words(case: list[str], root: str, epochs: int, images: int, seed: int) -> list[str]:
    """The command line of one run."""
    network = ["backbone=conv4", "backbone.kwargs.channels=[16,32,64]", "optimizer=sgd", "optimizer.lr=0.05"]
    data = [
        "recipe=cifar_baseline",
        f"data.root={root}",
        "data.verify=false",
        "data.limit_train=5000",
        "data.val_fraction=0.02",
    ]
    data += [f"data.limit_test={images}"]
    chosen = ["validation=[classification,robustness]", "select=[robustness/pgd_accuracy]"]
    tested = ["evaluator=[classification,robustness]", "evaluator.robustness.num_pictures=0"]
    half = [word.replace("HALF", str(epochs // 2)) for word in case]
    return [*data, *network, *chosen, *tested, f"trainer.max_epochs={epochs}", f"seed={seed}", *half]


def main() -> None:
    options = arguments(root="", folder="", seeds=3, epochs=8, images=500, standard=1)
    seeds = range(options.seeds)
    jobs = {
        f"{name}-{seed}": words(case, options.root, options.epochs, options.images, seed)
        for seed in seeds
        for name, case in CASES.items()
    }
    done = {path.parent.name for path in Path(options.folder).glob("*/*/results.json")}
    train_all({name: job for name, job in jobs.items() if name not in done}, options.folder)
    found = {
        name: {metric: [_tested(options.folder, f"{name}-{seed}", metric) for seed in seeds] for metric in METRICS}
        for name in CASES
    }
    rows: dict[str, dict[str, Any]] = {
        name: {metric: summary(values, found["at"][metric]) for metric, values in metrics.items()}
        for name, metrics in found.items()
    }
    for seed in range(options.standard):
        for name in CASES:
            found_by = _attacked(options.folder, f"{name}-{seed}", "standard", RobustnessEvaluator(budget="standard"))
            rows[name].setdefault("standard", []).append(round(100 * found_by["robust_accuracy"], 2))
            print(f"{name}, seed {seed}: {rows[name]['standard'][-1]} % by the standard budget", flush=True)
    save("robust_training", {"seeds": options.seeds, "epochs": options.epochs, "images": options.images, **rows})


def _tested(folder: str, name: str, metric: str) -> float:
    if metric == "pgd_accuracy":
        return 100 * _attacked(folder, name, "pgd20", RobustValidation(steps=20))[metric]
    return 100 * float(results_of(folder, name)["evaluators"]["robustness"][metric])


def _attacked(folder: str, name: str, kept: str, evaluator: Evaluator) -> dict[str, float]:
    """What an evaluator gives for the network of a run on its test images; kept beside the run."""
    run = next(Path(folder).glob(f"*/{name}"))
    path = run / f"{kept}.json"
    if not path.is_file():
        found = network_of(str(run))
        data = make_data(found.config["data"], 0)  # type: ignore[index]
        given = EvaluationData(data.test_dataloader(), data.classes, brief=True)
        done, failed = evaluate_all({kept: evaluator}, found.network, given)
        assert not failed, failed
        path.write_text(json.dumps(done[kept].metrics))
    metrics: dict[str, float] = json.loads(path.read_text())
    return metrics


def summary(values: list[float], reference: list[float]) -> dict[str, object]:
    """Values of paired seeds, mean and spread, and the paired difference to others unless they are these."""
    summary: dict[str, object] = {
        "values": [round(value, 2) for value in values],
        "mean": round(statistics.mean(values), 2),
        "sd": round(statistics.stdev(values), 2),
    }
    if values is not reference:
        pairs = [ours - theirs for ours, theirs in zip(values, reference, strict=True)]
        summary |= {"difference": round(statistics.mean(pairs), 2)}
        if len(set(pairs)) > 1:
            summary |= {"p": float(f"{ttest_rel(values, reference).pvalue:.2g}")}
    return summary


if __name__ == "__main__":
    main()
