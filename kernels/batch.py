"""The records that flow between the rooms: ``Batch``, ``Output``, ``Step`` and ``Update``.

Shape legend used everywhere: B samples, C classes, D pooled features, E embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Batch:
    """Samples of one update, as every part sees them.

    Attributes:
        image: ``[B, 3, H, W]`` in [0, 1]; what the main forward sees (mixed or attacked where a part did so).
        label: ``[B]`` integer classes, or ``[B, C]`` soft labels after mixing.
        index: ``[B]`` position in the full training set, before any split or limit; stable over epochs,
            workers, ranks and resume. Per-sample stores are keyed by it.
        view: ``[B]`` earlier visits of the sample in this epoch, where a loader made the batch; with
            (seed, epoch, index) all that its augmentation depends on (epoch modulo ``data.augmentations``, if set).
        augmentation: ``[B]`` which augmentation the sample shows: of one part of a data set, equal (index,
            augmentation) are equal pixels in every epoch, so a cache may be keyed by them (by (index, view) it may
            not). 0 where nothing is augmented; None where augmentations never come again.
        clean_image: ``[B, 3, H, W]`` the image before the attack, where there was one.
        second_image: ``[B, 3, H, W]`` another augmentation of the same sample.
        clean_label: ``[B]`` the label before noise was added.
        survived_steps: ``[B]`` how many attack steps each sample withstood.
        partner: ``[B]`` position in this batch of the sample each one was mixed with.
        ratio: ``[B]`` share of the sample itself in the mixture; 1 means unmixed.
        position: where training stands before this batch, as (epoch, batches of that epoch before it), where a loader
            made it. Plain numbers, so that they can be compared without waiting for a device.
        extra: further fields by name (episode layout, pair labels); tensors are moved and split with the rest.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    view: Tensor | None = None
    augmentation: Tensor | None = None
    clean_image: Tensor | None = None
    second_image: Tensor | None = None
    clean_label: Tensor | None = None
    survived_steps: Tensor | None = None
    partner: Tensor | None = None
    ratio: Tensor | None = None
    position: tuple[int, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.image.shape[0]

    def shown(self, name: str) -> Tensor | None:
        """The image that a view names: ``main``, ``clean``, ``adversarial``, ``second`` or an extra field; None for one
        that the batch does not carry."""
        match name:
            case "main" | "adversarial":
                return self.image
            case "clean":
                return self.image if self.clean_image is None else self.clean_image
            case "second":
                return self.second_image
        return self.extra.get(name)

    def replace(self, **changes: Any) -> Batch:
        """A copy with some fields changed; tensors are shared, not copied."""
        return replace(self, **changes)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with ``function`` applied to every tensor field, once where several fields are one tensor."""
        done: dict[int, Tensor] = {}

        def once(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in done:
                done[id(value)] = function(value)
            return done[id(value)]

        changes: dict[str, Any] = {name: once(getattr(self, name)) for name in _TENSOR_FIELDS}
        if self.extra:
            changes["extra"] = {name: once(value) for name, value in self.extra.items()}
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on ``device``; itself where it already is there (``cuda`` without a number means any of them)."""
        here, there = self.image.device, torch.device(device)
        if here.type == there.type and there.index in (None, here.index):
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked host memory (called by the DataLoader)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def split(self, parts: int) -> list[Batch]:
        """``parts`` consecutive micro-batches whose sizes differ by at most one; fewer when B < parts."""
        if parts <= 1:
            return [self]
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        spans = [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
        return [self.map(partial(_rows, start=a, stop=b)) for a, b in spans]

    @staticmethod
    def join(batches: Sequence[Batch]) -> Batch:
        """The concatenation of micro-batches with the same fields; what is no tensor comes from the first."""
        first = batches[0]
        changes: dict[str, Any] = {
            name: torch.cat([getattr(batch, name) for batch in batches])
            for name in _TENSOR_FIELDS
            if getattr(first, name) is not None
        }
        extra = {
            key: torch.cat([batch.extra[key] for batch in batches]) if isinstance(value, Tensor) else value
            for key, value in first.extra.items()
        }
        return replace(first, **changes, extra=extra)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]


_TENSOR_FIELDS = tuple(f.name for f in fields(Batch) if f.name not in ("position", "extra"))


@dataclass(slots=True)
class Output:
    """What one forward of a network gives.

    Attributes:
        features: ``[B, D]`` pooled features, before the head.
        logits: ``[B, C]`` class scores, where the head classifies.
        embedding: ``[B, E]`` for metric learning, where the head embeds.
        auxiliary: outputs of further heads by name.
        maps: unpooled feature maps by name, on request.
    """

    features: Tensor | None = None
    logits: Tensor | None = None
    embedding: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)

    @property
    def class_scores(self) -> Tensor:
        """The logits ``[B, C]``.

        Raises:
            ValueError: the head gives none.
        """
        if self.logits is None:
            raise ValueError("this needs logits, and the head gives none; choose a classifying head (head=linear)")
        return self.logits

    def detach(self) -> Output:
        """The same values without the graph."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.detach()

        return Output(
            features=cut(self.features),
            logits=cut(self.logits),
            embedding=cut(self.embedding),
            auxiliary={name: value.detach() for name, value in self.auxiliary.items()},
            maps={name: value.detach() for name, value in self.maps.items()},
        )

    @staticmethod
    def join(outputs: Sequence[Output]) -> Output:
        """The concatenation of the outputs of micro-batches."""

        def join(values: list[Any]) -> Tensor | None:
            return None if values[0] is None else torch.cat(values)

        first = outputs[0]
        return Output(
            features=join([output.features for output in outputs]),
            logits=join([output.logits for output in outputs]),
            embedding=join([output.embedding for output in outputs]),
            auxiliary={name: torch.cat([output.auxiliary[name] for output in outputs]) for name in first.auxiliary},
            maps={name: torch.cat([output.maps[name] for output in outputs]) for name in first.maps},
        )


@dataclass(slots=True)
class Step:
    """Where training stands, and what a part may call.

    Attributes:
        epoch: 0-based epoch.
        update: optimizer updates done so far, over the whole run (our own count).
        seed: the run's seed; random draws of a part are functions of ``(seed, update)`` or ``(seed, epoch, index)``.
        network: the network in training.
        forward: ``forward(image) -> Output`` of that network, as the step runs it (compiled, mixed precision).
        batch_size: samples of the whole update over all micro-batches and ranks.
        networks: the other networks of the run by name (see ``Parts.networks``).
        pass_number: 0 in the pass that is recorded; higher where a gradient looks at the batch again (SAM), in which a
            part counts nothing.
    """

    epoch: int
    update: int
    seed: int
    network: torch.nn.Module
    forward: Callable[..., Output]
    batch_size: int
    networks: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    pass_number: int = 0

    def network_of(self, name: str) -> torch.nn.Module:
        """The network of this name; ``main`` is the one in training."""
        return self.network if name == "main" else self.networks[name]


@dataclass(slots=True)
class Update:
    """What one update saw, without graph: what parts are told in ``commit``.

    Attributes:
        outputs: of every view.
        batch: of this process, mixed and attacked.
        losses: per-sample terms ``[B]`` of the loss by name (or scalars).
        coefficients: ``[B]`` of the terms that a reweighting weighed.
    """

    outputs: dict[str, Output]
    batch: Batch
    losses: dict[str, Tensor] = field(default_factory=dict)
    coefficients: dict[str, Tensor] = field(default_factory=dict)
