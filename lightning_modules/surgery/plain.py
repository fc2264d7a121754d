"""Weights of a network with surgery in the keys of the plain one, both ways."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from lightning_modules.surgery.base import Surgery, fold
from lightning_modules.surgery.weights import parametrized


def plain_state_dict(backbone: nn.Module, surgeries: dict[str, Surgery]) -> dict[str, Tensor]:
    """The weights that an unmodified backbone needs to compute the same in eval mode; the backbone is left as it is.

    Modules that cannot be folded (batch-channel normalization) keep their own keys.
    """
    copied = deepcopy(backbone)
    fold(copied, surgeries)
    return copied.state_dict()


@torch.no_grad()
def load_plain_state_dict(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights of the unmodified backbone: a weight that is a function takes what the function turns into it.

    A compander finds it exactly. Weight standardization stores the weight itself: what was standardized before differs
    by eps over the variance it had then.

    Raises:
        ValueError: weights that the backbone has no place for, or places that get no weight.
    """
    functions = parametrized(backbone)
    own = {f"{name}.weight" for name in functions}
    for name, module in functions.items():
        if f"{name}.weight" in state:
            module.weight = state[f"{name}.weight"].to(module.weight)  # type: ignore[arg-type, assignment]
    missing, unexpected = backbone.load_state_dict({k: v for k, v in state.items() if k not in own}, strict=False)
    missing = [key for key in missing if ".parametrizations." not in key]
    if lost := [key for key in own if key not in state]:
        missing += lost
    if missing or unexpected:
        raise ValueError(
            f"these are not the weights of the plain backbone: missing {missing[:4]}, not known {unexpected[:4]}"
        )
