"""The gradient of the sum of all terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from kernels.batch import Step
from lightning_modules.gradients.base import Gradient, Terms


class Sum(Gradient):
    """One backward of the sum of the terms, for each micro-batch."""

    def forward(
        self, passes: Callable[[], Iterator[Terms]], backward: Callable[[Tensor], None], network: nn.Module, step: Step
    ) -> None:
        for terms in passes():
            backward(sum_terms(terms))


def sum_terms(terms: Terms) -> Tensor:
    """The sum of the named scalars."""
    first, *rest = terms.values()
    for value in rest:
        first = first + value
    return first
