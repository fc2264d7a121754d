"""Rows of all processes, each item once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.distributed import gather_objects, gather_sizes


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
