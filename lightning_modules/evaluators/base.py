"""The contract of an evaluator: a network and data in, an ``Evaluation`` out; no trainer, no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from kernels.batch import Batch
from kernels.ranges import RangeChecked
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.network import Network


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What an evaluator reads.

    Attributes:
        batches: batches of the evaluated set, without augmentation.
        classes: names in the order of the labels.
        paths: file of each image, where images come from files.
        output: folder for files the evaluator writes.
        train: makes the batches of the training set, in stored order and without augmentation, where there is one.
        is_query: ``[N]`` whether the image with this ``Batch.index`` is a query and not of the gallery; None where
            every image is both.
        picture: the evaluated image with this ``Batch.index``, ``[H, W, 3]`` uint8.
    """

    batches: Iterable[Batch]
    classes: tuple[str, ...]
    paths: list[str] | None = None
    output: Path | None = None
    train: Callable[[], Iterable[Batch]] | None = None
    is_query: torch.Tensor | None = None
    picture: Callable[[int], np.ndarray] | None = None


class Evaluator(RangeChecked):
    """``(network, data) -> Evaluation``.

    Class attributes:
        reads: ``labelled`` for the test set of the data module; ``unlabelled`` for any folder of images.
        needs_matches: whether a set in which no image has another of its class cannot be evaluated.
        reads_logits: whether the head must give class scores.
        same_classes: whether the classes of the data must be those the network was trained on.
    """

    reads: ClassVar[Literal["labelled", "unlabelled"]] = "labelled"
    needs_matches: bool = False
    reads_logits: ClassVar[bool] = False
    same_classes: ClassVar[bool] = True

    def __call__(self, network: Network, data: EvaluationData) -> Evaluation:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(network, data)")


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network's tensors are."""
    tensor: Any = next(network.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def placed(batch: Batch, network: torch.nn.Module) -> Batch:
    """The batch where the network is, with images in the floating type of its parameters (float64 after 64-true)."""
    batch = batch.to(device_of(network), non_blocking=True)
    dtype: Any = next((p.dtype for p in network.parameters() if p.is_floating_point()), batch.image.dtype)
    images = {name: getattr(batch, name) for name in ("image", "clean_image", "second_image")}
    floating = {name: image for name, image in images.items() if image is not None and image.is_floating_point()}
    return batch.replace(**{name: image.to(dtype) for name, image in floating.items()})
