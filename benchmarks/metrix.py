"""What Metrix on embeddings costs: its kernel beside explicit mixing, its memory, and its share of a training step.

    python -m benchmarks.metrix [--threads 1] [--repeats 30] [--image-size 64]

``explicit`` builds every mixed vector; ``clean`` is the base loss with its similarities. Ratios are medians of
interleaved rounds in one run, with their quartiles. The step is a ResNet-50 with a 512-d embedding and the clean
Multi-Similarity loss on a batch of 100, five of each class; small images make it cheaper than a real one, so the share
of Metrix is an upper bound. Memory is the growth of the peak of a fresh process, its resident set.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from benchmarks.timing import in_fresh_processes, interleave, ratio, save
from kernels.metrix import KINDS, list_pairs, mixed_label, mixed_loss_explicit
from kernels.metrix_gram import embedding_metrix
from kernels.pair_form import clean_loss, multi_similarity
from kernels.pairs import pair_masks, similarities, unit
from lightning_modules.host_memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORM = multi_similarity(17.97, 75.66, 0.77)
BATCH, WIDTH, OF_EACH_CLASS, LAM = 100, 512, 5, 0.4
LARGE = 1000
Loss = Callable[[Tensor, Tensor], Tensor]


def explicit(embeddings: Tensor, labels: Tensor, kind: str = "pos_neg") -> Tensor:
    """All M mixed vectors of D numbers."""
    rows, pairs = unit(embeddings), list_pairs(*pair_masks(labels), kind)
    mixed = unit(LAM * rows[pairs[:, 1]] + (1 - LAM) * rows[pairs[:, 2]])
    s = (rows[pairs[:, 0]] * mixed).sum(1)
    return mixed_loss_explicit(FORM, s, torch.full_like(s, mixed_label(kind, LAM)), pairs[:, 0], len(rows))


def clean(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The base loss."""
    return clean_loss(FORM, similarities(embeddings), *pair_masks(labels))


def gram(kind: str) -> Loss:
    """Metrix with one kind of pairs."""
    return lambda embeddings, labels: embedding_metrix(FORM, embeddings, labels, LAM, pairs=kind)


def task(loss: Loss, size: int) -> Callable[[], None]:
    """Forward and backward of one batch, the classes overlapping."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // OF_EACH_CLASS
    centers = torch.randn(int(labels[-1]) + 1, WIDTH, generator=generator)
    embeddings = (centers[labels] / 2 + torch.randn(size, WIDTH, generator=generator)).to(DEVICE).requires_grad_()
    labels = labels.to(DEVICE)

    def forward_backward() -> None:
        embeddings.grad = None
        loss(embeddings, labels).mean().backward()

    return forward_backward


def kernels(repeats: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of each kind of pairs, of explicit mixing and of the base loss; and their summary."""
    losses: dict[str, Loss] = {kind: gram(kind) for kind in KINDS} | {"explicit pos_neg": explicit, "clean": clean}
    times = interleave({name: task(loss, BATCH) for name, loss in losses.items()}, repeats)
    row: dict[str, object] = {f"{name}_ms": round(1e3 * statistics.median(t), 3) for name, t in times.items()}
    row["pos_neg / explicit pos_neg"] = [round(x, 4) for x in ratio(times, "pos_neg", "explicit pos_neg")]
    return times, row


def step(image_size: int, mixed: str | None) -> Callable[[], None]:
    """A whole training step of a fresh network."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=WIDTH).to(DEVICE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-5)
    images = torch.rand(BATCH, 3, image_size, image_size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=DEVICE) // OF_EACH_CLASS

    def run() -> None:
        optimizer.zero_grad()
        embeddings = network(images)
        total = clean(embeddings, labels).mean()
        if mixed is not None:
            total = total + 0.4 * gram(mixed)(embeddings, labels).mean()
        total.backward()
        optimizer.step()

    return run


def steps(image_size: int, times: dict[str, list[float]]) -> dict[str, object]:
    """Whole steps, and the kernel alone over the step, which is less noisy than the difference of steps."""
    made: dict[str, Callable[[], object]] = {
        "base": step(image_size, None),
        "base again": step(image_size, None),
        "pos_neg": step(image_size, "pos_neg"),
    }
    measured = interleave(made, 5, warmup=1)
    base = statistics.median(measured["base"])
    return {
        "base_ms": round(1e3 * base, 1),
        "base again / base": [round(x, 3) for x in ratio(measured, "base again", "base")],
        "pos_neg / base": [round(x, 3) for x in ratio(measured, "pos_neg", "base")],
        "fastest: base again / base": round(min(measured["base again"]) / min(measured["base"]), 3),
        "fastest: pos_neg / base": round(min(measured["pos_neg"]) / min(measured["base"]), 3),
        **{f"1 + {kind} alone / base": round(1 + statistics.median(times[kind]) / base, 5) for kind in KINDS},
    }


def grown(kind: str) -> float:
    """How far one large batch lifts the peak of this process, in MiB."""
    task(gram(kind), 60)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task(gram(kind), LARGE)()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(threads: int) -> dict[str, list[float]]:
    """The same in fresh processes, three of each kind; all M mixes are ``B * 4 * (B - 5)`` numbers for pos_neg."""
    kinds = ("pos_neg", "anc_neg", "pos_pos")
    found = {kind: in_fresh_processes("metrix", "--threads", threads, "--grown", kind) for kind in kinds}
    return {kind: sorted(round(float(run), 1) for run in runs) for kind, runs in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--grown", help="print the memory of one kind of pairs and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(grown(options.grown))
        return
    rows: dict[str, object] = {"repeats": options.repeats, "ratios": "median, lower and upper quartile"}
    if DEVICE == "cpu":
        rows[f"peak memory at batch {LARGE} in MiB, 3 processes"] = memory(options.threads)
    keep_freed_memory()  # as the trainer does
    times, rows[f"kernel, batch {BATCH}"] = kernels(options.repeats)
    rows[f"ResNet-50 step, batch {BATCH}, {options.image_size} px"] = steps(options.image_size, times)
    save("metrix", rows)


if __name__ == "__main__":
    main()
