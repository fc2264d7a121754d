"""The contract of a gradient: how named scalars become gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from kernels.batch import Step
from lightning_modules.part import Part

Terms = dict[str, Tensor]


class Gradient(Part):
    """``(passes, backward, network, step)``: leaves the gradient of the update in ``parameter.grad``.

    ``passes()`` starts one pass over the update batch and yields, for each micro-batch, the named scalars of its share
    of the global batch. Calling it again runs the forwards again (SAM at its perturbed weights). ``backward`` is the
    trainer's (mixed precision, several processes) and accumulates.
    """

    def forward(
        self, passes: Callable[[], Iterator[Terms]], backward: Callable[[Tensor], None], network: nn.Module, step: Step
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define forward(passes, backward, network, step)")
