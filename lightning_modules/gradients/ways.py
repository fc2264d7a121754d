"""By which ways a term reaches the parameters of a backbone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor


def leads_around(terms: Mapping[str, Tensor], features: Sequence[Tensor], backbone: Collection[int]) -> list[str]:
    """Names of the terms whose graph reaches the backbone other than through the features.

    Args:
        terms: scalars by name.
        features: where the walk through the graph ends.
        backbone: ids of its parameters.
    """
    cut = {(features_BD.grad_fn, features_BD.output_nr) for features_BD in features}
    return [name for name, value in terms.items() if _reaches(value, cut, backbone)]


def _reaches(value: Tensor, cut: set[tuple[Any, int]], backbone: Collection[int]) -> bool:
    waiting, seen = [(value.grad_fn, value.output_nr)], set()
    while waiting:
        node, output = waiting.pop()
        if node is None or node in seen or (node, output) in cut:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in backbone:
            return True
        waiting += node.next_functions
    return False
