"""What ghost batch norm costs: forward and backward beside batch norm, in both memory formats.

    python -m benchmarks.ghost_batch_norm [--shape 256 64 16 16] [--ghost 32] [--repeats 25] [--threads 1]

``loop`` is ``F.batch_norm`` on each chunk and a ``cat``; ``channels`` copies the chunks side by side as channels of one
batch norm.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from benchmarks.timing import interleave, ratios, save
from kernels.ghost_batch_norm import ghost_batch_norm
from lightning_modules.host_memory import keep_freed_memory

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
State = tuple[Tensor, Tensor, Tensor, Tensor]


def plain(x: Tensor, state: State, ghost: int) -> Tensor:
    """Batch norm."""
    return batch_norm(x, *state, True, 0.1, 1e-5)


def ghosts(x: Tensor, state: State, ghost: int) -> Tensor:
    """The kernel."""
    return ghost_batch_norm(x, *state, ghost_size=ghost, training=True)


def loop(x: Tensor, state: State, ghost: int) -> Tensor:
    """Chunk after chunk."""
    return torch.cat([batch_norm(chunk, *state, True, 0.1, 1e-5) for chunk in x.split(ghost)])


def channels(x: Tensor, state: State, ghost: int) -> Tensor:
    """Chunks as channels; running statistics left out."""
    count = len(x) // ghost
    wide = x.view(count, ghost, *x.shape[1:]).transpose(0, 1).reshape(ghost, -1, *x.shape[2:])
    normed = batch_norm(wide, None, None, state[2].repeat(count), state[3].repeat(count), True, 0.1, 1e-5)
    return normed.view(ghost, count, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def measure(shape: list[int], layout: torch.memory_format, ghost: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of forward and backward."""
    x, grad = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(2))
    x.requires_grad_()
    affine = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    state = torch.zeros(shape[1]), torch.ones(shape[1]), *affine

    def run(function: Callable[[Tensor, State, int], Tensor]) -> Callable[[], None]:
        def once() -> None:
            x.grad = affine[0].grad = affine[1].grad = None
            function(x, state, ghost).backward(grad)

        return once

    functions = {"plain": plain, "plain again": plain, "ghost": ghosts, "loop": loop, "channels": channels}
    return interleave({name: run(function) for name, function in functions.items()}, repeats, warmup=4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=4, default=[256, 64, 16, 16])
    parser.add_argument("--ghost", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    rows: dict[str, object] = {"shape": options.shape, "ghost": options.ghost, "repeats": options.repeats}
    for name, layout in LAYOUTS.items():
        times = measure(options.shape, layout, options.ghost, options.repeats)
        rows[f"{name}_plain_ms"] = round(1e3 * statistics.median(times["plain"]), 3)
        rows[f"{name}_ratio_to_plain (median, quartiles)"] = ratios(times, "plain", digits=3)
    save(f"ghost_batch_norm_{'x'.join(map(str, options.shape))}_{options.threads}", rows)


if __name__ == "__main__":
    main()
