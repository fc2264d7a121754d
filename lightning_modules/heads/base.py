"""The contract of a head."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from kernels.batch import Output
from lightning_modules.part import Part


class Head(Part):
    """``(features [B, D], label) -> Output`` with ``features`` and ``logits`` and/or ``embedding`` set.

    Args:
        in_features: D, from the backbone.
        num_classes: C, from the data.

    Raises:
        ValueError: a size below 1.
    """

    gives = frozenset({"logits"})

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        if in_features < 1 or num_classes < 1:
            raise ValueError(
                f"{type(self).__name__}(in_features={in_features}, num_classes={num_classes}): both must be at least 1"
            )
        self.in_features, self.num_classes = in_features, num_classes

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        """Only margin heads read ``label`` (``[B]``, and only in training); others ignore it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(features_BD, label)")

    @property
    def embedding_dim(self) -> int:
        """E of the embedding.

        Raises:
            ValueError: the head gives none.
        """
        raise ValueError(f"head {type(self).__name__} gives no embedding; choose one that does (head=embedding)")

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that build this head again, as plain values; exported files store them.

        By default the attributes with the names of the constructor's keyword-only arguments.
        """
        parameters = inspect.signature(type(self).__init__).parameters.values()
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def plain(self) -> Head:
        """The head that is exported in this one's place: it gives the same in eval mode, from features alone.

        By default this head itself. One that does more in training than it has to afterwards gives ``Linear``, which
        timm can read.
        """
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}"
