"""Whether weights from a file fit a module: names, shapes, kinds of numbers, and values that can be computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def fit_problems(target: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[str]:
    """What of a state dict does not fit ``target``, in words; empty where everything does."""
    missing = [f"{key} is missing" for key in target if key not in state]
    unknown = [f"{key} is none of its weights" for key in state if key not in target]
    pairs = [(key, state[key], value) for key, value in target.items() if key in state and isinstance(value, Tensor)]
    other = [f"{key}: {problem}" for key, given, value in pairs if (problem := _other_form(given, value))]
    return other + missing + unknown


def value_problems(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Values that no network can compute with, in weights that fit: NaN, infinity, a negative variance.

    A number that is not finite in ``target`` itself, such as one of a mask, may be so in the file too.
    """
    return [f"{key} {problem}" for key, given in state.items() if (problem := _wrong_values(key, given, target[key]))]


def kind_problem(given: Tensor, target: Tensor) -> str | None:
    """Why numbers of one kind cannot stand for another: floating-point numbers of any width can for each other, whole
    numbers for whole numbers; what would be rounded, cut or made up in silence is refused."""
    for kinds in (_FLOATING, _INTEGER):
        if target.dtype in kinds and given.dtype in kinds:
            return None
    if given.dtype == target.dtype:
        return None
    allowed = next((kinds for kinds in (_FLOATING, _INTEGER) if target.dtype in kinds), (target.dtype,))
    names = ", ".join(str(kind).removeprefix("torch.") for kind in allowed)
    return f"numbers of type {str(given.dtype).removeprefix('torch.')}; allowed are {names}"


def _other_form(given: Any, target: Tensor) -> str | None:
    if not isinstance(given, Tensor):
        return f"a {type(given).__name__}, not a tensor"
    if given.shape != target.shape:
        return f"{list(given.shape)} in the file, {list(target.shape)} in the network"
    return kind_problem(given, target)


def _wrong_values(key: str, given: Tensor, target: Tensor) -> str | None:
    if not target.is_floating_point():
        same = torch.equal(given.to(target.dtype).to(given.dtype), given)
        return None if same else f"holds numbers that do not fit into {target.dtype}"
    converted = given.to(target.dtype)
    odd = ~torch.isfinite(converted)
    if odd.any() and (odd & torch.isfinite(target)).any():
        return f"holds {int(odd.sum()):,} value(s) that are not finite numbers"
    if key.endswith("running_var") and (converted < 0).any():
        return "is a variance and holds negative values"
    return None
