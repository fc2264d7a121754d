"""Weights as functions of parameters: computed once for each pass over an update, however often they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class WeightFunction(nn.Module):
    """A parametrization ``weight = f(original)``, registered by ``parametrize.register_parametrization``.

    A subclass defines ``forward(original)`` and, where the function can be inverted, ``right_inverse(weight)``. One
    that can compute several weights in fewer kernels overrides ``compute_all``.
    """

    @staticmethod
    def compute_all(functions: list[WeightFunction], originals: list[Tensor]) -> list[Tensor]:
        """The weights of several layers with this class of function; one call each unless a subclass fuses them."""
        return [function(original) for function, original in zip(functions, originals, strict=True)]


def parametrized(network: nn.Module) -> dict[str, nn.Module]:
    """Modules whose weight is a function, by name."""
    return {name: module for name, module in network.named_modules() if parametrize.is_parametrized(module, "weight")}


@torch.no_grad()
def bake(module: nn.Module) -> None:
    """Make the present weight a plain parameter again, and the module one of its own class.

    torch's ``remove_parametrizations`` changes the class that a deep copy shares with its original, which is then left
    without a weight.
    """
    weight = nn.Parameter(module.weight.detach().clone(), module.parametrizations["weight"].original.requires_grad)  # type: ignore[index, operator, union-attr]
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({"weight": weight, **rest})


@contextmanager
def computed_once(*networks: nn.Module) -> Iterator[Callable[[], None]]:
    """Every weight function inside is computed once, with its graph and all together, before the first read.

    Yields a function to be called when the graph was used up by a backward, or parameters have moved: then the weights
    are computed again. Costs nothing in networks without such weights.
    """
    modules = [module for network in networks for module in _modules(network)]
    if not modules:
        yield _nothing
        return
    with parametrize.cached():
        _fill(modules)
        yield lambda: _fill(modules)


def _nothing() -> None:
    pass


def _modules(network: nn.Module) -> list[nn.Module]:
    """Found once for each network; surgery comes before training."""
    found = network.__dict__.get("_weight_functions")
    if found is None or (found and not hasattr(found[0], "parametrizations")):  # folded since
        found = list(parametrized(network).values())
        network.__dict__["_weight_functions"] = found
    return found


@torch.enable_grad()  # the first reader may be an attack or a teacher, which needs no graph
def _fill(modules: list[nn.Module]) -> None:
    """Put every weight into torch's cache of parametrizations."""
    groups: dict[type[WeightFunction], list[tuple[nn.Module, WeightFunction, Tensor]]] = {}
    for module in modules:
        functions: Any = module.parametrizations["weight"]  # type: ignore[index]
        if len(functions) == 1 and isinstance(functions[0], WeightFunction):
            groups.setdefault(type(functions[0]), []).append((module, functions[0], functions.original))
        else:
            parametrize._cache.pop((id(module), "weight"), None)
            module.weight  # noqa: B018  # several functions on one weight: torch composes and caches them
    for kind, members in groups.items():
        weights = kind.compute_all([f for _, f, _ in members], [original for _, _, original in members])
        for (module, _, _), weight in zip(members, weights, strict=True):
            parametrize._cache[(id(module), "weight")] = weight
