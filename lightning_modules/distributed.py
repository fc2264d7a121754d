"""Rows of all processes, for state that must be the same everywhere."""

from __future__ import annotations

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
