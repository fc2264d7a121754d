"""Weights as functions of parameters: computed once for each pass over an update, however often they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Weights of this pass by the id of their module. torch's own cache of parametrizations cannot hold them: it knows a
#: deep copy (a teacher, an average, a peer) by the id of the original, so that the copy would read the original's.
_COMPUTED: dict[int, Tensor] = {}


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
    are computed again. Costs nothing in networks without such weights, and in those that an outer one has computed.
    """
    modules = [module for network in networks for module in _modules(network) if id(module) not in _COMPUTED]
    if not modules:
        yield _nothing
        return
    try:
        _fill(modules)
        yield lambda: _fill(modules)
    finally:
        for module in modules:
            _COMPUTED.pop(id(module), None)


@contextmanager
def computed_anew(network: nn.Module) -> Iterator[None]:
    """Inside, weights are functions of the parameters that are there at each read, such as those of a functional call;
    afterwards those computed before are read again."""
    before = {id(module): _COMPUTED.pop(id(module)) for module in _modules(network) if id(module) in _COMPUTED}
    try:
        yield
    finally:
        _COMPUTED.update(before)


def _reads_its_own(kind: Any) -> None:
    """Let modules of a class that torch made for one layer, and that its deep copies share, read ``_COMPUTED``."""
    theirs = kind.__dict__["weight"]
    if getattr(theirs.fget, "reads_its_own", False):
        return

    def read(self: Any) -> Tensor:
        computed = _COMPUTED.get(id(self))
        return self.parametrizations["weight"]() if computed is None else computed

    read.reads_its_own = True  # type: ignore[attr-defined]
    kind.weight = property(read, theirs.fset)


def _nothing() -> None:
    pass


def _modules(network: nn.Module) -> list[nn.Module]:
    """Found once for each network; surgery comes before training."""
    found = network.__dict__.get("_weight_functions")
    if found is None or (found and not hasattr(found[0], "parametrizations")):  # folded since
        found = list(parametrized(network).values())
        network.__dict__["_weight_functions"] = found
        for module in found:
            _reads_its_own(type(module))
    return found


@torch.enable_grad()  # the first reader may be an attack or a teacher, which needs no graph
def _fill(modules: list[nn.Module]) -> None:
    """Compute every weight, fused where a class of functions can."""
    groups: dict[type[WeightFunction], list[tuple[nn.Module, WeightFunction, Tensor]]] = {}
    for module in modules:
        functions: Any = module.parametrizations["weight"]  # type: ignore[index]
        if len(functions) == 1 and isinstance(functions[0], WeightFunction):
            groups.setdefault(type(functions[0]), []).append((module, functions[0], functions.original))
        else:
            _COMPUTED[id(module)] = functions()  # several functions on one weight
    for kind, members in groups.items():
        weights = kind.compute_all([f for _, f, _ in members], [original for _, _, original in members])
        for (module, _, _), weight in zip(members, weights, strict=True):
            _COMPUTED[id(module)] = weight
