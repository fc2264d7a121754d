"""Whether task, head, loss, data and evaluators of a run fit each other: refused before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from datamodules.base import ImageData
from lightning_modules.evaluators.base import Evaluator
from lightning_modules.tasks.task import Task


def check_fit(task: Task, data: ImageData, evaluators: Mapping[str, Evaluator], processes: int = 1) -> None:
    """Refuse what would end in an error, or in numbers that mean nothing, only after an epoch or at the end.

    Args:
        task: with its network and parts.
        data: set up.
        evaluators: by name.
        processes: that share each batch.

    Raises:
        ValueError: all problems at once.
    """
    asked = (_of_heads(task, evaluators), _of_sizes(task, data, evaluators), _of_classes(task, data, evaluators))
    problems = [problem for found in (*asked, _of_pairs(task, data, evaluators)) for problem in found]
    if problems:
        raise ValueError("this run does not fit together:\n- " + "\n- ".join(problems))
    for batch in (0, data.steps_per_epoch - 1):  # only the last may be smaller
        task.check_size(data.order.samples_of(batch) // processes)


def _of_heads(task: Task, evaluators: Mapping[str, Evaluator]) -> Iterator[str]:
    head = task.network.head
    validating = _named("validation", task.validation.evaluators)
    for name, evaluator in (validating | _named("evaluator", evaluators)).items():
        if evaluator.reads != "labelled":
            yield (
                f"{name} reads a folder of images without labels, which a training run does not have; run it "
                f"afterwards with python evaluate.py checkpoint=RUN {name.replace(' ', '=')} data.root=FOLDER"
            )
        elif evaluator.reads_logits and "logits" not in head.gives:
            yield (
                f"{name} reads class scores, and head {type(head).__name__} gives none; take head=linear, or "
                "task=metric_learning and evaluator=[retrieval]"
            )


def _of_sizes(task: Task, data: ImageData, evaluators: Mapping[str, Evaluator]) -> Iterator[str]:
    validating = _named("validation", task.validation.evaluators)
    for name, evaluator in (validating | _named("evaluator", evaluators)).items():
        if data.image_size < evaluator.smallest_image:
            yield (
                f"{name} needs images of at least {evaluator.smallest_image} px a side, and those of this data have "
                f"{data.image_size}; raise data.image_size where the data has that key, or leave it out"
            )


def _of_classes(task: Task, data: ImageData, evaluators: Mapping[str, Evaluator]) -> Iterator[str]:
    readers = {"val": _named("validation", task.validation.evaluators), "test": _named("evaluator", evaluators)}
    for part, named in readers.items():
        strict = [name for name, one in named.items() if one.compares != "none" and one.reads == "labelled"]
        if strict and not data.absent and data.classes_of(part) != data.classes:
            yield (
                f"{', '.join(strict)} compares with the classes of training, and the {part} part of this data has "
                "others; take task=metric_learning with head=embedding and evaluator=[retrieval], or other data"
            )


def _of_pairs(task: Task, data: ImageData, evaluators: Mapping[str, Evaluator]) -> Iterator[str]:
    if task.parts.loss.compares and data.samples_per_class == 1:
        yield (
            f"loss {type(task.parts.loss).__name__} learns from two samples of a class, and data.samples_per_class=1 "
            "leaves none together; set it to at least 2"
        )
    if data.absent:
        return
    if task.validation.chosen and not len(data.val_index):
        yield (
            "select has no effect without validation images; hold some out with data.val_fraction, or set select=null"
        )
    pairs = any(evaluator.needs_matches for evaluator in task.validation.evaluators.values())
    if pairs and len(data.val_index) and not _match(data, "val", data.val_index, data.val_is_query):
        yield (
            "no validation image has another of its class to find; hold out more with data.val_fraction, or none with "
            "data.val_fraction=0"
        )
    asking = [name for name, one in evaluators.items() if one.needs_matches]
    if asking and not _match(data, "test", data.test_index, data.test_is_query):
        yield f"no test image has another of its class to find for {', '.join(asking)}; raise data.limit_test"


def _named(group: str, evaluators: Mapping[str, Evaluator]) -> dict[str, Evaluator]:
    """By the words that choose them."""
    return {f"{group} {name}": evaluator for name, evaluator in evaluators.items()}


def _match(data: ImageData, part: str, index: Tensor, is_query: Tensor | None) -> bool:
    """Whether any query of a part finds its class."""
    labels = data.labels_of(part)[index]
    if is_query is None:
        return bool((labels.bincount() > 1).any())
    asking = is_query[index]
    return bool(torch.isin(labels[asking].unique(), labels[~asking]).any())
