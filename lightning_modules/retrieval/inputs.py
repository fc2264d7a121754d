"""What a retrieval evaluation accepts: checked, each item once, in floating types that keep what was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.distributed import gather_objects, gather_sizes
from lightning_modules.retrieval.scores import CHUNK, Array, Metric, pieces

EXTREME = 1e150  # squares of larger numbers, and of smaller ones than its inverse, leave float64


@dataclass(frozen=True, slots=True)
class Rows:
    """Checked input.

    Attributes:
        embeddings: ``[N, D]`` float32 or float64.
        labels: ``[N]`` int64.
        queries: ``[Q]`` rows that ask, ascending.
        gallery: ``[G]`` rows that answer, ascending.
        groups: ``[N]`` int64, or None.
    """

    embeddings: Tensor
    labels: Array
    queries: Array
    gallery: Array
    groups: Array | None


def checked(
    embeddings: Any, labels: Any, metric: Metric, is_query: Any = None, is_gallery: Any = None, groups: Any = None
) -> Rows:
    """Check everything that would make numbers wrong or unclear.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, rows of zeros under cosine, nobody to ask or to
            answer.
        TypeError: dtypes of another kind.
    """
    vectors = torch.as_tensor(embeddings).detach()
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"embeddings have shape {list(vectors.shape)}; they must be [N, D], one row for each item")
    if not vectors.is_floating_point():
        raise TypeError(f"embeddings have dtype {vectors.dtype}; they must be floating, e.g. embeddings.float()")
    if vectors.dtype not in (torch.float32, torch.float64):
        vectors = vectors.float()
    total = len(vectors)
    classes = integers("labels", labels, total)
    query, gallery = mask("is_query", is_query, total), mask("is_gallery", is_gallery, total)
    for name, rows in (("is_query", query), ("is_gallery", gallery)):
        if len(rows) == 0:
            raise ValueError(f"{name} selects no row of {total}; retrieval needs queries and a gallery")
    check_values(vectors, metric)
    return Rows(vectors, classes, query, gallery, None if groups is None else integers("groups", groups, total))


def integers(name: str, values: Any, total: int) -> Array:
    """``[N]`` int64 on the host."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} have dtype {array.dtype}; they must be integers (floats collide above 2^24)")
    if array.shape != (total,):
        raise ValueError(
            f"{name} have shape {list(array.shape)}; there are {total} embeddings, so it must be [{total}]"
        )
    if array.dtype == np.uint64 and total and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} reach {array.max()}, beyond 2^63 - 1; renumber them")
    return array.astype(np.int64)


def mask(name: str, values: Any, total: int) -> Array:
    """Rows that a mask selects; all of them without one."""
    if values is None:
        return np.arange(total)
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype != bool or array.shape != (total,):
        raise TypeError(
            f"{name} has dtype {array.dtype} and shape {list(array.shape)}; it must be a bool mask of shape [{total}]"
        )
    return np.flatnonzero(array)


def check_values(vectors_ND: Tensor, metric: Metric) -> None:
    """Refuse rows that cannot be ranked."""
    largest_N = vectors_ND.new_empty(len(vectors_ND))
    for part in pieces(len(vectors_ND), CHUNK // vectors_ND.shape[1]):
        largest_N[part] = vectors_ND[part].abs().amax(1)  # NaN stays NaN
    smallest = max(torch.finfo(vectors_ND.dtype).tiny, 1 / EXTREME)
    bad, empty = (~(largest_N < EXTREME)).nonzero()[:, 0], (largest_N < smallest).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors_ND)} embeddings hold NaN or infinite values, or some beyond {EXTREME:g}, "
            f"the first is row {int(bad[0])}; a ranking of them means nothing"
        )
    if metric == "cosine" and len(empty):
        raise ValueError(
            f"{len(empty)} of {len(vectors_ND)} embeddings are zero or below {smallest:.2g}, the first is row "
            f"{int(empty[0])}; they have no cosine: use metric=l2, or see why the network gives zeros"
        )


def gathered_once(index_ids: Any, *columns: Any) -> list[Any]:
    """Columns ``[B, ...]`` (arrays or None) of this process -> those of all, one row for each id, in the order of ids.

    Raises:
        TypeError: ids that are not integers.
    """
    index = torch.as_tensor(index_ids)
    if index.is_floating_point() or index.dtype == torch.bool or index.ndim != 1:
        raise TypeError(f"index_ids have dtype {index.dtype} and shape {list(index.shape)}; they must be [N] integers")
    given = [None if column is None else torch.as_tensor(column) for column in columns]
    lengths = {len(column) for column in given if column is not None}
    if lengths != {len(index)}:
        raise ValueError(
            f"{len(index)} index_ids for columns of {sorted(lengths)} rows; there must be one for each row"
        )
    sizes = gather_objects(len(index))
    keep = first_of_each(gather_sizes(index, sizes))
    return [None if column is None else gather_sizes(column, sizes)[keep.to(column.device)] for column in given]


def first_of_each(index: Tensor) -> Tensor:
    """Places of the rows to keep: one for each different index, in the order of indices (samplers repeat items)."""
    order = torch.argsort(index, stable=True)
    new = torch.ones(len(index), dtype=torch.bool, device=index.device)
    new[1:] = index[order][1:] != index[order][:-1]
    return order[new]


def on_gpu(vectors: Tensor) -> Tensor:
    """The rows on a GPU.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError("index=gpu, and there is no GPU that this PyTorch can use; set index=flat")
    return vectors.cuda()


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in full precision, whatever the program chose for its training, and nothing recorded."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)
