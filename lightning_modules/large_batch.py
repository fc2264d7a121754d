"""The schedule that goes with a large batch.

Hoffer, Hubara, Soudry. "Train longer, generalize better: closing the generalization gap in large batch training of
neural networks". NeurIPS 2017, arXiv 1705.08741.
"""

from __future__ import annotations

from math import ceil, sqrt


def large_batch_lr(lr: float, batch_size: int, small_batch_size: int) -> float:
    """``lr * sqrt(batch_size / small_batch_size)``: the noise of an update stays that of the small batch.

    Example:
        >>> large_batch_lr(0.1, 2048, 128)
        0.4
    """
    return lr * sqrt(batch_size / small_batch_size)


def large_batch_epochs(epochs: int, batch_size: int, small_batch_size: int) -> int:
    """``epochs * ceil(batch_size / small_batch_size)``: regime adaptation, as many updates as with the small batch.

    Example:
        >>> large_batch_epochs(182, 2048, 128)
        2912
    """
    return epochs * ceil(batch_size / small_batch_size)
