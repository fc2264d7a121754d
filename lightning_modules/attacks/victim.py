"""A network as an attack sees it: images to logits and to gradients, and nothing else of it is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.batch import Output
from lightning_modules.norm_statistics import norm_statistics_frozen
from lightning_modules.precision import at_least_float32
from lightning_modules.surgery.weights import computed_once

#: ``(logits [B, C]) -> [B]``, what an attack raises.
Objective = Callable[[Tensor], Tensor]


class Victim:
    """Made by ``attacked``; valid inside of it.

    Attributes:
        forwards: images that went through the network so far.
        backwards: images whose gradient was taken so far.
    """

    def __init__(self, forward: Callable[[Tensor], Output], bf16: bool = False) -> None:
        self._forward, self._bf16 = forward, bf16
        self.forwards = self.backwards = 0

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """``[B, C]`` class scores in at least float32.

        Raises:
            ValueError: the head gives none.
        """
        return self._logits(image)

    def gradient(self, image: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Of the sum of ``objective``, so that each sample's is independent of the rest of the batch.

        Args:
            image: ``[B, C, H, W]``.
            objective: of the logits.

        Returns:
            The gradient like ``image``, the values ``[B]`` and the logits ``[B, C]``, detached.
        """
        with torch.enable_grad():
            image = image.detach().requires_grad_(True)
            logits = self._logits(image)
            value = objective(logits)
            (found,) = torch.autograd.grad(value.sum(), image)
        self.backwards += len(image)
        return found, value.detach(), logits.detach()

    def _logits(self, image: Tensor) -> Tensor:
        self.forwards += len(image)
        with torch.autocast(image.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            scores = self._forward(image).class_scores
        return at_least_float32(scores)


@contextmanager
def attacked(
    network: nn.Module,
    forward: Callable[..., Output] | None = None,
    *,
    norms: Literal["eval", "train"] = "eval",
    bf16: bool = False,
) -> Iterator[Victim]:
    """The network as a ``Victim``: its parameters need no gradient inside, and afterwards everything is as before.

    That is: the mode of each module, which parameters need a gradient, their gradients, norm statistics and the global
    random state.

    Args:
        network: to be attacked.
        forward: calls it, as a step does (compiled); None for the network itself.
        norms: ``eval`` attacks the network as it predicts; ``train`` with statistics of the batch and dropout, which
            makes the attack of a sample depend on its batch.
        bf16: forwards under autocast to bfloat16; gradients, signs and images stay as they are.
    """
    modes = [(module, module.training) for module in network.modules()]
    trained = [p for p in network.parameters() if p.requires_grad]
    devices = {p.device for p in trained if p.is_cuda}
    with torch.random.fork_rng(list(devices)), computed_once(network):
        try:
            network.train(norms == "train")
            for p in trained:
                p.requires_grad_(False)
            with norm_statistics_frozen(network) if norms == "train" else nullcontext():
                yield Victim(forward or network, bf16)
        finally:
            for module, mode in modes:
                module.training = mode
            for p in trained:
                p.requires_grad_(True)
