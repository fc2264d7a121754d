"""Which classes each part of an image set has, and what its labels count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from datamodules.manifest import Parts, entry, names_entry
from datamodules.order.split import hold_out, hold_out_classes


class LabelSets:
    """One rule for all sets: the labels of a part are positions in the names of that part, ``classes_of(part)``.

    Most sets have the same classes everywhere. Where the test part has others (metric learning, few-shot), validation
    has others too: ``val_fraction`` of the training classes are held out with all their images, and the labels that
    stay are renumbered, so that ``classes`` are the classes trained on. Positions (``Batch.index``) stay those in the
    full training set.

    Attributes: those of ``ImageData``.
    """

    classes: tuple[str, ...]
    val_classes: tuple[str, ...]
    test_classes: tuple[str, ...]
    train_labels: Tensor
    stored_labels: Tensor
    test_labels: Tensor
    val_labels: Tensor | None = None  # only of a source that has a validation set of its own
    test_is_query: Tensor | None = None
    train_index: Tensor
    val_index: Tensor
    test_index: Tensor
    val_fraction: float
    split_seed: int
    select_on: Literal["val", "test_best"]

    def classes_of(self, part: str) -> tuple[str, ...]:
        """Names of the classes of a part, in the order of its labels.

        Args:
            part: ``train``, ``train_eval``, ``val`` or ``test``.
        """
        names = {"val": "val_classes", "test": "test_classes"}.get(part, "classes")
        own: tuple[str, ...] = getattr(self, names, self.classes)
        return own

    def labels_of(self, part: str) -> Tensor:
        """The labels of the set that a part's ``Batch.index`` points into, as positions in ``classes_of(part)``.

        Args:
            part: ``train``, ``train_eval``, ``val`` or ``test``.
        """
        if part == "val":
            return self._val_set
        return self.test_labels if part == "test" else self.train_labels

    def set_of(self, part: str) -> str:
        """The stored set that a part's ``Batch.index`` points into: ``train``, ``val`` or ``test``."""
        if part == "val":
            part = "test" if self.select_on == "test_best" else "train" if self.val_labels is None else "val"
        return "train" if part == "train_eval" else part

    @property
    def by_classes(self) -> bool:
        """Whether the test part has other classes than the training part."""
        return self.test_classes != self._stored_classes

    @property
    def val_is_query(self) -> Tensor | None:
        """As ``test_is_query``, of the validation images."""
        return self.test_is_query if self.select_on == "test_best" else None

    @property
    def held_out(self) -> bool:
        """Whether validation is a part of the training set."""
        return self.val_labels is None and self.select_on == "val"

    def settle_labels(self) -> None:
        """After ``read``: fill in the names of parts that have those of training, and check the labels of each part."""
        for names in ("val_classes", "test_classes"):
            if not hasattr(self, names):
                setattr(self, names, self.classes)
        for part, labels in (("train", self.train_labels), ("val", self.val_labels), ("test", self.test_labels)):
            if labels is not None:
                check_labels(labels, self.classes_of(part), part)
        self._stored_classes, self.stored_labels = self.classes, self.train_labels
        self._stored_val_classes = self.val_classes

    def thinned(self, index: Tensor) -> Tensor:
        """The positions among these that training and its validation part may use: all, but in an imbalanced set."""
        return index

    def choose_validation(self) -> Tensor:
        """Set what validation reads; the positions that stay for training."""
        everything = torch.arange(len(self.train_labels))
        if self.select_on == "test_best":
            self.val_classes, self._val_set, self.val_index = self.test_classes, self.test_labels, self.test_index
            return self.thinned(everything)
        if self.val_labels is not None:
            self._val_set, self.val_index = self.val_labels, torch.arange(len(self.val_labels))
            return self.thinned(everything)
        if not self.by_classes:
            labels, kept = self.train_labels, self.thinned(everything)
            train, self.val_index = hold_out(labels, self.val_fraction, self.split_seed, self.classes, kept)
            self._val_set = self.train_labels
            return train
        split = hold_out_classes(self.train_labels, len(self.classes), self.val_fraction, self.split_seed)
        self.classes, self.val_classes = split.names(self.classes)
        self.train_labels, self._val_set, self.val_index = split.train_labels, split.val_labels, split.val_index
        return self.thinned(split.train_index)

    def label_entries(self) -> Parts:
        """The pieces of the manifest that say what labels mean; they do not depend on what is held out."""
        parts = {"classes": names_entry(self._stored_classes)}
        own = {"val_classes": self._stored_val_classes} if self.val_labels is not None else {}
        for name, names in {**own, "test_classes": self.test_classes}.items():
            if names != self._stored_classes:
                parts[name] = names_entry(names)
        if self.test_is_query is not None:
            parts["test_is_query"] = entry(len(self.test_is_query), [self.test_is_query.numpy().tobytes()])
        return parts


def check_labels(labels: Tensor, classes: Sequence[str], part: str) -> None:
    """Raise ValueError naming the first label outside ``0 .. C-1``."""
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero()[:, 0]
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{part} label {int(labels[first])} at index {first} is outside 0..{len(classes) - 1} "
            f"({len(classes)} classes); {len(wrong)} labels are; correct the label file"
        )
