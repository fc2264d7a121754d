"""What the ND loss costs, forward and backward, beside a gather of class means and a cosine similarity.

    python -m benchmarks.nd_loss [--threads 1] [--repeats 60]

B = 512 features of D = 2048 and C = 1000 class means. ``gather + cosine`` is ``1 - cosine_similarity(s, means[y])``,
without the teacher; ``product`` the same from one product and two norms, ``loop`` one sample after the other with a row
of a list, as the official code does. Ratios are medians of interleaved rounds in one run, with their quartiles.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.nd import nd_loss
from lightning_modules.host_memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, WIDTH, CLASSES = 512, 2048, 1000


def loop(student: Tensor, teacher: Tensor, means: list[list[float]], labels: Tensor) -> Tensor:
    """Sample by sample, each mean made a tensor of its list."""
    losses = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        center = torch.tensor(means[int(y)], device=s.device)
        losses.append(1 - torch.dot(s, center / center.norm()) / torch.maximum(s.norm(), t.norm()))
    return torch.stack(losses)


def product(student: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """The cosine without what ``cosine_similarity`` stores of normalized rows."""
    centers = means[labels]
    return 1 - (student * centers).sum(1) / (student.norm(dim=1) * centers.norm(dim=1))


def main() -> None:
    options = arguments(threads=torch.get_num_threads(), repeats=60)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(n, WIDTH, generator=generator).to(DEVICE) for n in (BATCH, BATCH, CLASSES))
    student, teacher, means = drawn
    labels = torch.randint(CLASSES, (BATCH,), generator=generator).to(DEVICE)
    soft, rows = one_hot(labels, CLASSES).float(), means.tolist()
    student.requires_grad_()

    def run(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def forward_backward() -> None:
            student.grad = None
            loss().mean().backward()

        return forward_backward

    ways = {
        "gather + cosine": lambda: 1 - cosine_similarity(student, means[labels]),
        "nd": lambda: nd_loss(student, teacher, means, labels),
        "gather + cosine again": lambda: 1 - cosine_similarity(student, means[labels]),
        "product": lambda: product(student, means, labels),
        "nd, soft labels": lambda: nd_loss(student, teacher, means, soft),
    }
    times = interleave({name: run(way) for name, way in ways.items()}, options.repeats)
    slow = interleave(
        {"nd": run(ways["nd"]), "loop": run(lambda: loop(student, teacher, rows, labels))},
        max(3, options.repeats // 10),
    )
    rows_of = {
        "batch, width, classes": [BATCH, WIDTH, CLASSES],
        "repeats": options.repeats,
        "ms": {name: round(1e3 * statistics.median(t), 3) for name, t in {**times, "loop": slow["loop"]}.items()},
        "ratio to gather + cosine: median, lower and upper quartile": ratios(times, "gather + cosine"),
        "ratio of the loop to nd": ratios(slow, "nd"),
    }
    save("nd_loss", rows_of)


if __name__ == "__main__":
    main()
