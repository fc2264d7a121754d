"""Weight compander: weights that are bounded by a function, and driven away from zero.

Cakaj, Mehnert, Yang. "Weight Compander: A Simple Weight Reparameterization for Regularization". 2023,
arXiv 2306.16993. What could be checked of it, and what is our choice, is in docs/weight_compander.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.changes import Changes
from lightning_modules.surgery.companded_weight import CLAMP, CompandedWeight
from lightning_modules.surgery.weights import bake


class WeightCompander(Surgery):
    """Every weight of a convolution or linear layer becomes ``a * arctan(v / b)``; ``v`` is what is trained.

    Modules keep their class, ``v`` is ``NAME.parametrizations.weight.original``, and the scales of a layer are beside
    it. Weight decay acts on ``v``. The head is outside the backbone and stays plain.

    Args:
        kind: the function.
        slope: s = a / b, the slope at zero. With SGD, weights near zero move s^2 times as fast as without.
        bound: the largest weight M of a layer, in units of what ``bound_of`` says.
        bound_of: standard deviation of the layer's weights, or their largest magnitude (then ``bound`` is above 1,
            1.25 for instance, which suits pretrained weights).
        learnable: train the scales of each layer too, as log a and log b, with 0.1 of the learning rate and no weight
            decay.
        penalty: mu of ``mu (log a - log a0)^2 + mu (log b - log b0)^2``, applied by the optimizer as a weight decay of
            2 mu on these two (the same for SGD; decoupled for AdamW); needs ``learnable``.
        init: ``inverse`` keeps the weights as they are; ``direct`` takes them as ``v``, so that the weights change.
        include: patterns of names that are considered; None for all.
        exclude: patterns of names that are left as they are.

    Raises:
        ValueError: a value outside its range, or an option that would do nothing.
    """

    phase = "parametrize"

    def __init__(
        self,
        *,
        kind: Literal["arctan", "tanh"] = "arctan",
        slope: Annotated[float, "x > 0"] = 1.0,
        bound: Annotated[float, "x > 0"] = 4.0,
        bound_of: Literal["std", "max"] = "std",
        learnable: bool = False,
        penalty: Annotated[float, "x >= 0"] = 0.0,
        init: Literal["inverse", "direct"] = "inverse",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude)
        for key, value, allowed in (
            ("kind", kind, ("arctan", "tanh")),
            ("bound_of", bound_of, ("std", "max")),
            ("init", init, ("inverse", "direct")),
        ):
            if value not in allowed:
                raise ValueError(f"{key} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        if bound_of == "max" and bound <= 1:
            raise ValueError(f"bound must be above 1 with bound_of='max', got {bound}")
        if penalty and not learnable:
            raise ValueError(
                f"penalty={penalty} holds learned scales near their start; set learnable=true or penalty=0"
            )
        self.kind, self.slope, self.bound, self.bound_of, self.init = kind, slope, bound, bound_of, init
        self.learnable, self.penalty = learnable, penalty
        if learnable:
            self.does = frozenset({"learns_weight_scale"})  # type: ignore[misc]

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Parametrize the chosen weights.

        Raises:
            ValueError: applied before, a weight that is another function already, or no layer is left.
        """
        if before := companders(backbone):
            raise ValueError(f"weights are companded already ({', '.join(list(before)[:3])}); apply it once")
        changes = Changes()
        layers = sorted((*anatomy.convs, *anatomy.linears), key=lambda layer: layer.order)
        found = self.chosen(layers, changes, self._why_not(backbone))
        if taken := [layer.name for layer in found if parametrize.is_parametrized(layer.module, "weight")]:
            raise ValueError(
                f"the weight of {', '.join(taken[:3])} is a function already, whose range the compander would bound "
                "instead of the weight; put compander before it in surgery=[...]"
            )
        clamped = {layer.name: self._compand(layer, changes) for layer in found}
        if total := sum(clamped.values()):
            worst = ", ".join(f"{name} {count}" for name, count in Counter(clamped).most_common(3) if count)
            changes.notes.append(
                f"warning: {total} weights lay beyond {CLAMP} of their bound and were clamped ({worst}); a larger "
                "bound keeps them"
            )
        if self.init == "direct":
            changes.notes.append("warning: init=direct: the weights themselves changed, and what the network computes")
        if self.learnable and (normed := sum(layer.norm is not None for layer in found)):
            changes.notes.append(
                f"warning: the output of {normed} of them goes into a norm, where the scale of the weight has no "
                "effect: a learned a drifts freely there"
            )
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """The weights as they are become the weights."""
        for name in companders(backbone):
            bake(backbone.get_submodule(name))
        return []

    def _compand(self, layer: Layer, changes: Changes) -> int:
        """Parametrize one layer and report it; how many of its weights had to be clamped."""
        weight: Any = layer.module.weight
        start = weight.detach().clone()
        function = CompandedWeight(self.kind, self.slope, self._bound(start), self.learnable, self.penalty)
        function.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        parametrize.register_parametrization(layer.module, "weight", function)
        if self.init == "direct":
            with torch.no_grad():
                layer.module.parametrizations["weight"].original.copy_(start)  # type: ignore[index, union-attr]
        now = function.diagnostics(layer.module.weight.detach())  # type: ignore[operator]
        changes.changed[layer.name] = (
            f"{self.kind}, slope {self.slope:g}, |w| < {function.bound():.4g}; the largest is at "
            f"{now['largest']:.2f} of it, {100 * now['small']:.1f} % are below 0.1 std, "
            f"{100 * now['saturated']:.1f} % hardly move"
        )
        return function.beyond(start) if self.init == "inverse" else 0

    def _bound(self, weight: Tensor) -> float:
        size = weight.double().std() if self.bound_of == "std" else weight.double().abs().max()
        return self.bound * float(size)

    def _why_not(self, backbone: nn.Module) -> Callable[[Layer], str | None]:
        """What speaks against a layer."""
        owners = Counter(id(p) for module in backbone.modules() for p in module._parameters.values())

        def why_not(layer: Layer) -> str | None:
            weight: Any = layer.module.weight
            if getattr(layer.module, "owns_weight_gradient", False):
                return "TrAct computes its weight gradient"
            if self.learnable and layer.standardized:
                return "standardizes its weight itself, which cancels a learned scale"
            if not weight.requires_grad:
                return "its weight is frozen"
            if owners[id(weight)] > 1:
                return "shares its weight with another module, which a function of one would untie"
            if weight.numel() < 2 or not 0 < self._bound(weight.detach()) < float("inf"):
                return "its weights are all the same, so they give no bound"
            return None

        return why_not


def companders(network: nn.Module) -> dict[str, CompandedWeight]:
    """The functions of companded weights, by the name of their module."""
    return {
        name: function
        for name, module in network.named_modules()
        if parametrize.is_parametrized(module, "weight")
        for function in module.parametrizations["weight"]  # type: ignore[index, union-attr]
        if isinstance(function, CompandedWeight)
    }
