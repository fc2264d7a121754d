"""One form for losses on pairs and proxies: what a positive and a negative contribute, and how sums become a loss.

Venkataramanan, Psomas, Kijak, Amsaleg, Karantzalos, Avrithis. "It Takes Two to Tango: Mixup for Deep Metric Learning".
ICLR 2022, arXiv 2106.04990, table 1:

``L(a) = tau(sigma_pos(sum_x y rho_pos(s(a, x))) + sigma_neg(sum_x (1 - y) rho_neg(s(a, x))))``

over the examples x of an anchor a with similarity s and label y, 1 for a positive and 0 for a negative; labels in
between are those of mixed examples. Sums of exponentials are kept as their logarithms throughout.

Shape legend: B anchors, N candidates (the columns), M pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; torch's default takes x itself from 20 on, which is 2e-9 too little."""
    return F.softplus(x, threshold=50.0)


@dataclass(frozen=True)
class PairForm:
    """A loss as numbers. With ``u = -scale_pos (s - shift_pos)`` for positives, ``u = scale_neg (s - shift_neg)`` else:

    Attributes:
        rho: what a pair adds: ``max(u, 0)`` for a negative and ``u`` for a positive (hinge), ``log(1 + exp(u))``
            (softplus) or ``exp(u)`` (exp).
        sigma: what the sum x of a side becomes: ``x`` (identity), ``log(1 + x)`` (log1p) or ``log(x)`` (log).
        scale_pos, shift_pos, scale_neg, shift_neg: of the exponents.
        weight_pos, weight_neg: factors of the two sides.
        floor: tau is ``max(., 0)`` instead of the identity.
        all_in_negative: negative sums run over all examples, positives included (a softmax's denominator).
        needs_clean: mixed examples alone may leave no gradient, so the clean ones belong into the same sums.
    """

    rho: Literal["hinge", "softplus", "exp"]
    sigma: Literal["identity", "log1p", "log"]
    scale_pos: float = 1.0
    shift_pos: float = 0.0
    scale_neg: float = 1.0
    shift_neg: float = 0.0
    weight_pos: float = 1.0
    weight_neg: float = 1.0
    floor: bool = False
    all_in_negative: bool = False
    needs_clean: bool = False

    @property
    def in_logs(self) -> bool:
        """Whether ``pos``, ``neg`` and the sums of them are logarithms."""
        return self.rho == "exp"

    def pos(self, s: Tensor) -> Tensor:
        """``rho_pos`` or, for exponentials, its logarithm."""
        u = (s - self.shift_pos) * -self.scale_pos if self.shift_pos else s * -self.scale_pos
        return softplus(u) if self.rho == "softplus" else u

    def neg(self, s: Tensor) -> Tensor:
        """``rho_neg`` or, for exponentials, its logarithm."""
        u = (s - self.shift_neg) * self.scale_neg if self.shift_neg else s * self.scale_neg
        return {"softplus": softplus, "hinge": torch.relu, "exp": lambda x: x}[self.rho](u)

    def rho_pos(self, s: Tensor) -> Tensor:
        """What a positive adds to its side; decreasing in s (NCA's increases, and its sigma decreases)."""
        return self.pos(s).exp() if self.in_logs else self.pos(s)

    def rho_neg(self, s: Tensor) -> Tensor:
        """What a negative adds to its side; increasing in s."""
        return self.neg(s).exp() if self.in_logs else self.neg(s)

    def sigma_of(self, sum_B: Tensor, weight: float) -> Tensor:
        """A side from its sum, or from the logarithm of it; 0 for an empty sum in ``log(1 + x)`` and the identity."""
        if self.sigma == "log1p":
            return weight * softplus(sum_B)
        return weight * sum_B

    def loss(self, pos_B: Tensor, neg_B: Tensor) -> Tensor:
        """``tau(sigma_pos + sigma_neg)`` from the sums (or their logarithms) of the two sides.

        Where sigma is the logarithm, an anchor with an empty side has loss 0 and gradient 0: a quotient of two sums
        says nothing if one is missing.
        """
        if self.sigma == "log":
            both_B = pos_B.isfinite() & neg_B.isfinite()
            pos_B, neg_B = pos_B.masked_fill(~both_B, 0.0), neg_B.masked_fill(~both_B, 0.0)
        total_B = self.sigma_of(pos_B, self.weight_pos) + self.sigma_of(neg_B, self.weight_neg)
        return total_B.relu() if self.floor else total_B


def contrastive(margin: float = 0.5) -> PairForm:
    """Contrastive loss on similarities: ``-s`` for a positive, ``max(s - margin, 0)`` for a negative."""
    return PairForm("hinge", "identity", shift_neg=margin)


def lifted(margin: float = 0.5) -> PairForm:
    """Lifted structure: ``max(log sum exp(-s) + log sum exp(s - margin), 0)``."""
    return PairForm("exp", "log", shift_neg=margin, floor=True)


