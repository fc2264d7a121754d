"""What distillation does to the result: terms at one budget on a subset of CIFAR-10, paired seeds.

    python -m benchmarks.distillation --root DATA --teacher FILE --folder FOLDER [--width 16] [--seeds 3] [--epochs 8]

DATA has cifar-10-batches-py, FILE the weights of a CIFAR-10 ResNet-56 in the names of pytorch_resnet_cifar10. FOLDER
keeps the runs: started again, only those that are missing are trained. The student is the CIFAR ResNet-20 with
``width`` channels in its first stage (8 is the narrower one). Every run has the same images, augmentations (four of
each sample, so that the teacher's outputs are computed once) and updates; the epoch with the best validation accuracy
is tested. Prints and keeps accuracy with mean, spread and the paired difference to cross-entropy alone; of the aligned
runs also the cosine between the gradients.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.robust_training import summary
from benchmarks.timing import arguments, save
from benchmarks.training_runs import column_of, results_of, train_all

DUAL = ["head=dual", "gradient=aligned", "regularizer.binary_kl_norm.head=auxiliary"]
CASES = {
    "ce": [],
    "binary_kl_on_the_only_head": ["regularizer=[binary_kl]"],
    "binary_kl_aligned": ["regularizer=[binary_kl]", "gradient=aligned"],
    "kd": ["regularizer=[kd]"],
    "dkd": ["regularizer=[dkd]", "regularizer.dkd.beta=2", "regularizer.dkd.warmup_epochs=3"],
    "dist": ["regularizer=[dist]"],
    "dual_head": ["regularizer=[binary_kl_norm]", *DUAL],
    "nd": ["regularizer=[nd]", "regularizer.nd.weight=2"],
    "kd_nd": ["regularizer=[kd,nd]", "regularizer.nd.weight=2"],
    "dual_head_nd": ["regularizer=[binary_kl_norm,nd]", "regularizer.nd.weight=2", *DUAL],
}


def words(name: str, options: dict[str, object], seed: int) -> list[str]:
    """The command line of one run."""
    network = ["backbone=cifar_resnet20", f"backbone.kwargs.width={options['width']}", "optimizer.lr=0.1"]
    data = ["recipe=cifar_baseline", f"data.root={options['root']}", "data.verify=false", "data.augmentations=4"]
    data += ["data.limit_train=3000", "data.val_fraction=0.02", "data.limit_test=5000", "optimizer.weight_decay=5e-4"]
    teacher = [f"teacher=cifar_resnet56@{options['teacher']}", "teaching=cached", "teaching.check=false"]
    teacher += [f"teaching.folder={options['folder']}/teacher"]
    ends = [f"trainer.max_epochs={options['epochs']}", f"seed={seed}"]
    return [*data, *network, *ends, *CASES[name], *(teacher if CASES[name] else [])]


def main() -> None:
    options = arguments(root="", teacher="", folder="", width=16, seeds=3, epochs=8)
    given, seeds = vars(options), range(options.seeds)
    folder = f"{options.folder}/width{options.width}"
    jobs = {f"{name}-{seed}": words(name, given, seed) for seed in seeds for name in CASES}
    done = {path.parent.name for path in Path(folder).glob("*/*/results.json")}
    train_all({name: job for name, job in jobs.items() if name not in done}, folder)
    found = {name: [100 * results_of(folder, f"{name}-{seed}")["test"]["accuracy"] for seed in seeds] for name in CASES}
    rows: dict[str, object] = {name: summary(values, found["ce"]) for name, values in found.items()}
    facts = {"seeds": options.seeds, "epochs": options.epochs, "width": options.width}
    save(f"distillation_width{options.width}", {**facts, **rows, "cosine": _cosines(folder)})


def _cosines(folder: str) -> dict[str, list[float]]:
    """Between the gradients of the labels and of the teacher's logits, of the aligned runs with seed 0, by epoch."""
    terms = {"binary_kl_aligned": "binary_kl", "dual_head": "binary_kl_norm", "dual_head_nd": "binary_kl_norm"}
    return {
        name: [round(value, 3) for value in column_of(folder, f"{name}-0", f"gradient/{term}/cosine")]
        for name, term in terms.items()
    }


if __name__ == "__main__":
    main()
