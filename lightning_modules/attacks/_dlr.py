"""Objectives of AutoAttack that are raised: difference of logits ratio, and margins where there are too few classes.

Croce, Hein. ICML 2020, arXiv 2003.01690, section 4 (with their sign: an attack raises them).

Shape legend: B samples, C classes.
"""

from __future__ import annotations

from torch import Tensor


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3) + 1e-12)``, ``[B]``; for at least 3 classes."""
    ordered = logits.topk(3, dim=1).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``, ``[B]``; for at least 4 classes."""
    ordered = logits.topk(4, dim=1).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12
    return margin_targeted(logits, labels, targets) / scale


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``, ``[B]``; for at least 2 classes."""
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


def margin_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``z_t - z_y``, ``[B]``."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
