"""The contracts of the parts a task is composed of.

A part is an ``nn.Module`` so that its state travels with ``state_dict`` and its tensors with ``.to(device)``.
Keyword-only arguments of its constructor are its configuration (the keys of its YAML); positional ones are given by
whoever builds it. Every part works in a plain PyTorch loop: call ``setup`` once, then the part itself each step and
``commit`` after each successful update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step
from kernels.pair_form import PairForm
from kernels.ranges import RangeChecked


@dataclass(frozen=True, slots=True)
class Context:
    """Facts about the run that a part may need before the first batch.

    ``batch_size`` counts the samples of an update over all processes, ``last_batch_size`` those of an epoch's last
    update; None where every process has equally many. ``val_is_query`` says which validation images (by
    ``Batch.index``) are queries and not of the gallery, None where all are both.
    """

    num_classes: int
    num_train: int
    max_epochs: int
    steps_per_epoch: int
    network: nn.Module
    seed: int = 0
    batch_size: int | None = None
    last_batch_size: int | None = None
    val_is_query: Tensor | None = None


class Part(RangeChecked, nn.Module):
    """What every kind of part shares.

    Class attributes:
        needs: what must be present: ``hard_labels``, ``index``, ``logits``, ``embedding``, ``attack``, ``teacher``,
            ``pair_form`` (a loss whose pairs can be mixed).
        gives: what a head puts into its ``Output``: ``logits``, ``embedding``.
        does: what the part does to the rest: ``mixes_labels``, ``doubles_forward``, ...
        refuses: effects of other parts that make this one meaningless, each with the mathematical reason.
        views: the images this part reads; each is forwarded once however many parts ask for it.
        maps: feature maps of the main view that it reads (see ``Network.forward``).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    does: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[dict[str, str]] = {}
    views: ClassVar[tuple[str, ...]] = ()
    maps: tuple[str, ...] = ()

    def objections(self, loss: Part) -> list[str]:
        """Reasons why this part cannot work beside the loss, where that depends on settings of both."""
        return []

    def setup(self, context: Context) -> None:
        """Allocate state and refuse settings that cannot work; called once, before the optimizer exists."""

    def commit(self, outputs: dict[str, Output], batch: Batch, step: Step) -> None:
        """Write state after a successful update; ``outputs`` are detached."""

    def after_validation(self, metrics: dict[str, float]) -> None:
        """Set state that validation decides (a best cut); ``metrics`` are those of this epoch, by column name."""

    def end_epoch(self) -> dict[str, float]:
        """Diagnostics of the epoch that just ended, by name; resets their sums. The only host read of a part."""
        return {}

    def report(self) -> dict[str, float]:
        """What the part did over the whole run, for results.json."""
        return {}

    def acted(self) -> bool:
        """Whether the part ever had an effect in this run; one that never did ends the run with an error."""
        return True


class Loss(Part):
    """``(outputs, batch, step) -> {name: [B]}``, per sample unless ``per_sample`` is False.

    A loss on the whole batch that brings the samples of all processes together by itself ``gathers``. One whose pairs
    can be mixed has their ``pair_form`` (see ``kernels.pair_form``).
    """

    views = ("main",)
    per_sample: ClassVar[bool] = True
    gathers: ClassVar[bool] = False
    pair_form: PairForm | None = None
    #: Kinds of pairs (see ``kernels.metrix``) whose images or feature maps can be mixed, not only their embeddings.
    mixed_outside: tuple[str, ...] = ("pos_neg", "anc_neg")
    #: Without two samples of a class in a batch there is nothing to learn from.
    compares: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Of the term: the file's."""
        return type(self).__module__.rpartition(".")[2]

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define forward(outputs, batch, step)")


class Regularizer(Part):
    """``(outputs, batch, step) -> [B] or scalar``, already weighted; None while it is off, which costs nothing."""

    views = ("main",)

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor | None:
        raise NotImplementedError(f"{type(self).__name__} must define forward(outputs, batch, step)")


class Mixing(Part):
    """Mixes samples: ``mix_batch`` draws partners and mixes labels (and images when ``at`` is ``input``);
    ``mix_map`` mixes the unpooled feature map of the main view when ``at`` is ``feature_map``; ``mix_pairs`` runs after
    the forward of an unmixed batch when ``at`` is ``embedding``. At the input the whole update batch is mixed,
    elsewhere each micro-batch is, so that partners lie in it."""

    at: ClassVar[str] = "input"
    does = frozenset({"mixes_labels"})

    def mix_batch(self, batch: Batch, step: Step) -> Batch:
        raise NotImplementedError(f"{type(self).__name__} must define mix_batch(batch, step)")

    def mix_map(self, feature_map: Tensor, batch: Batch, step: Step) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} mixes at {self.at}, not in a feature map")

    def mix_pairs(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Batch:
        """The batch with mixed pairs as an extra field, for the loss."""
        raise NotImplementedError(f"{type(self).__name__} mixes at {self.at}, not pairs of embeddings")


class Attack(Part):
    """``(batch, step) -> batch`` with adversarial ``image`` and the original in ``clean_image``."""

    does = frozenset({"attacks"})

    def forward(self, batch: Batch, step: Step) -> Batch:
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, step)")


class Teacher(Part):
    """``(batch, step) -> Output`` of frozen networks or a cache; fills the ``teacher`` view."""

    @torch.no_grad()
    def forward(self, batch: Batch, step: Step) -> Output:
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, step)")


class Reweighting(Part):
    """``(loss_B, outputs, batch, step) -> [B]`` detached coefficients for the loss term ``term`` (None: the first).

    The other terms keep the uniform mean.

    They sum to what the paper says over the global batch; uniform is ``1 / step.batch_size``. They are those of the
    first pass over an update, whatever passes a gradient adds. With
    ``needs_all_losses`` the step first collects the term of every micro-batch without gradient and calls
    the part once on the whole update.
    """

    needs_all_losses: ClassVar[bool] = False
    term: str | None = None

    def forward(self, loss_B: Tensor, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(loss_B, outputs, batch, step)")
