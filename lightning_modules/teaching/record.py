"""What is kept of a teacher's output, and how: tensors of a batch -> rows of bytes and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kernels.batch import Output
from lightning_modules.precision import at_least_float32

Dtype = Literal["float32", "float16"]
_TORCH = {"float32": torch.float32, "float16": torch.float16}
NORM = "feature_norm"


class Record:
    """One row for each sample: logits, features, or the norm of features that nobody reads otherwise.

    Args:
        widths: entries of each by name (``logits``, ``features``, ``norms``), in this order.
        dtype: of logits and features; norms are always in float32. float32 keeps what the teacher gave, bit for bit.

    Example:
        >>> record = Record({"logits": 3})
        >>> record.output(record.rows(Output(logits=torch.eye(3))), torch.device("cpu")).logits[1]
        tensor([0., 1., 0.])
    """

    def __init__(self, widths: Mapping[str, int], dtype: Dtype = "float32") -> None:
        self.widths, self.dtype = dict(widths), dtype
        self._types = {name: "float32" if name == "norms" else dtype for name in self.widths}

    @property
    def facts(self) -> list[list[Any]]:
        """Name, entries and type of everything in a row, as plain data."""
        return [[name, width, self._types[name]] for name, width in self.widths.items()]

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return sum(width * np.dtype(self._types[name]).itemsize for name, width in self.widths.items())

    def rows(self, output: Output) -> np.ndarray:
        """``[B, width]`` bytes.

        Raises:
            ValueError: what has to be kept is not there, or not finite, or does not fit.
        """
        return np.concatenate([self._bytes(name, output) for name in self.widths], axis=1)

    def output(self, rows: np.ndarray, device: torch.device) -> Output:
        """What these rows hold; norms are ``auxiliary["feature_norm"]`` ``[B]``."""
        found = {name: value.to(device).float() for name, value in self._tensors(rows).items()}
        norms = {NORM: found["norms"][:, 0]} if "norms" in found else {}
        return Output(features=found.get("features"), logits=found.get("logits"), auxiliary=norms)

    def distance(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """``[B]`` how far two rows are apart, as a share of the largest entry of the second."""
        far = np.zeros(len(rows))
        for one, other in zip(self._tensors(rows).values(), self._tensors(others).values(), strict=True):
            one, other = one.double(), other.double()
            largest = other.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
            far = np.maximum(far, ((one - other).abs().amax(1) / largest).numpy())
        return far

    def _bytes(self, name: str, output: Output) -> np.ndarray:
        value = _value(name, output)
        if value is None or value.shape[1] != self.widths[name]:
            got = "nothing" if value is None else f"{value.shape[1]}"
            raise ValueError(f"{self.widths[name]} {name} of the teacher are to be kept, and it gives {got}")
        if value.dtype == torch.float64:
            raise ValueError(
                f"the teacher gives {name} in float64, and rows in {self.dtype} would lose them; take teaching=live"
            )
        kept = value.to(_TORCH[self._types[name]])
        if not bool(kept.isfinite().all()):
            advice = "its largest number is 65504; take teaching.dtype=float32"
            reason = advice if bool(value.isfinite().all()) else "NaN or infinite: nothing can be learnt from them"
            raise ValueError(f"{name} of the teacher do not fit into {self._types[name]}: {reason}")
        return kept.cpu().contiguous().numpy().view(np.uint8).reshape(len(kept), -1)

    def _tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        found, start = dict[str, Tensor](), 0
        for name, width in self.widths.items():
            stop = start + width * np.dtype(self._types[name]).itemsize
            found[name] = torch.from_numpy(np.ascontiguousarray(rows[:, start:stop]).view(self._types[name]))
            start = stop
        return found


def _value(name: str, output: Output) -> Tensor | None:
    """``[B, width]``."""
    if name == "logits":
        return output.logits
    if name == "features" or output.features is None:
        return output.features
    return torch.linalg.vector_norm(at_least_float32(output.features), dim=1, keepdim=True)