def binomial(beta: float = 2.0, gamma: float = 10.0, margin: float = 0.5) -> PairForm:
    """Binomial deviance: ``log(1 + exp(-beta (s - margin)))`` and ``log(1 + exp(gamma (s - margin)))``."""
    _positive(beta=beta, gamma=gamma)
    return PairForm("softplus", "identity", beta, margin, gamma, margin)


def multi_similarity(alpha: float = 2.0, beta: float = 40.0, base: float = 0.5) -> PairForm:
    """Multi-Similarity: ``1/alpha log(1 + sum exp(-alpha (s - base))) + 1/beta log(1 + sum exp(beta (s - base)))``."""
    _positive(alpha=alpha, beta=beta)
    return PairForm("exp", "log1p", alpha, base, beta, base, 1.0 / alpha, 1.0 / beta)


def proxy_anchor(alpha: float = 32.0, delta: float = 0.1) -> PairForm:
    """Proxy-Anchor: ``log(1 + sum exp(-alpha (s - delta)))`` and ``log(1 + sum exp(alpha (s + delta)))``.

    Anchors are proxies, examples are samples; each side has its own average over proxies, see kernels/metrix_proxy.py.
    """
    _positive(alpha=alpha)
    return PairForm("exp", "log1p", alpha, delta, alpha, -delta)


def nca(temperature: float = 1.0, *, over_all: bool = False) -> PairForm:
    """NCA: ``-log sum_pos exp(s / T) + log sum_neg exp(s / T)``.

    ProxyNCA has this form with proxies as examples; ProxyNCA++ has ``over_all``, where the second sum runs over all
    examples and the loss is the cross-entropy of a softmax, and T = 1/9.
    """
    _positive(temperature=temperature)
    rate = 1.0 / temperature
    return PairForm("exp", "log", -rate, 0.0, rate, 0.0, -1.0, 1.0, all_in_negative=over_all, needs_clean=True)


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")


def clean_loss(form: PairForm, similarity_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor) -> Tensor:
    """Loss ``[B]`` of each anchor on its positives and negatives; 0 for an anchor without either.

    Example:
        >>> similarity, positive = torch.tensor([[0.5, 0.75]]), torch.tensor([[True, False]])
        >>> clean_loss(contrastive(0.5), similarity, positive, ~positive)
        tensor([-0.2500])
    """
    with torch.autocast(similarity_BN.device.type, enabled=False):
        return form.loss(*clean_sums(form, similarity_BN, positive_BN, negative_BN))


def clean_sums(
    form: PairForm, similarity_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """The two sums ``[B]`` of the generic loss, as logarithms where the form keeps them."""
    similarity_BN = similarity_BN.to(torch.promote_types(similarity_BN.dtype, torch.float32))
    against_BN = positive_BN | negative_BN if form.all_in_negative else negative_BN
    return sum_rows(form, form.pos(similarity_BN), positive_BN), sum_rows(form, form.neg(similarity_BN), against_BN)


def sum_rows(form: PairForm, values_RN: Tensor, mask_RN: Tensor) -> Tensor:
    """Masked sums over rows ``[R]``, or logarithms of sums of exponentials (-inf for an empty row, gradient 0)."""
    if not form.in_logs:
        return values_RN.masked_fill(~mask_RN, 0.0).sum(1)
    values_RN = values_RN.masked_fill(~mask_RN, float("-inf"))
    if not values_RN.numel():
        return values_RN.sum(1) - float("inf")
    most_R1 = values_RN.detach().amax(1, keepdim=True)
    most_R1.masked_fill_(most_R1 == float("-inf"), 0.0)
    return _log((values_RN - most_R1).exp().sum(1)) + most_R1[:, 0]


def sum_groups(form: PairForm, values_M: Tensor, group_M: Tensor, size: int) -> Tensor:
    """The same for values in groups 0 .. size - 1, ``[size]``."""
    if not form.in_logs:
        return values_M.new_zeros(size).index_add(0, group_M, values_M)
    most_B = values_M.new_full((size,), float("-inf")).scatter_reduce(0, group_M, values_M.detach(), "amax")
    most_B.masked_fill_(most_B == float("-inf"), 0.0)
    return _log(values_M.new_zeros(size).index_add(0, group_M, (values_M - most_B[group_M]).exp())) + most_B


def _log(sum_B: Tensor) -> Tensor:
    """Logarithm with -inf and gradient 0 (not NaN, as ``torch.logsumexp`` has it) at 0."""
    empty_B = sum_B == 0
    return sum_B.masked_fill(empty_B, 1.0).log().masked_fill(empty_B, float("-inf"))


def weigh(form: PairForm, values: Tensor, weight: Tensor | float) -> Tensor:
    """Values of pairs, or of sums of them, times a weight in [0, 1]; no gradient reaches the weight."""
    if not form.in_logs:
        return values * weight
    log_weight = torch.as_tensor(weight, dtype=values.dtype, device=values.device).detach().log()
    return values + log_weight
