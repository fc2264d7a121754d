"""What an evaluation pays for its confusion counts, by the number of classes, and a dense matrix would cost.

    python -m benchmarks.confusion_counts [--images 4096] [--batch 256] [--repeats 3]

Whole calls of ``ClassificationEvaluator`` on scores that are there already; ``dense`` has one more addition of
``bincount(label * C + prediction)`` for each batch. Peaks of memory are those of
fresh processes, above that of what is given.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.timing import arguments, in_fresh_processes, interleave, ratio, save
from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.classification import ClassificationEvaluator

CLASSES = (10, 1000, 10_000)


class Known(torch.nn.Module):
    """The same scores for every batch."""

    def __init__(self, batch: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.randn(batch, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, image: torch.Tensor) -> Output:
        return Output(logits=self.scores)


def candidates(images: int, batch: int, classes: int) -> dict[str, Callable[[], object]]:
    network, names = Known(batch, classes), tuple(map(str, range(classes)))
    image = torch.zeros(batch, 3, 1, 1)
    batches = [Batch(image, index % classes, index) for index in torch.arange(images).split(batch)]

    def sparse() -> None:
        ClassificationEvaluator()(network, EvaluationData(batches, names))

    def dense() -> None:
        counts = torch.zeros(classes * classes, dtype=torch.int64)

        def counted() -> Iterator[Batch]:
            nonlocal counts
            for one in batches:
                yield one
                pair = one.label * classes + network.scores.argmax(1)
                counts += torch.bincount(pair, minlength=classes * classes)

        ClassificationEvaluator()(network, EvaluationData(counted(), names))

    return {"sparse": sparse, "sparse again": sparse, "dense": dense}


def peak_mb() -> float:
    """Of this process alone; what ``getrusage`` says begins with the memory of its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "peaks of memory are read from /proc, which only Linux has"
    return int(found[1]) / 1024


def main() -> None:
    if sys.argv[1:2] == ["peak"]:  # a child: which candidate, and its sizes
        name, sizes = sys.argv[2], map(int, sys.argv[3:])
        call, before = candidates(*sizes)[name], peak_mb()
        call()
        print(peak_mb() - before)
        return
    options = arguments(images=4096, batch=256, repeats=3)
    rows: dict[str, object] = vars(options).copy()
    for classes in CLASSES:
        sizes = options.images, options.batch, classes
        times = interleave(candidates(*sizes), options.repeats, warmup=1)
        for name in times:
            rows[f"{name}, {classes} classes, s"] = round(statistics.median(times[name]), 4)
        rows[f"dense over sparse, {classes} classes (median, quartiles)"] = [
            round(x, 3) for x in ratio(times, "dense", "sparse")
        ]
        for name in ("sparse", "dense"):
            peaks = in_fresh_processes("confusion_counts", "peak", name, *sizes, times=1)
            rows[f"{name}, {classes} classes, peak MB"] = round(float(peaks[0]), 1)
    save("confusion_counts", rows)


if __name__ == "__main__":
    main()
