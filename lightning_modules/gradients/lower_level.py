"""The function that an attack climbed, as one that can be derived twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.attacks.victim import Victim
from lightning_modules.norm_statistics import norm_modules
from lightning_modules.precision import at_least_float32
from lightning_modules.surgery.weights import computed_anew


class Differentiable(Victim):
    """A victim whose logits keep their graph, also by the weights."""

    def logits(self, image: Tensor) -> Tensor:
        return self._logits(image)


@contextmanager
def as_attacked(network: nn.Module, statistics: dict[str, Tensor]) -> Iterator[Victim]:
    """The function that the attack climbed, to be derived twice: norms in eval mode, with these statistics.

    The network itself is called, because a compiled one has no second derivative, and neither has fused attention; in
    the precision of its weights, and in at least float32, because a second derivative of rounded activations is noise.
    """
    modes = [(module, module.training) for module in network.modules()]
    first = next(network.parameters())
    half = at_least_float32(first).dtype != first.dtype
    try:
        network.eval()
        with (
            sdpa_kernel([SDPBackend.MATH]),
            torch.autocast(first.device.type, enabled=False),
            computed_anew(network) if half else nullcontext(),  # those that the step has computed are of half precision
        ):
            state = {**dict(network.named_parameters()), **statistics}
            state = {name: at_least_float32(value) for name, value in state.items()}
            yield Differentiable(lambda image: functional_call(network, state, (at_least_float32(image),)))
    finally:
        for module, mode in modes:
            module.training = mode


def statistics_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of norms by name."""
    norms = {id(norm) for norm in norm_modules(network)}
    return {
        f"{name}.{own}".removeprefix("."): buffer.clone()
        for name, module in network.named_modules()
        if id(module) in norms
        for own, buffer in module.named_buffers(recurse=False)
    }
