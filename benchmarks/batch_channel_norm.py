"""What batch-channel normalization costs, against BatchNorm and group_norm run one after the other.

    python -m benchmarks.batch_channel_norm [--batch 32] [--repeats 60]

Forward and backward of the layer alone on feature maps of a ResNet, in both modes and in both memory formats. The base
is ``nn.BatchNorm2d`` followed by ``nn.GroupNorm``; it is timed twice (A/A).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import arguments, interleave, ratios, save
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.surgery.batch_channel_norm_2d import BatchChannelNorm2d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = ((64, 32), (256, 16), (512, 8))  # channels, side


def layer(module: nn.Module, x_BCHW: Tensor) -> Callable[[], None]:
    """Forward and backward."""
    module = module.to(DEVICE)
    gradient = torch.randn_like(x_BCHW)
    inputs = [x_BCHW, *module.parameters()]

    def run() -> None:
        torch.autograd.grad(module(x_BCHW), inputs, gradient)

    return run


def measured(
    batch: int, channels: int, side: int, memory_format: torch.memory_format, repeats: int
) -> dict[str, object]:
    """Milliseconds of the base, and ratios to it."""
    x_BCHW = torch.randn(batch, channels, side, side, device=DEVICE).contiguous(memory_format=memory_format)
    x_BCHW.requires_grad_()

    def base() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.GroupNorm(32, channels))

    modules = {
        "base": base(),
        "base again": base(),
        "batch mode": BatchChannelNorm2d(channels, 32),
        "estimate mode": BatchChannelNorm2d(channels, 32, estimate=True),
    }
    times = interleave({name: layer(module, x_BCHW) for name, module in modules.items()}, repeats, warmup=5)
    return {
        "base_ms": round(1e3 * statistics.median(times["base"]), 3),
        **ratios(times, "base"),
    }


def main() -> None:
    options = arguments(batch=32, repeats=60)
    keep_freed_memory()  # as the trainer does
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    save(
        "batch_channel_norm",
        {
            "batch": options.batch,
            "repeats": options.repeats,
            "ratio_to_base (median, quartiles)": {
                f"{channels} channels, {side} px, {name}": measured(
                    options.batch, channels, side, form, options.repeats
                )
                for channels, side in SHAPES
                for name, form in formats.items()
            },
        },
    )


if __name__ == "__main__":
    main()
