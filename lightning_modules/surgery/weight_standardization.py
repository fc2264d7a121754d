"""Weight standardization of convolutions.

Qiao, Wang, Liu, Shen, Yuille. "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
2019, arXiv 1903.10520. Departures from the official code, with their reasons, are in
docs/weight_standardization_bcn.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernels.weight_standardization import standardize_weight
from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.changes import Changes
from lightning_modules.surgery.weights import WeightFunction, bake

#: Parts of the class names of modules whose convolutions gate, attend or embed; those of timm and of its models.
GATES = ("SEModule", "SqueezeExcite", "Attn", "Attention", "Eca", "Cbam", "GlobalContext", "GatherExcite")
EMBEDDINGS = ("PatchEmbed", "HybridEmbed")


class StandardizedWeight(WeightFunction):
    """The weight of a convolution as ``standardize_weight(original)``.

    Assigning a weight stores it as the original, so a standardized one stays what it is up to eps.

    It is one kernel a layer, forward and backward. Joining the layers of equal fan-in into one tensor costs two copies
    of every weight and was slower on a CPU (docs/weight_standardization_bcn.md), so ``compute_all`` is the plain loop.

    Args:
        eps: added to the variance, or to the standard deviation.
        ddof: 0 or 1.
        eps_mode: ``inside`` the root, or ``added`` behind it.
    """

    def __init__(self, eps: float, ddof: int, eps_mode: Literal["inside", "added"]) -> None:
        super().__init__()
        self.eps, self.ddof, self.eps_mode = eps, ddof, eps_mode

    def forward(self, original: Tensor) -> Tensor:
        return standardize_weight(original, eps=self.eps, ddof=self.ddof, eps_mode=self.eps_mode)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A copy: the original must not share its memory with what was assigned."""
        return weight.clone()

    def extra_repr(self) -> str:
        return f"eps={self.eps}, ddof={self.ddof}, eps_mode={self.eps_mode!r}"


class WeightStandardization(Surgery):
    """Every filter of a convolution is used with mean 0 and variance 1; what is trained is the filter before that.

    The weights become functions of parameters: modules keep their class, parameters move to
    ``NAME.parametrizations.weight.original``, and nothing else is added.

    Args:
        select: ``normed`` takes convolutions whose output goes straight into a norm, which makes up for the scale of
            the output (about sqrt(fan-in) times that of a usual initialization); ``all`` takes the others too, which
            is right for networks that normalize before the convolution.
        eps: 1e-6 as in timm.
        ddof: what is subtracted from the fan-in in the variance; 0 as in timm, 1 in the official code.
        eps_mode: ``inside`` the root as in timm, or ``added`` to it.
        depthwise: take depthwise convolutions too; they can then only be difference filters.
        with_tract: take layers whose weight gradient TrAct computes too.
        include: patterns of names that are considered; None for all.
        exclude: patterns of names that are left as they are.

    Raises:
        ValueError: a value outside its range.
    """

    phase = "parametrize"
    rank = 1  # it standardizes what other functions make of the weight
    does = frozenset({"standardizes_weights"})
    refuses = {
        "learns_weight_scale": "standardization divides every filter by its own spread, so a learned scale in front of "
        "it cancels and its gradient is zero; keep the scale fixed"
    }

    def __init__(
        self,
        *,
        select: Literal["normed", "all"] = "normed",
        eps: Annotated[float, "x > 0"] = 1e-6,
        ddof: Annotated[int, "0 <= x <= 1"] = 0,
        eps_mode: Literal["inside", "added"] = "inside",
        depthwise: bool = False,
        with_tract: bool = False,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude)
        if select not in ("normed", "all"):
            raise ValueError(f"select must be 'normed' or 'all', got {select!r}")
        if eps_mode not in ("inside", "added"):
            raise ValueError(f"eps_mode must be 'inside' or 'added', got {eps_mode!r}")
        self.select, self.depthwise, self.with_tract = select, depthwise, with_tract
        self.eps, self.ddof, self.eps_mode = eps, ddof, eps_mode

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Parametrize the chosen convolutions.

        Raises:
            ValueError: weights are standardized already, or no convolution is left.
        """
        if before := _standardized(backbone):
            raise ValueError(
                f"weight standardization was applied before, to {', '.join(list(before)[:3])}; a second one would only "
                "shrink gradients; apply it once to a fresh backbone"
            )
        changes = Changes()
        found = self.chosen(anatomy.convs, changes, self._why_not(backbone))
        for layer in found:
            function = StandardizedWeight(self.eps, self.ddof, self.eps_mode)
            parametrize.register_parametrization(layer.module, "weight", function)
            changes.changed[layer.name] = f"weight standardized over {layer.fan_in} inputs"
        called = {layer.name for layer in anatomy.convs}
        for name, module in backbone.named_modules():
            if isinstance(module, nn.Conv2d) and name not in called:
                changes.skipped[name] = "forward_features never calls it"
        changes.notes.append(
            "warning: weights trained without weight standardization compute another function from here on; for "
            "fine-tuning take weights that were trained with it"
        )
        if bare := sum(layer.norm is None for layer in found):
            changes.notes.append(
                f"{bare} of them feed no norm directly: their outputs are about sqrt(fan-in) times larger than usual"
            )
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """The standardized weights become the weights."""
        for module in _standardized(backbone).values():
            bake(module)
        return []

    def _why_not(self, backbone: nn.Module) -> Callable[[Layer], str | None]:
        """What speaks against a layer, structure first."""
        config = getattr(backbone, "pretrained_cfg", None) or {}
        named = config.get("classifier") or ()
        classifiers = (named,) if isinstance(named, str) else tuple(named)

        def why_not(layer: Layer) -> str | None:
            if layer.standardized:
                return "standardizes its weight itself"
            if layer.fan_in < 2:
                return "a filter of one weight has no spread"
            if layer.name in classifiers:
                return "a classifier: no norm follows"
            if kind := _inside(backbone, layer.name):
                return f"belongs to a {kind}, whose output is no normed feature map"
            if layer.depthwise and not self.depthwise:
                return "depthwise: standardized it could only take differences (depthwise=true takes it)"
            if getattr(layer.module, "owns_weight_gradient", False) and not self.with_tract:
                return "TrAct computes its weight gradient (with_tract=true standardizes it too)"
            if self.select == "normed" and layer.norm is None:
                return "no norm reads its output (select=all takes it)"
            return None

        return why_not


def _standardized(backbone: nn.Module) -> dict[str, nn.Module]:
    """Modules with a standardized weight, by name."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and any(isinstance(function, StandardizedWeight) for function in module.parametrizations["weight"])  # type: ignore[index, union-attr]
    }


def _inside(backbone: nn.Module, name: str) -> str | None:
    """Class name of the gate or embedding around a layer, if there is one."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        kind = type(backbone.get_submodule(".".join(parts[:depth]))).__name__
        if any(word in kind for word in (*GATES, *EMBEDDINGS)):
            return kind
    return None
