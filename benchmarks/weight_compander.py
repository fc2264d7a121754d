"""What companded weights cost: the functions of all layers of a network, forward and backward, without the network.

    python -m benchmarks.weight_compander [--backbone resnet18] [--repeats 15] [--threads 1]

The base is ``a * torch.arctan(v / b)`` with learned ``a = exp(log a)`` and ``b = exp(log b)`` through autograd, one
call a layer. Beside it: the kernel with learned and with fixed scales, the formula with fixed scales through autograd,
and the functions of the surgery, filled as at the start of a training step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.weight_compander import compand
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.surgery.anatomy import Anatomy
from lightning_modules.surgery.weight_compander import WeightCompander
from lightning_modules.surgery.weights import computed_once, parametrized

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The formula, through autograd."""
    return a * torch.arctan(v / b)


def kernel(v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same with closed gradients."""
    return compand(v, a, b, "arctan")


def transform(weights: list[Any], grads: list[Tensor], function: Function, learned: bool) -> Callable[[], None]:
    """Forward and backward of one function a layer."""
    logs = [torch.full((2,), -2.0, requires_grad=learned) for _ in weights]
    scales = [log.detach().exp() for log in logs]

    def run() -> None:
        for weight in weights:
            weight.grad = None
        pairs = [log.exp().unbind() if learned else scale.unbind() for log, scale in zip(logs, scales, strict=True)]
        torch.autograd.backward([function(v, *pair) for v, pair in zip(weights, pairs, strict=True)], grads)

    return run


def surgery(backbone: str, grads: list[Tensor], learned: bool) -> Callable[[], None]:
    """The surgery's functions, filled as at the start of a training step."""
    network = timm.create_model(backbone, num_classes=0)
    WeightCompander(slope=2.0, learnable=learned).apply(network, Anatomy.of(network, 64))
    modules: list[Any] = list(parametrized(network).values())

    def run() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        with computed_once(network):
            torch.autograd.backward([module.weight for module in modules], grads)

    return run


def main() -> None:
    options = arguments(backbone="resnet18", repeats=15, threads=1)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    torch.manual_seed(0)
    network = timm.create_model(options.backbone, num_classes=0)
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    grads = [torch.randn_like(weight) for weight in weights]
    times = interleave(
        {
            "plain learned": transform(weights, grads, plain, True),
            "plain learned again": transform(weights, grads, plain, True),
            "plain fixed": transform(weights, grads, plain, False),
            "kernel learned": transform(weights, grads, kernel, True),
            "kernel fixed": transform(weights, grads, kernel, False),
            "surgery learned": surgery(options.backbone, grads, True),
            "surgery fixed": surgery(options.backbone, grads, False),
        },
        options.repeats,
    )
    save(
        f"weight_compander_{options.backbone}_{options.threads}",
        {
            "backbone": options.backbone,
            "repeats": options.repeats,
            "plain_learned_ms": round(1e3 * statistics.median(times["plain learned"]), 3),
            "ratio_to_plain_learned (median, quartiles)": ratios(times, "plain learned", digits=3),
        },
    )


if __name__ == "__main__":
    main()
