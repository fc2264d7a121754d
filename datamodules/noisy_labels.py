"""Where label noise enters an image set, and what is recorded of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datamodules.imbalanced_labels import ImbalancedLabels
from datamodules.labels.label_noise import LabelNoise
from datamodules.manifest import Parts, entry


class NoisyLabels(ImbalancedLabels):
    """Label sets whose training labels may be wrong on purpose; labels of the test part never are.

    Attributes: those of ``ImageData``.
    """

    noise: LabelNoise | None = None

    def add_noise(self) -> None:
        """Put the noise into the labels, last, so that split and limits are those of the clean labels.

        Raises:
            ValueError: noise for a validation part that cannot have it.
        """
        self._clean_train, self._clean_val = self.train_labels, self._val_set
        if self.noise is None:
            return
        if self.noise.validation == "noisy":
            self._check_noisy_validation()
        self.train_labels = self.noise.noisy(self.train_labels, self.classes)
        if self.noise.validation == "noisy":
            own = self.val_labels is not None
            self._val_set = self.noise.noisy(self._val_set, self.classes, "val") if own else self.train_labels

    def _check_noisy_validation(self) -> None:
        if self.select_on == "test_best":
            reason = "validation is the test part (data.select_on=test_best), and test labels have no noise"
        elif self.val_classes != self.classes:
            reason = "validation has classes of its own here, and the noise is among those of training"
        elif len(self.val_index) == 0:
            reason = "nothing is held out for validation (data.val_fraction=0)"
        else:
            return
        raise ValueError(f"noise.validation=noisy: {reason}; set noise.validation=clean")

    @property
    def clean_train_labels(self) -> Tensor:
        return self._clean_train

    def clean_labels_of(self, part: str) -> Tensor | None:
        """``labels_of(part)`` before noise; None where the part has none."""
        if self.noise is None or part == "test":
            return None
        if part == "val":
            return self._clean_val if self.noise.validation == "noisy" else None
        return self._clean_train

    def noise_record(self) -> dict[str, Any]:
        """What noise was asked for, and the share of wrong labels in each part in use that has noise."""
        assert self.noise is not None
        measured = {}
        for part, index in (("train", self.train_index), ("val", self.val_index)):
            if (clean := self.clean_labels_of(part)) is not None:
                wrong = (clean != self.labels_of(part))[index]
                measured[part] = int(wrong.sum()) / max(len(wrong), 1)
        return {**self.noise.record(), "measured": measured}

    def label_entries(self) -> Parts:
        """With the noise: of how many labels, and all of them. Where validation has classes of its own, these depend on
        the split; where it has not, they do not."""
        if self.noise is None:
            return super().label_entries()
        changed = int((self._clean_train != self.train_labels).sum())
        labels = [self.train_labels] if self.noise.validation == "clean" else [self.train_labels, self._val_set]
        return super().label_entries() | {"noise": entry(changed, [own.numpy().tobytes() for own in labels])}
