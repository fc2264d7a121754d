"""KL-regularized distributionally robust weights of samples.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. Over the
weights w of M samples with losses l, and for a radius r > 0 (the factor of the divergence from uniform weights)

    F = max_w  sum_i w_i l_i - r sum_i w_i log(M w_i) = r log( (1/M) sum_i exp(l_i / r) ),    w_i = softmax(l / r)_i

Everything is computed in float64 in the log domain: exp(l / r) would overflow float32 where l / r > 88.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.implicit_gradient import implicit_gradient

__all__ = [
    "compositional_coefficients",
    "effective_sample_size",
    "implicit_gradient",  # through the lower level; where the weights are its coefficients, level C of the method
    "kl_dro_objective",
    "kl_dro_weights",
    "radius_of",
]

#: Steps of the bisection: 41 units of log r, halved so often, are below the spacing of float64.
BISECTIONS = 55
#: Radii that it looks at, in units of the spread of the losses (largest less smallest).
SMALLEST, LARGEST = 1e-9, 1e9


@torch.no_grad()
def kl_dro_weights(losses: Tensor, radius: float | Tensor) -> Tensor:
    """``softmax(l / r)``: the weights that are worst for these losses, which are the gradient of the objective.

    Args:
        losses: ``[B]``.
        radius: r > 0; small trusts the largest loss alone, large is uniform.

    Returns:
        ``[B]`` in the dtype of the losses; sums to 1 and carries no gradient.

    Raises:
        ValueError: the losses are not ``[B]``, or a radius is not positive.

    Example:
        >>> kl_dro_weights(torch.tensor([0.0, 0.0]), 1.0)
        tensor([0.5000, 0.5000])
    """
    _check(losses, radius)
    return (losses.double() / radius).softmax(0).to(losses.dtype)


def kl_dro_objective(losses: Tensor, radius: float | Tensor) -> Tensor:
    """``r log((1/M) sum_i exp(l_i / r))``: between the mean of the losses (r large) and the largest (r small).

    The largest loss is taken out first. Where all others are within r of it, ``log1p`` of the mean ``expm1`` keeps the
    digits that the logarithm of a mean near 1 loses (5e-8 at r = 1e8, from l / r of about 1e-3 down).

    Args:
        losses: ``[M]``; the gradient with respect to them is ``kl_dro_weights``.
        radius: r > 0.

    Returns:
        A scalar in the dtype of the losses.

    Raises:
        ValueError: the losses are not ``[M]`` with M >= 1, or a radius is not positive.
    """
    _check(losses, radius)
    if not len(losses):
        raise ValueError("the objective of no loss is not defined; give at least one")
    exact = losses.double()
    largest = exact.detach().max()
    below = (exact - largest) / radius  # in (-inf, 0]: nothing overflows, in neither of the two forms
    close = below.detach().min() > -1
    log_mean = torch.where(close, below.expm1().mean().log1p(), below.exp().mean().log())
    return (largest + radius * log_mean).to(losses.dtype)


@torch.no_grad()
def compositional_coefficients(
    losses: Tensor, log_tracker: Tensor | float | None, radius: float | Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """Coefficients ``p_i = exp(l_i / r) / (B u)``, u a running mean of ``(1/B) sum_i exp(l_i / r)`` over the updates.

    ``u <- (1 - rate) u + rate (1/B) sum_i exp(l_i / r)``, this batch included, as its logarithm U. The step uses
    ``sum_i p_i grad l_i``. With ``rate=1`` p is ``kl_dro_weights``; below, the sum of p is the batch's mean over u: a
    hard batch makes a larger step, though no p exceeds 1 / rate.

    Args:
        losses: ``[B]`` of the global batch, B >= 1.
        log_tracker: U so far; None starts with this batch (NaN says the same), -inf with ``u = 0``, which makes the
            first coefficients 1 / rate times larger.
        radius: r > 0.
        rate: eta in (0, 1].

    Returns:
        Coefficients ``[B]`` in the dtype of the losses, and U as a float64 scalar. Both without gradient. Losses that
        are not finite leave U as it was.

    Raises:
        ValueError: the losses are not ``[B]`` with B >= 1, or radius or rate are out of range.

    Example:
        >>> p, log_tracker = compositional_coefficients(torch.tensor([1.0, 1.0]), None, 1.0, 0.1)
        >>> p, log_tracker
        (tensor([0.5000, 0.5000]), tensor(1., dtype=torch.float64))
    """
    _check(losses, radius)
    if not len(losses):
        raise ValueError("a batch without a loss has no coefficients; leave the update out")
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} is out of range; allowed: 0 < rate <= 1")
    scaled, size = losses.double() / radius, math.log(len(losses))
    now = scaled.logsumexp(0) - size
    given = torch.as_tensor(math.nan if log_tracker is None else log_tracker, dtype=now.dtype, device=now.device)
    before = torch.where(given.isnan(), now, given)
    kept = math.log1p(-rate) if rate < 1 else -math.inf
    tracker = torch.where(now.isfinite(), torch.logaddexp(before + kept, now + math.log(rate)), given)
    return (scaled - size - tracker).exp().to(losses.dtype), tracker


def effective_sample_size(weights: Tensor) -> Tensor:
    """``1 / (B sum_i w_i^2)`` of weights that sum to 1: the share of the samples that counts.

    Args:
        weights: ``[B]``.

    Returns:
        A scalar from 1 / B (one sample has all) to 1 (uniform), in the dtype of the weights.

    Example:
        >>> effective_sample_size(torch.tensor([0.5, 0.5, 0.0, 0.0]))
        tensor(0.5000)
    """
    return (1 / (len(weights) * weights.double().square().sum())).to(weights.dtype)


@torch.no_grad()
def radius_of(losses: Tensor, target_ess: float) -> Tensor:
    """The radius at which ``effective_sample_size(kl_dro_weights(losses, r))`` is a given share.

    It grows with r, so ``BISECTIONS`` halvings in log r find it, without waiting for the device. A share below that of
    the largest losses among all (1 / B without ties) is not reached; the smallest radius comes closest to it.

    Args:
        losses: ``[B]``.
        target_ess: in (0, 1).

    Returns:
        A float64 scalar. 1 where all losses are equal: their weights are uniform at every radius.

    Raises:
        ValueError: the losses are not ``[B]`` with B >= 1, or the share is out of range.
    """
    _check(losses, 1.0)
    if not len(losses):
        raise ValueError("no radius belongs to no loss; give at least one")
    if not 0 < target_ess < 1:
        raise ValueError(f"target_ess={target_ess} is out of range; allowed: 0 < target_ess < 1")
    exact = losses.double()
    spread = exact.max() - exact.min()
    below = (exact - exact.max()) / torch.where(spread > 0, spread, 1.0)
    low, high = (torch.full_like(spread, math.log(end)) for end in (SMALLEST, LARGEST))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = effective_sample_size((below / middle.exp()).softmax(0)) > target_ess
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(spread > 0, spread * ((low + high) / 2).exp(), 1.0)


def _check(losses: Tensor, radius: float | Tensor) -> None:
    if losses.ndim != 1:
        raise ValueError(f"losses must have the shape [B], one for each sample; these have {list(losses.shape)}")
    if not isinstance(radius, Tensor) and not 0 < radius < math.inf:
        raise ValueError(f"radius={radius} is out of range; allowed: radius > 0")
