"""The trained layers that bring features of one width to those of a teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Batch norm, dropout, linear map, as the ND paper's code has them; the bias starts at zero.

    It belongs to a part, is trained with the network, and no exported network has it. Making one leaves the random
    state as it is, so that the network's own initialization stays the same.

    Args:
        width: of what comes in.
        to: width of what comes out.
        like: a parameter of the network: its device and dtype are taken.
        dropout_prob: of the normalized features.
    """

    def __init__(self, width: int, to: int, like: Tensor, dropout_prob: float = 0.5) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(dropout_prob)
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(width, to)
        nn.init.zeros_(self.linear.bias)
        self.to(like.device, like.dtype)

    def forward(self, features_BD: Tensor) -> Tensor:
        projected: Tensor = self.linear(self.dropout(self.norm(features_BD)))
        return projected

    @torch.no_grad()
    def at_rest(self, features_BD: Tensor) -> Tensor:
        """As in evaluation: with running statistics, without dropout, which would change the norms."""
        was_training = self.training
        try:
            projected: Tensor = self.eval()(
                features_BD.to(self.linear.weight.dtype)
            )  # those of autocast have fewer bits
        finally:
            self.train(was_training)
        return projected

    def extra_repr(self) -> str:
        return f"{self.linear.in_features} -> {self.linear.out_features}"
