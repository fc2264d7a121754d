"""Aligned gradients: what of the regularizers' gradients opposes the loss is taken out of them.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernels.batch import Output, Step, Update
from kernels.gradient_alignment import (
    inner_products,
    project,
    row_correction,
    row_products,
)
from lightning_modules.frozen import Frozen
from lightning_modules.gradients.agreement import Agreement
from lightning_modules.gradients.base import Gradient, Pass, Seat, Terms, sum_terms
from lightning_modules.gradients.ways import leads_around
from lightning_modules.names import unknown_name
from lightning_modules.part import Context

Tensors = list[Tensor | None]

ANCHOR = ""  # no part has this name

_AROUND = (
    "gradient.scope=feature aligns what reaches the backbone through the pooled features of a view, and {what} reaches "
    "it by another way{how}; take gradient.scope=backbone"
)


class Aligned(Gradient):
    """``g_0 + sum_k g_k'`` with ``g_k' = g_k - min(0, <g_0, g_k>) / ||g_0||^2 g_0``.

    The anchor ``g_0`` is the gradient of the loss's terms together and never altered; each regularizer's ``g_k`` is
    projected against it alone, and only where the two conflict. Weights of the terms are in their gradients.

    Args:
        scope: what is one vector. ``all``: all parameters together, as the paper does; a head that only one of the
            terms trains is in the norms too, and therefore some conflict remains in the backbone. ``backbone``: its
            parameters, where no conflict remains; all else (heads, projectors) gets the plain sum. ``feature``: the
            gradient by the pooled features of one sample in one view, with one backward of the backbone.
        others: names of the regularizers that are aligned, the rest joins the anchor; None for all.

    Raises:
        ValueError: a name that no regularizer has, no name at all, or a network without a backbone for its scope.
    """

    needs = frozenset({"regularizer"})

    def __init__(
        self, *, scope: Literal["all", "backbone", "feature"] = "all", others: list[str] | None = None
    ) -> None:
        super().__init__()
        self.scope, self.others = scope, others
        self.derives_by_features = scope == "feature"
        if scope == "feature":
            around = _AROUND.format(what="a term of feature maps", how=", through the map")
            self.refuses = {"reads_maps": around}  # type: ignore[misc]
        self.activity = Agreement()
        self._off = False  # whether every term that could be aligned has the weight 0
        self._seen: set[frozenset[str]] = set()  # terms whose ways to the backbone were looked at

    def setup(self, context: Context) -> None:
        known = context.regularizers
        if self.others is not None and not self.others:
            raise ValueError(
                "gradient.others is empty, so that there is nothing to align; name regularizers, or take gradient=sum"
            )
        for name in self.others or ():
            if name not in known:
                raise ValueError(unknown_name("gradient.others", name, known))
        if self.scope != "all" and not isinstance(getattr(context.network, "backbone", None), nn.Module):
            raise ValueError(
                f"gradient.scope={self.scope} needs a network with a backbone, and {type(context.network).__name__} "
                "has none; take gradient.scope=all"
            )
        names = [name for name in known if self.others is None or name in self.others]
        self._off = all(getattr(known[name], "weight", None) == 0 for name in names)
        self.activity.watch(names)

    def forward(self, seat: Seat) -> None:
        if self.scope == "feature":
            for one in seat.passes():
                seat.backward(self._by_features(seat, one))
        else:
            self._by_parameters(seat)

    def _objectives(self, terms: Terms, regularizers: frozenset[str]) -> tuple[Tensor, Terms]:
        """The anchor, and the terms that are aligned with it: those that can be trained at all."""
        others = {
            name: value
            for name, value in terms.items()
            if name in regularizers and value.requires_grad and (self.others is None or name in self.others)
        }
        return sum_terms({name: value for name, value in terms.items() if name not in others}), others

    def _by_parameters(self, seat: Seat) -> None:
        found: dict[str, Tensors] = {}
        for one in seat.passes():
            anchor, others = self._objectives(one.terms, seat.regularizers)
            if not others:
                seat.backward(anchor)
                continue
            scalars = [*others.items(), (ANCHOR, anchor)]  # the anchor is last: it frees the graph of every view
            for name, scalar in scalars:
                gradient = seat.derive(scalar, retain_graph=name != ANCHOR)
                found[name] = _added(found[name], gradient) if name in found else gradient
        if not found:
            return
        for gradient in found.values():  # mean gradients are aligned: the mean of aligned ones is another
            seat.average(gradient)
        parameters = list(seat.parameters.values())
        first = _added(found.pop(ANCHOR), [p.grad for p in parameters])  # with pieces that had nothing to align
        rest = list(found.values())
        backbones = _backbones(seat.step) if self.scope == "backbone" else frozenset()
        inside = [self.scope == "all" or id(p) in backbones for p in parameters]
        products = inner_products(first, rest, inside)
        self.activity.count(seat.step, dict(zip(found, products, strict=True)))
        for p, merged in zip(parameters, project(first, rest, inside, products), strict=True):
            p.grad = merged

    def _by_features(self, seat: Seat, one: Pass) -> Tensor:
        """The sum of the terms, with a gradient by the features of every view that is aligned."""
        total = sum_terms(one.terms)
        anchor, others = self._objectives(one.terms, seat.regularizers)
        features = _features_of(one.outputs)
        if not others or not features or not anchor.requires_grad:
            return total
        self._look_for_other_ways(seat, one, features)
        first, *rest = (
            torch.autograd.grad(scalar, features, retain_graph=True, allow_unused=True)
            for scalar in (anchor, *others.values())
        )
        for view, (features_BD, anchor_BD) in enumerate(zip(features, first, strict=True)):
            theirs = {name: g[view] for name, g in zip(others, rest, strict=True)}
            if anchor_BD is None:
                continue
            products = {name: row_products(anchor_BD, g) for name, g in theirs.items() if g is not None}
            if products:
                self.activity.count(seat.step, products)
                correction_BD = row_correction(anchor_BD, list(products.values())).to(features_BD.dtype)
                # Zero, with the correction as its gradient: what follows is one backward for heads and backbone.
                total = total + ((features_BD - features_BD.detach()) * correction_BD).sum()
        return total

    def _look_for_other_ways(self, seat: Seat, one: Pass, features: Sequence[Tensor]) -> None:
        """Once for each set of terms: its size is that of the heads' graph."""
        if (names := frozenset(one.terms)) in self._seen:
            return
        if around := leads_around(one.terms, features, _backbones(seat.step)):
            what, how = f"the term {', '.join(around)}", " (feature maps, weights, forwards of its own)"
            raise ValueError("these parts cannot work together:\n- gradient: " + _AROUND.format(what=what, how=how))
        self._seen.add(names)

    def commit(self, result: Update, step: Step) -> None:
        self.activity.commit(step)

    def end_epoch(self) -> dict[str, float]:
        """For each term its mean cosine with the anchor, and the share of updates (of samples, with features) in which
        the two conflict."""
        return self.activity.read()

    def report(self) -> dict[str, float]:
        return self.activity.report()

    def acted(self) -> bool:
        """Whether there ever were two gradients to compare; a run without any conflict is none without effect."""
        return self._off or self.activity.compared()


def _added(sums: Tensors, gradient: Tensors) -> Tensors:
    """Out of place, because autograd may give one tensor to several parameters."""
    return [b if a is None else a if b is None else a + b for a, b in zip(sums, gradient, strict=True)]


def _features_of(outputs: Mapping[str, Output]) -> list[Tensor]:
    """Of every view that is trained, once where views share a forward."""
    features = {id(output.features): output.features for output in outputs.values() if output.features is not None}
    return [features_BD for features_BD in features.values() if features_BD.requires_grad]


def _backbones(step: Step) -> frozenset[int]:
    """Ids of the parameters of the backbone of every network that is trained."""
    networks: list[Any] = [step.network, *(net for net in step.networks.values() if not isinstance(net, Frozen))]
    return frozenset(id(p) for network in networks for p in network.backbone.parameters())
