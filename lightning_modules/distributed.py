"""What all processes have: rows, sums, plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


def processes() -> tuple[int, int]:
    """Rank of this process and number of all; (0, 1) outside torch.distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def share_of(total: int, rank: int | None = None) -> tuple[int, int]:
    """First row and end of a process's share (this one's, without a rank) of ``total``, as a batch is shared."""
    own, world = processes()
    rank = own if rank is None else rank
    return rank * total // world, (rank + 1) * total // world


def gather(rows: Tensor, total: int) -> Tensor:
    """``[B, ...]`` of this process -> ``[total, ...]`` of all, in the order of ranks; itself with one process.

    Carries no gradient.

    Args:
        rows: process r has the rows ``share_of(total, r)``.
        total: rows of all processes.
    """
    shares = [share_of(total, rank) for rank in range(processes()[1])]
    return gather_sizes(rows, [stop - start for start, stop in shares])


def gather_sizes(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """As ``gather``, from processes with so many rows each, by rank."""
    if len(sizes) == 1:
        return rows
    most, rows = max(sizes), rows.detach().contiguous()
    if len(rows) < most:  # the collective wants equally many of each
        rows = torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))])
    gathered = torch.empty((len(sizes) * most, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    distributed.all_gather_into_tensor(gathered, rows)
    if min(sizes) == most:
        return gathered
    return torch.cat([part[:size] for part, size in zip(gathered.split(most), sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """Rows of all processes; each gets back the sum of what all of them derive by its own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        ctx.own = share_of(total)
        return gather(rows, total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A copy is summed: autograd may have given the same tensor to others.
        return total_over_processes(grad.contiguous())[slice(*ctx.own)], None


def gather_with_gradient(rows: Tensor, total: int) -> Tensor:
    """As ``gather``, and differentiable: the gradient of the sum of all processes' losses by their own rows."""
    if processes()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, total)  # type: ignore[no-untyped-call]
    return gathered


def total_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; itself with one."""
    if processes()[1] == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def largest_over_processes(values: Tensor) -> Tensor:
    """The largest of each entry over all processes; itself with one."""
    if processes()[1] == 1:
        return values
    largest = values.clone()
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace floating tensors by their means over all processes, in one collective for each dtype."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        means = (flat / distributed.get_world_size()).split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [mean.view_as(tensor) for mean, tensor in zip(means, group, strict=True)])


def check_every_parameter_used(module: nn.Module, update: int) -> None:
    """Refuse a trained parameter without gradient after a backward pass.

    The gradients are averaged over the processes as they appear, in buckets. One that never comes leaves its bucket
    unsent, and the other parameters in it would be updated differently in every process.

    Raises:
        ValueError: naming the parameters and the ways out.
    """
    unused = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        shown = ", ".join(unused[:10]) + (f" and {len(unused) - 10} more" if len(unused) > 10 else "")
        raise ValueError(
            f"parameters without a gradient in update {update}: {shown}. With several processes every trained "
            "parameter must take part in every update: freeze them (requires_grad_(False)), take them out of the "
            "network, or set trainer.strategy=ddp_find_unused_parameters_true, which looks for them at every step"
        )


def gather_objects(value: Any) -> list[Any]:
    """The plain data of all processes in the order of ranks; one entry with one process. For rare events only."""
    if processes()[1] == 1:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
