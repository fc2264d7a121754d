"""The contract of an evaluator: batches in, an ``Evaluation`` out; no trainer, no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from kernels.batch import Batch, Output
from kernels.ranges import RangeChecked
from lightning_modules.evaluators.feature_cache import FeatureCache
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
        brief: only the metrics that select are wanted, as in every validation: no pictures, tables or files.
        key: name of all that decides a part of the data, ``test`` (``batches``) or ``train_eval`` (``train``); see
            ``ImageData.key``.
        cache: where embeddings of these parts are kept, under their keys.
        origin: what made the network and its images (``checkpoint``, ``preprocessing``), to be left beside vectors.
    """

    batches: Iterable[Batch]
    classes: tuple[str, ...]
    paths: list[str] | None = None
    output: Path | None = None
    train: Callable[[], Iterable[Batch]] | None = None
    is_query: torch.Tensor | None = None
    picture: Callable[[int], np.ndarray] | None = None
    brief: bool = False
    key: Callable[[str], str] | None = None
    cache: FeatureCache | None = None
    origin: dict[str, Any] | None = None


class Measurement:
    """One evaluation under way: told every batch, then asked what came of it.

    Attributes:
        complete: it knows what it needs already, and no batch is added.
    """

    complete: bool = False

    def add(self, batch: Batch, output: Output) -> None:
        """One batch, where the network is, and what the network gives for it (in eval mode, without gradient)."""
        raise NotImplementedError(f"{type(self).__name__} must define add(batch, output)")

    def result(self) -> Evaluation:
        """What all batches came to; over all processes, where several share them.

        Raises:
            ValueError: nothing can be said, such as of no batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define result()")

    def close(self) -> None:
        """Called last, also after an error: leave nothing half done."""


class Evaluator(RangeChecked):
    """Begins measurements of a network on data: at the end of a run, at every validation, or alone.

    Class attributes:
        reads: ``labelled`` for the test set of the data module; ``unlabelled`` for any folder of images.
        needs_matches: whether a set in which no image has another of its class cannot be evaluated.
        reads_logits: whether the head must give class scores.
        compares: whose classes those of the data must be: ``network`` for the ones it was trained on; ``training`` for
            those of the training part of the data; ``none`` for whatever they are.
        selects: metrics by which a validation selects, the first one first; a minus sign where lower is better.
        measures: all metrics of a validation; empty where that is not known beforehand.
        smallest_image: pixels a side that images need.
    """

    reads: ClassVar[Literal["labelled", "unlabelled"]] = "labelled"
    needs_matches: bool = False
    reads_logits: ClassVar[bool] = False
    compares: ClassVar[Literal["network", "training", "none"]] = "network"
    selects: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ()
    smallest_image: ClassVar[int] = 1

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        """A measurement of ``network`` on ``data``, whose batches are added one after another."""
        raise NotImplementedError(f"{type(self).__name__} must define begin(network, data)")

    def __call__(self, network: Network, data: EvaluationData) -> Evaluation:
        """The whole evaluation, alone.

        Raises:
            ValueError: nothing can be said, such as of no batch.
        """
        done, failed = evaluate_all({"": self}, network, data)
        if failed:
            raise failed[""]
        return done[""]


def evaluate_all(
    evaluators: Mapping[str, Evaluator], network: Network, data: EvaluationData
) -> tuple[dict[str, Evaluation], dict[str, Exception]]:
    """Every evaluator over one pass of the data, with one forward of each batch, in eval mode.

    The network's mode is put back afterwards. One that fails does not end the others.

    Returns:
        What came of each, and the errors of those that failed, by name.
    """
    was_training = network.training
    network.eval()
    under_way: dict[str, Measurement] = {}
    done: dict[str, Evaluation] = {}
    failed: dict[str, Exception] = {}

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action() if name not in failed else None
        except Exception as error:
            failed[name] = error
            return None

    try:
        for name, evaluator in evaluators.items():
            if (measurement := attempt(name, partial(evaluator.begin, network, data))) is not None:
                under_way[name] = measurement
        waiting = {name: measurement for name, measurement in under_way.items() if not measurement.complete}
        for batch in data.batches if waiting else ():
            batch = placed(batch, network)
            with torch.no_grad():
                output = network(batch.image)
                for name, measurement in waiting.items():
                    attempt(name, partial(measurement.add, batch, output))
        for name, measurement in under_way.items():
            if (evaluation := attempt(name, measurement.result)) is not None:
                done[name] = evaluation
    finally:
        for measurement in under_way.values():
            measurement.close()
        network.train(was_training)
    return done, failed


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
