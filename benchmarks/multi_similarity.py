"""What the Multi-Similarity loss costs, forward and backward with mining, beside other ways to write it; its memory.

    python -m benchmarks.multi_similarity [--threads 1] [--repeats 30]

``plain`` is one vectorized pass over masks with automatic derivatives, without and with mining; ``similarities`` is the
product ``E E^T`` and its backward alone, which every such loss has. pytorch-metric-learning's loss and miner take part
where they can be imported. Ratios are medians of interleaved rounds in one run, with their quartiles. Memory is the
growth of the peak of a fresh process (its resident set, or the allocator's on a GPU), in matrices ``B x B`` of float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import in_fresh_processes, interleave, ratio, save
from kernels.multi_similarity import mine, multi_similarity_loss
from kernels.pairs import pair_masks, similarities
from lightning_modules.host_memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES, WIDTH, OF_EACH_CLASS = (80, 256, 512), 512, 5
LARGE = 4096


def plain(embeddings: Tensor, labels: Tensor, epsilon: float | None = 0.1) -> Tensor:
    """The loss from masks and log-sum-exp; derivatives are automatic."""
    S, masks = similarities(embeddings), pair_masks(labels)
    positive, negative = masks if epsilon is None else mine(S, *masks, epsilon)
    one = S.new_zeros(len(S), 1)
    pull = torch.cat([(-2.0 * (S - 0.5)).masked_fill(~positive, float("-inf")), one], 1).logsumexp(1)
    return (
        pull / 2.0 + torch.cat([(40.0 * (S - 0.5)).masked_fill(~negative, float("-inf")), one], 1).logsumexp(1) / 40.0
    )


def ways() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """All ways to compute the loss; the last one only where it is installed."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "similarities": lambda embeddings, labels: similarities(embeddings).sum(1),  # first: it follows the slowest
        "ours": multi_similarity_loss,
        "plain": plain,
        "ours again": multi_similarity_loss,
        "plain without mining": lambda embeddings, labels: plain(embeddings, labels, None),
    }
    if importlib.util.find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning import losses, miners

        loss, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
        found["pytorch-metric-learning"] = lambda embeddings, labels: loss(
            embeddings, labels, miner(embeddings, labels)
        )
    return found


def task(way: Callable[[Tensor, Tensor], Tensor], size: int) -> Callable[[], None]:
    """Forward and backward of one batch, five of each class, the classes overlapping."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // OF_EACH_CLASS
    centers = torch.randn(int(labels[-1]) + 1, WIDTH, generator=generator)
    embeddings = (centers[labels] / 2 + torch.randn(size, WIDTH, generator=generator)).to(DEVICE).requires_grad_()
    labels = labels.to(DEVICE)

    def forward_backward() -> None:
        embeddings.grad = None
        way(embeddings, labels).mean().backward()

    return forward_backward


def times(size: int, repeats: int) -> dict[str, object]:
    """Median milliseconds of each way, and ratios of ours to the others."""
    measured = interleave({name: task(way, size) for name, way in ways().items()}, repeats)
    return summary(measured)


def summary(measured: dict[str, list[float]]) -> dict[str, object]:
    """Medians, ratios round by round, and the ratio of the fastest rounds, which nothing else has disturbed."""
    row: dict[str, object] = {f"{name}_ms": round(1e3 * statistics.median(t), 3) for name, t in measured.items()}
    for name in measured:
        if name != "ours":
            row[f"ours / {name}"] = [round(value, 3) for value in ratio(measured, "ours", name)]
            row[f"fastest: ours / {name}"] = round(min(measured["ours"]) / min(measured[name]), 3)
    return row


def peak() -> float:
    """Bytes, at most since the start of the process."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def grown(name: str) -> float:
    """How far one large batch lifts the peak of this process, in ``B x B`` float32 matrices."""
    way = ways()[name]
    task(way, 300)()  # libraries and threads are there before
    before = peak()
    task(way, LARGE)()
    return (peak() - before) / (4.0 * LARGE**2)


def memory(threads: int) -> dict[str, list[float]]:
    """The same in fresh processes, three of each way."""
    names = ("ours", "plain", "similarities")
    found = {name: in_fresh_processes("multi_similarity", "--threads", threads, "--grown", name) for name in names}
    return {name: sorted(round(float(run), 2) for run in runs) for name, runs in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--grown", help="print the memory of one way and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(grown(options.grown))
        return
    rows: dict[str, object] = {
        "repeats": options.repeats,
        "ratios": "median, lower and upper quartile",
        "pytorch-metric-learning": "compared" if "pytorch-metric-learning" in ways() else "not installed",
        f"peak memory at batch {LARGE}, in B x B float32 matrices, 3 processes": memory(options.threads),
    }
    keep_freed_memory()  # as the trainer does
    for size in SIZES:
        rows[f"batch {size}"] = times(size, options.repeats)
    rows[f"batch {LARGE}"] = times_large(options.repeats)
    save("multi_similarity", rows)


def times_large(repeats: int) -> dict[str, object]:
    """Few rounds, and none of the library, whose miner sorts all pairs."""
    names = ("ours", "plain", "similarities")
    measured = interleave({name: task(ways()[name], LARGE) for name in names}, max(3, repeats // 10), warmup=1)
    return summary(measured)


if __name__ == "__main__":
    main()
