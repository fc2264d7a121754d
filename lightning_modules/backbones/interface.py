"""The part of timm's model interface that does not depend on the architecture, for the models that timm lacks."""

from __future__ import annotations

import torch
from timm.layers import create_classifier
from torch import Tensor, nn
from torch.nn import functional as F


class TimmModel(nn.Module):
    """Pooling, dropout and the classifier ``linear`` behind ``forward_features``, which subclasses define.

    A subclass builds its layers, then calls ``add_classifier``.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        drop_rate: dropout before the classifier.
    """

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False

    def add_classifier(self, num_features: int, global_pool: str) -> None:
        """Pooling of timm's type ``global_pool``, and a classifier of ``num_features`` channels."""
        self.num_features = num_features
        self.global_pool, self.linear = create_classifier(num_features, self.num_classes, pool_type=global_pool)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier, an identity when ``num_classes`` is 0."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (0: none), with another pooling where ``global_pool`` is given."""
        self.num_classes = num_classes
        weight = next(self.parameters())
        self.add_classifier(self.num_features, self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool, self.linear = self.global_pool.to(weight), self.linear.to(weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the unpooled map."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_features(x)")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The unpooled map -> ``[B, num_classes]``, or pooled features ``[B, D]`` with ``pre_logits``."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
