"""Where an image set is made imbalanced, and what is recorded of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.label_sets import LabelSets
from datamodules.manifest import Parts, entry
from datamodules.order.imbalance import PROFILES, Profile, imbalanced_counts, thin_out


class ImbalancedLabels(LabelSets):
    """Label sets whose training part may have few samples of some classes; the test part stays as it is.

    Attributes: those of ``ImageData``.
    """

    imbalance: Profile | None = None
    imbalance_ratio: float | None = None

    def check_imbalance(self) -> None:
        """Raise ValueError for one key without the other, and for a profile that is none."""
        if self.imbalance is not None and self.imbalance not in PROFILES:
            raise ValueError(f"data.imbalance is {self.imbalance!r}; choose exponential, step or null")
        if self.imbalance is not None and self.imbalance_ratio is None:
            raise ValueError(
                f"data.imbalance={self.imbalance} needs data.imbalance_ratio, the size of the largest class over that "
                "of the smallest, such as 100"
            )
        if self.imbalance is None and self.imbalance_ratio is not None:
            raise ValueError(
                f"data.imbalance_ratio={self.imbalance_ratio:g} does nothing by itself; set data.imbalance=exponential "
                "or data.imbalance=step"
            )

    def thinned(self, index: Tensor) -> Tensor:
        if self.imbalance is None or self.imbalance_ratio is None:
            return index
        counts_C = torch.bincount(self.train_labels[index], minlength=len(self.classes))
        keep_C = imbalanced_counts(counts_C, self.imbalance, self.imbalance_ratio, self.classes)
        self._kept = thin_out(self.train_labels, index, keep_C, self.split_seed)
        return self._kept

    def imbalance_record(self) -> dict[str, Any]:
        """What was asked for, and how many samples of each class, by label, there are in the set and in the parts that
        come from it."""
        held = {"val": self.val_index} if self.held_out and not self.by_classes else {}
        parts = {"kept": self._kept, "train": self.train_index, **held}
        counts = {name: self._sizes(index) for name, index in parts.items()}
        return {"profile": self.imbalance, "ratio": self.imbalance_ratio, "counts": counts}

    def _sizes(self, index: Tensor) -> list[int]:
        """Of each class, among these positions of the training set."""
        sizes: list[int] = torch.bincount(self.clean_train_labels[index], minlength=len(self.classes)).tolist()
        return sizes

    @property
    def clean_train_labels(self) -> Tensor:
        """``train_labels`` before noise, by which classes are thinned out."""
        return self.train_labels

    def label_entries(self) -> Parts:
        """With the imbalance: how many samples are kept, and which. Where validation has classes of its own, these
        depend on the split; where it has not, they do not."""
        if self.imbalance is None:
            return super().label_entries()
        return super().label_entries() | {"imbalance": entry(len(self._kept), [self._kept.numpy().tobytes()])}
