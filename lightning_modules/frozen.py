"""A network that is only looked at: a teacher, or the average of the network in training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network in eval mode and without gradient, whose weights no checkpoint, optimizer or wrapper sees.

    It follows its owner to devices and dtypes. A checkpoint keeps the checksum of its weights, and a run that goes on
    with others is refused.

    Args:
        network: becomes frozen itself; it is not copied.
        checked: whether the weights stay as they are, so that their checksum belongs into a checkpoint; not for an
            average, which moves and which its owner saves.

    Raises:
        ValueError: when a state is loaded that was saved beside other weights.
    """

    #: Whether a forward wants ``batch`` as well, to know which samples it is shown.
    keyed_by_sample: ClassVar[bool] = False

    def __init__(self, network: nn.Module, checked: bool = True) -> None:
        super().__init__()
        self._held, self.checked = [network.requires_grad_(False).eval()], checked
        self._digest: str | None = None

    @property
    def network(self) -> nn.Module:
        """The network itself; not registered, so that nothing walks into it."""
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.checksum()  # of the weights as they came, whatever they are cast to
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def checksum(self) -> str | None:
        """sha256 over names and values of the weights; None for one that is not checked."""
        if self.checked and self._digest is None:
            self._digest = state_digest(self.network.state_dict())
        return self._digest

    def get_extra_state(self) -> str | None:
        return self.checksum()

    def set_extra_state(self, state: str | None) -> None:
        if state != self.checksum():
            raise ValueError(
                f"the frozen network has weights with the checksum {self.checksum()}, and those of the run that goes "
                f"on had {state}; give the same file"
            )

    @torch.no_grad()
    def forward(self, *args: Any, **keys: Any) -> Any:
        return self.network(*args, **keys)


def state_digest(state: dict[str, Any]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors of a state_dict, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if isinstance(value := state[name], Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
