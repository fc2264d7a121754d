"""The contract of surgery: a change of the network itself, once, before the optimizer exists."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

#: The order of surgeries: replace modules, change one layer's operation, parametrize weights.
PHASES = ("replace", "operation", "parametrize")


class Surgery:
    """``apply(network)`` changes modules in place and reports; keys of the state_dict stay whenever possible.

    Class attributes:
        phase: when it is applied among several; the order of the configuration does not matter.
    """

    phase: ClassVar[Literal["replace", "operation", "parametrize"]]

    def apply(self, network: nn.Module) -> list[str]:
        """Change the network.

        Returns:
            One line for each module that was changed, or skipped and why.

        Raises:
            ValueError: no module matched, or the surgery was applied before.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(network)")
