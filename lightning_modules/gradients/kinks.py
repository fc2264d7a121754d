"""Operations without a second derivative in what a network computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Nodes of torch's graph whose function is linear in pieces, or has a jump in its first derivative.
_KINKED = {
    "Relu": "ReLU",
    "LeakyRelu": "LeakyReLU",
    "PreluKernel": "PReLU",
    "RreluWithNoise": "RReLU",
    "Threshold": "Threshold",
    "Hardtanh": "ReLU6 or Hardtanh",
    "Hardswish": "Hardswish",
    "Hardsigmoid": "Hardsigmoid",
    "Hardshrink": "Hardshrink",
    "Softshrink": "Softshrink",
    "MaxPool2DWithIndices": "max-pooling",
    "MaxPool2D": "max-pooling",
    "AdaptiveMaxPool2D": "max-pooling",
    "Amax": "a maximum",
    "Maximum": "a maximum",
    "Abs": "an absolute value",
}


def kinks(output: Tensor, image: Tensor) -> list[str]:
    """Names of the operations with kinks on the way from a leaf to what was computed from it, sorted.

    The graph is looked at, not the modules, because a network may call functions.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> kinks(x.tanh().relu(), x), kinks(x.tanh(), x)
        (['ReLU'], [])
    """
    users, waiting = dict[Any, list[Any]](), [output.grad_fn] if output.grad_fn else []
    start: Any = None
    while waiting:
        node: Any = waiting.pop()
        if getattr(node, "variable", None) is image:
            start = node
        for used in [used for used, _ in node.next_functions if used is not None]:
            if used not in users:
                users[used] = []
                waiting.append(used)
            users[used].append(node)
    found, seen, waiting = set[str](), set[Any](), [start] if start else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            found |= _kink(node)
            waiting += users.get(node, [])
    return sorted(found)


def _kink(node: Any) -> set[str]:
    name = node.name().partition("Backward")[0]
    if name == "Elu" and node._saved_alpha * node._saved_input_scale != 1:  # SELU; ELU and CELU have a slope of 1
        return {"ELU with another slope below 0 than above"}
    return {_KINKED[name]} if name in _KINKED else set()


def kinks_of(network: nn.Module, channels: int, image_size: int) -> list[str]:
    """Those of a network in eval mode, by one forward of a grey image; modes stay as they are."""
    modes = [(module, module.training) for module in network.modules()]
    first = next(network.parameters())
    image = torch.full((1, channels, image_size, image_size), 0.5, dtype=first.dtype, device=first.device)
    try:
        with torch.enable_grad():
            return kinks(network.eval()(image.requires_grad_(True)).class_scores, image)
    finally:
        for module, mode in modes:
            module.training = mode
