"""The contracts of the parts a task is composed of.

A part is an ``nn.Module`` so that its state travels with ``state_dict`` and its tensors with ``.to(device)``.
Keyword-only arguments of its constructor are its configuration (the keys of its YAML); positional ones are given by
whoever builds it. Every part works in a plain PyTorch loop: call ``setup`` once, then the part itself each step and
``commit`` after each successful update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step, Update
from kernels.pair_form import PairForm
from kernels.ranges import RangeChecked

MAIN = "main"


class Unsuited(ValueError):
    """Raised in ``setup`` by a part that cannot work beside the networks of the run, with what came, what is allowed
    and what to do."""


def split_view(view: str) -> tuple[str, str]:
    """Network and image of a view, which is written ``image`` or ``network/image`` (see ``views.py``).

    Example:
        >>> split_view("clean"), split_view("teacher/clean")
        (('main', 'clean'), ('teacher', 'clean'))
    """
    network, _, image = view.rpartition("/")
    return network or MAIN, image


@dataclass(frozen=True, slots=True)
class Context:
    """Facts about the run that a part may need before the first batch.

    ``batch_size`` counts the samples of an update over all processes, ``last_batch_size`` those of an epoch's last
    update; None where every process has equally many. ``val_is_query`` says which validation images (by
    ``Batch.index``) are queries and not of the gallery, None where all are both; ``val_classes`` names their classes.
    ``networks`` are those beside the one in training, by name. ``data_key`` is that of the training images without
    augmentation (see ``ImageData.key``). ``attack_steps`` is how many steps the attack makes;
    ``image_size`` the side of the images in pixels; None where nobody says. ``regularizers`` are those of the run by
    name.
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
    val_classes: tuple[str, ...] = ()
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    data_key: Callable[[str], str] | None = None
    attack_steps: int | None = None
    image_size: int | None = None
    regularizers: Mapping[str, nn.Module] = field(default_factory=dict)

    def network_of(self, name: str) -> nn.Module:
        """The network of this name; ``main`` is the one in training."""
        return self.network if name == MAIN else self.networks[name]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a part may look at before the first update.

    Attributes:
        batches: makes the batches of the training samples in stored order, without augmentation; of several processes
            each has its share, and adds up what it found with the others (``distributed.total_over_processes``).
        network: the network as it starts.
        device: where it is.
    """

    batches: Callable[[], Iterable[Batch]]
    network: nn.Module
    device: torch.device


class Part(RangeChecked, nn.Module):
    """What every kind of part shares.

    Class attributes:
        needs: what must be present: ``hard_labels``, ``index``, ``logits``, ``embedding``, ``attack``,
            ``survived_steps`` (an attack that counts them), ``barrier`` (an attack that minimises a smooth function),
            ``pair_form`` (a loss whose pairs can be mixed), ``regularizer`` (at least one).
        gives: what a head puts into its ``Output``: ``logits``, ``embedding``; what an attack puts into the batch
            beside its images: ``survived_steps``.
        does: what the part does to the rest: ``mixes_labels``, ``doubles_forward``, ...
        refuses: effects of other parts that make this one meaningless, each with the mathematical reason.
        views: what this part reads, as ``image`` or ``network/image``; each is forwarded once however many parts ask
            for it, in the order in which the loss names them.
        still: those of ``views`` whose forward leaves running norm statistics alone; the first part that reads a view
            says so, and the loss comes first.
        maps: feature maps that it reads of its views (see ``Network.forward``), of the main one where it names none.
        reads_of_teacher: what it reads of a view of a teacher, which is what ``teaching=cached`` keeps: ``logits``,
            ``features``, or ``norms``, that are ``auxiliary["feature_norm"]`` ``[B]`` where there are no features.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    does: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[dict[str, str]] = {}
    views: tuple[str, ...] = ()
    still: frozenset[str] = frozenset()
    maps: tuple[str, ...] = ()
    reads_of_teacher: frozenset[str] = frozenset({"logits", "features"})

    def objections(self, loss: Part) -> list[str]:
        """Reasons why this part cannot work beside the loss, where that depends on settings of both."""
        return []

    def setup(self, context: Context) -> None:
        """Allocate state and refuse settings that cannot work; called once, before the optimizer exists."""

    def prepare(self, data: TrainingData) -> None:
        """Look at the data once, before update 0 (class means, caches); never after a resume, which has the state."""

    def begin(self, step: Step) -> None:
        """Draw what holds for the whole update, before any forward of it."""

    def commit(self, result: Update, step: Step) -> None:
        """Write state after a successful update; everything in ``result`` is detached."""

    def validated(self, network: nn.Module, metrics: dict[str, float]) -> None:
        """Set state that validation decides (a best cut), before the epoch's row and the selection are made.

        Args:
            network: the one that was validated and that is stored as the best: the average where there is one. What
                belongs to it is set on it.
            metrics: those of this validation, by column name; what is added becomes a column of its own.
        """

    def end_epoch(self) -> dict[str, float]:
        """Diagnostics of the epoch that just ended, by name; resets their sums. The only host read of a part."""
        return {}

    def report(self) -> dict[str, float]:
        """What the part did over the whole run, for results.json."""
        return {}

    def files(self, folder: Path) -> None:
        """Write what is too large for a report into an empty folder, once training is done."""

    def acted(self) -> bool:
        """Whether the part ever had an effect in this run; one that never did ends the run with an error."""
        return True


class Loss(Part):
    """``(outputs, batch, step) -> {name: [B]}``, per sample unless ``per_sample`` is False.

    ``prediction`` names the view whose logits are the network's answer: training accuracy and every regularizer without
    a ``view`` of its own read it.

    A loss on the whole batch that brings the samples of all processes together by itself ``gathers``. One whose pairs
    can be mixed has their ``pair_form`` (see ``kernels.pair_form``).
    """

    views: tuple[str, ...] = (MAIN,)
    prediction: str = MAIN
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


class Reader(Part):
    """A part that reads one view.

    Args:
        view: the view it reads; None for the prediction of the loss.
    """

    def __init__(self, *, view: str | None = None) -> None:
        super().__init__()
        self.view = view or MAIN
        self.follows_prediction = view is None

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.view,)


class Regularizer(Reader):
    """``(outputs, batch, step) -> [B] or scalar``, already weighted; None while it is off, which costs nothing.

    One that is not ``per_sample`` is of the update batch as a whole: that is never cut, and it brings the samples of
    all processes together by itself.
    """

    per_sample: ClassVar[bool] = True

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


class Reweighting(Part):
    """``({term: [B]}, outputs, batch, step) -> {term: [B]}``: coefficients for the loss terms that it names.

    The others keep the uniform mean, ``1 / step.batch_size`` for each sample. Coefficients sum over the global batch to
    what the paper says, carry no gradient, and are those of the first pass over an update, whatever passes a gradient
    adds; the losses it is given are detached.

    One that ``needs_all_losses`` is called once on the whole update: the losses of all micro-batches (a pass without
    gradient comes before) and of all processes (they are gathered; each process computes, and takes its share). Then
    ``outputs`` hold logits and embeddings only, and the images of the batch stay where they are (``[B, 0]``).
    """

    needs_all_losses: ClassVar[bool] = False

    def forward(
        self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define forward(losses, outputs, batch, step)")
