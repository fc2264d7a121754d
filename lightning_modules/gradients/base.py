"""The contract of a gradient: how named scalars become gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step
from lightning_modules.distributed import average_over_processes, processes
from lightning_modules.part import Attack, Part

Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch in one pass over the update.

    Attributes:
        terms: named scalars of its share of the global batch.
        outputs: of every view, with their graph.
        number: of the pass; the first, 0, is the one that is recorded.
        batch: the micro-batch, mixed and attacked.
    """

    terms: Terms
    outputs: dict[str, Output]
    number: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class Seat:
    """What a gradient works with.

    Attributes:
        passes: starts one pass over the update batch and yields each micro-batch. Called again it runs the forwards
            again, at the weights as they are then, with the same random draws and from the same norm statistics;
            what pass 0 made of these stays.
        backward: the trainer's (mixed precision, several processes): adds the gradient of a scalar to ``grad``,
            averaged over the processes.
        parameters: all that the optimizer trains by name, those of parts included.
        step: where training stands.
        attack: what made the images of the batches; None where nothing did.
        regularizers: names of the terms that are a regularizer's; the others are the loss's.
    """

    passes: Callable[[], Iterator[Pass]]
    backward: Callable[[Tensor], None]
    parameters: dict[str, nn.Parameter]
    step: Step
    attack: Attack | None = None
    regularizers: frozenset[str] = frozenset()

    def derive(self, scalar: Tensor, retain_graph: bool = True) -> list[Tensor | None]:
        """Gradients of one scalar of this process, one for each parameter; None where it is not involved.

        They are those of its share of the batch, scaled so that ``average`` makes them the gradient of the global one.
        The hooks by which processes share gradients are not called, nor is ``grad`` touched.

        Args:
            scalar: of this process.
            retain_graph: whether something else is derived by the same forward afterwards.
        """
        parameters = list(self.parameters.values())
        if not scalar.requires_grad:
            return [None] * len(parameters)
        scalar = scalar * processes()[1]
        found = torch.autograd.grad(scalar, parameters, retain_graph=retain_graph, allow_unused=True)
        # That of a plain sum is one number, shown everywhere; nothing could be written into it.
        return [g.contiguous() if g is not None and 0 in g.stride() else g for g in found]

    def average(self, gradients: Sequence[Tensor | None]) -> None:
        """Replace what ``derive`` gave by its mean over all processes; nothing with one.

        The same parameters are involved in every process, since all run the same parts.
        """
        if processes()[1] > 1:
            average_over_processes([gradient for gradient in gradients if gradient is not None])


class Gradient(Part):
    """``(seat) -> None``: leaves the gradient of the update in ``parameter.grad``.

    Class attributes:
        several_passes: whether it goes over the batch more than once.
        derives_by_image: whether the image of a pass's batch is a leaf by which its terms can be derived.
        derives_by_features: whether it needs the features of a view between backbone and head in the graph.
    """

    several_passes: ClassVar[bool] = False
    derives_by_image: ClassVar[bool] = False
    derives_by_features: bool = False

    def forward(self, seat: Seat) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define forward(seat)")


def sum_terms(terms: Terms) -> Tensor:
    """The sum of the named scalars."""
    first, *rest = terms.values()
    for value in rest:
        first = first + value
    return first
