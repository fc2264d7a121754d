"""What all label noise has in common: labels in, labels out, whoever reads them and in whatever order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from kernels.counter_rng import fold
from kernels.ranges import RangeChecked


class LabelNoise(RangeChecked):
    """Wrong labels for training, put there after the split. Subclasses define ``apply``, and add to ``record``.

    Args:
        validation: ``clean`` leaves the labels of validation as they are; ``noisy`` treats them as those of training.
        seed: of the noise, apart from the run's, so that runs with different seeds have the same wrong labels.
    """

    def __init__(self, *, validation: Literal["clean", "noisy"] = "clean", seed: Annotated[int, "x >= 0"] = 0) -> None:
        if validation not in ("clean", "noisy"):
            raise ValueError(f"noise.validation is {validation!r}; choose clean or noisy")
        self.validation, self.seed = validation, seed

    def apply(self, labels_N: Tensor, classes: tuple[str, ...], seed: int) -> Tensor:
        """The noisy labels ``[N]`` in place of ``labels_N``, a new tensor.

        A pure function whose value at a position depends on ``seed``, the position and the label there alone, so that
        neither the split nor the number of processes changes it: draw from ``kernels.counter_rng``.

        Args:
            labels_N: ``[N]`` positions in ``classes``, of the full set.
            classes: names.
            seed: of the draws.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(labels_N, classes, seed)")

    def record(self) -> dict[str, Any]:
        """What was asked for, as plain data."""
        return {"name": type(self).__name__, "validation": self.validation, "seed": self.seed}

    def noisy(self, labels_N: Tensor, classes: tuple[str, ...], part: Literal["train", "val"] = "train") -> Tensor:
        """``apply`` where there is a label; -1 (a class that is held out) stays.

        Args:
            labels_N: ``[N]`` of the full set.
            classes: names.
            part: whose positions these are; a validation set of its own has other draws.

        Raises:
            ValueError: there is one class only.
        """
        if len(classes) < 2:
            raise ValueError(f"noise={type(self).__name__} needs a second class to mistake the one of this data for")
        seed = self.seed if part == "train" else fold(self.seed, 1)
        return torch.where(labels_N < 0, labels_N, self.apply(labels_N.clamp(min=0), classes, seed))
