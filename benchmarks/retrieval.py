"""What retrieval costs: the evaluator beside one FAISS Flat search alone, and beside pytorch-metric-learning.

    python -m benchmarks.retrieval [--sizes 5000 20000 60502] [--dims 128 512] [--per-class N] [--noise X] [--threads 2]

The evaluator as it is, and with ``full_map=false`` as during training. The Flat search is chunked and asks for as many
neighbours as the metrics without ``map`` need; it computes no metric. Embeddings are unit rows in classes of SOP's
sizes, with noise for a recall@1 of 0.7 to 0.9, or in classes of N items with X times that noise. Ratios are medians of
interleaved rounds in one run, with quartiles, and a pause between the calls. Memory is the peak of a fresh process over
what it had with the embeddings. Each size has its own file in results/. FAISS and numpy follow OMP_NUM_THREADS: set it
to --threads.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import in_fresh_processes, interleave, ratio, save
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.retrieval.labels import Relevance

CLASSES_PER_ITEM = 11_316 / 60_502
NOISE = {128: 1.45, 512: 2.25}
CHUNK = 4096


def embeddings(total: int, width: int, per_class: int = 0, noise: float = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around class centres, and labels in classes of two to twelve items, or so many; made in place."""
    generator = torch.Generator().manual_seed(0)
    classes = total // per_class if per_class else int(total * CLASSES_PER_ITEM)
    extra = torch.randint(classes, (total - 2 * classes,), generator=generator)
    labels = torch.cat([torch.arange(classes).repeat(2), extra]).sort().values
    labels = torch.arange(total) * classes // total if per_class else labels
    centres, rows = torch.randn(classes, width, generator=generator), torch.empty(total, width)
    for start in range(0, total, CHUNK):
        part = rows[start : start + CHUNK].normal_(generator=generator).mul_(noise * NOISE.get(width, 2.0))
        part += centres[labels[start : start + CHUNK]]
        part /= part.norm(dim=1, keepdim=True)
    return rows, labels


def flat_search(rows: torch.Tensor, count: int) -> Callable[[], object]:
    """A chunked search of an index that holds the rows already."""
    import faiss

    array = rows.numpy()
    index = faiss.IndexFlatIP(array.shape[1])
    index.add(array)

    def search() -> None:
        for start in range(0, len(array), CHUNK):
            index.search(array[start : start + CHUNK], count)

    return search


def metric_learning(rows: torch.Tensor, labels: torch.Tensor) -> Callable[[], object] | None:
    """pytorch-metric-learning with the same metrics; None where it is not installed."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return None
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    calculator = AccuracyCalculator(include=names, k="max_bin_count")
    return lambda: calculator.get_accuracy(rows, labels)


def compare(total: int, width: int, rounds: int, per_class: int, noise: float) -> dict[str, Any]:
    """Times of one size."""
    rows, labels = embeddings(total, width, per_class, noise)
    evaluator, without = RetrievalEvaluator(), RetrievalEvaluator(full_map=False)
    count = max(evaluator.ks[-1], int(labels.bincount().max()) - 1) + 1
    candidates: dict[str, Callable[[], object]] = {
        "flat": flat_search(rows, count),
        "evaluator": lambda: evaluator(rows, labels),
        "without map": lambda: without(rows, labels),
    }
    if other := metric_learning(rows, labels):
        candidates["pytorch_metric_learning"] = other
    times = interleave(candidates, rounds, warmup=int(total < 40_000), pause=0.05)
    result: dict[str, Any] = {f"{name}_s": round(statistics.median(values), 3) for name, values in times.items()}
    result |= {
        f"{ours} / {other}": [round(value, 3) for value in ratio(times, ours, other)]
        for other in times.keys() - {"evaluator", "without map"}
        for ours in ("evaluator", "without map")
    }
    metrics = evaluator(rows, labels)
    return result | {name: round(metrics[name], 4) for name in ("recall@1", "map@r", "map", "mrr")} | {"k": count}


def label_work() -> dict[str, float]:
    """Seconds for all that is done with labels, at the size of SOP."""
    labels = embeddings(60_502, 2)[1].numpy()[np.random.default_rng(0).permutation(60_502)]
    rows, times = np.arange(len(labels)), []
    for _ in range(7):
        start = time.perf_counter()
        relevance = Relevance(labels, rows, rows, rows)
        relevance.pairs(rows)
        times.append(time.perf_counter() - start)
    return {"items": len(labels), "classes": len(relevance.classes), "seconds": round(statistics.median(times), 4)}


def peak(total: int, width: int, full_map: bool, per_class: int, noise: float) -> dict[str, float]:
    """MiB of a fresh process: the embeddings, and the peak above them."""
    options = ("--peak", total, width, int(full_map), per_class, "--noise", noise)
    return dict(json.loads(in_fresh_processes("retrieval", *options, times=1)[0]))


def measure_peak(total: int, width: int, full_map: bool, per_class: int, noise: float) -> None:
    """In the fresh process. The first small evaluation loads libraries."""
    evaluator = RetrievalEvaluator(full_map=full_map)
    evaluator(*embeddings(3000, width, per_class, noise))
    rows, labels = embeddings(total, width, per_class, noise)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the small evaluation left is not counted as the embeddings'
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    evaluator(rows, labels)
    print(
        json.dumps({"embeddings_MiB": rows.numel() / 2**18, "extra_MiB": round((memory("VmHWM") - before) / 1024, 1)})
    )


def memory(field: str) -> int:
    """KiB of this process by the kernel's book."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=[5000, 20_000, 60_502])
    parser.add_argument("--dims", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--per-class", type=int, default=0, help="items of a class; 0 for classes of SOP's sizes")
    parser.add_argument("--noise", type=float, default=1, help="times the noise of the embeddings")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000, help="queries of all rounds, at least: short ones vary")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        measure_peak(options.peak[0], options.peak[1], bool(options.peak[2]), options.peak[3], options.noise)
        return
    facts = {"ratios": "median, lower and upper quartile", "label work": label_work()}
    for total in options.sizes:
        for width in options.dims:
            memory_of = {
                f"extra_MiB {name}": peak(total, width, full_map, options.per_class, options.noise)["extra_MiB"]
                for name, full_map in (("evaluator", True), ("without map", False))
            }
            rounds = max(options.repeats, options.rows // total)
            figures = compare(total, width, rounds, options.per_class, options.noise)
            hard = f"_{options.per_class}_per_class" if options.per_class else ""
            save(f"retrieval_{total}_{width}{hard}", facts | figures | memory_of)


if __name__ == "__main__":
    main()
