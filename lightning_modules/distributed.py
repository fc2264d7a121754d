"""What all processes have: rows, sums, plain data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def gather(rows: Tensor) -> Tensor:
    """``[B, ...]`` of this process -> ``[W * B, ...]`` of all W, in the order of ranks; itself with one process.

    Every process must have equally many rows. Carries no gradient.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    rows = rows.detach().contiguous()
    shape = (distributed.get_world_size() * rows.shape[0], *rows.shape[1:])
    gathered = torch.empty(shape, dtype=rows.dtype, device=rows.device)
    distributed.all_gather_into_tensor(gathered, rows)
    return gathered


def total_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; itself with one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gather_objects(value: Any) -> list[Any]:
    """The plain data of all processes in the order of ranks; one entry with one process. For rare events only."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
