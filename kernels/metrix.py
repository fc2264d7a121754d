"""Metrix: metric losses on mixed examples, which are positive and negative at once, as far as their label says.

Venkataramanan, Psomas, Kijak, Amsaleg, Karantzalos, Avrithis. "It Takes Two to Tango: Mixup for Deep Metric Learning".
ICLR 2022, arXiv 2106.04990.

A mixed example ``v = f_lam(x, x')`` of an anchor a has the label ``y = lam y(x) + (1 - lam) y(x')``:

``L_mix(a) = tau(sigma_pos(sum_v y rho_pos(s(a, v))) + sigma_neg(sum_v (1 - y) rho_neg(s(a, v))))``

This file has the pairs, the draw of lam, and the loss of examples that were mixed outside (inputs, features);
kernels/metrix_gram.py mixes embeddings.

Shape legend: B anchors, N candidates (the columns), M pairs.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.counter_rng import fold
from kernels.pair_form import PairForm, sum_groups, weigh
from kernels.pairs import check_embeddings

#: Kinds of pairs, with the labels of the first and the second member; lam multiplies the first.
KINDS: dict[str, tuple[float, float]] = {
    "pos_neg": (1.0, 0.0),
    "anc_neg": (1.0, 0.0),
    "pos_pos": (1.0, 1.0),
    "neg_neg": (0.0, 0.0),
}
_STREAM = zlib.crc32(b"metrix")
_ENTRIES = 1 << 22


def mixed_label(kind: str, lam: float) -> float:
    """The label of a mixed example of this kind: lam, 1 or 0.

    Raises:
        ValueError: an unknown kind, lam outside [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"pairs must be one of {', '.join(KINDS)}; got {kind!r}")
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    first, second = KINDS[kind]
    return first if first == second else lam * first + (1.0 - lam) * second


def draw_mix(
    seed: int, update: int, alpha: float = 2.0, kinds: Sequence[str] = ("pos_neg", "anc_neg")
) -> tuple[str, float]:
    """The kind of pairs, each equally likely, and ``lam ~ Beta(alpha, alpha)`` of an update.

    A function of its arguments, so the same on every process and after a resume.

    Raises:
        ValueError: alpha not positive, no kind or an unknown one.

    Example:
        >>> kind, lam = draw_mix(seed=0, update=3)
        >>> kind in ("pos_neg", "anc_neg") and 0 < lam < 1
        True
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds must be at least one of {', '.join(KINDS)}; got {list(kinds)}")
    generator = random.Random(fold(_STREAM, seed, update))
    return kinds[generator.randrange(len(kinds))], generator.betavariate(alpha, alpha)


def list_pairs(positive_BN: Tensor, negative_BN: Tensor, kind: str, first_own: int = 0) -> Tensor:
    """All pairs to mix, ``[M, 3]`` int64: anchor, first and second member (columns), in this order of sorting.

    ``pos_neg``: each positive with each negative of the anchor; ``anc_neg``: the anchor itself with each of its
    negatives; ``pos_pos`` and ``neg_neg``: unordered pairs of two different ones, first < second. Anchors without a
    positive take part in ``anc_neg`` only.

    Raises:
        ValueError: an unknown kind.
    """
    mixed_label(kind, 0.5)
    anchor_R, first_R, partner_BN = pair_rows(positive_BN, negative_BN, kind, first_own)
    block = max(1, _ENTRIES // max(partner_BN.shape[1], 1))
    parts = []
    for start in range(0, max(len(anchor_R), 1), block):
        own = slice(start, start + block)
        row_M, second_M = allowed(partner_BN, anchor_R[own], first_R[own], kind).nonzero(as_tuple=True)
        parts.append(torch.stack([anchor_R[own][row_M], first_R[own][row_M], second_M], dim=1))
    return torch.cat(parts)


def pair_rows(positive_BN: Tensor, negative_BN: Tensor, kind: str, first_own: int) -> tuple[Tensor, Tensor, Tensor]:
    """Anchor and first member ``[R]`` of the rows of pairs, and who may be second member ``[B, N]``."""
    if kind == "anc_neg":
        anchor_R = torch.arange(len(positive_BN), device=positive_BN.device)
        return anchor_R, anchor_R + first_own, negative_BN
    first_BN = negative_BN & positive_BN.any(1, keepdim=True) if kind == "neg_neg" else positive_BN
    anchor_R, first_R = first_BN.nonzero(as_tuple=True)
    return anchor_R, first_R, positive_BN if kind == "pos_pos" else negative_BN


def allowed(partner_BN: Tensor, anchor_R: Tensor, first_R: Tensor, kind: str) -> Tensor:
    """Second members of some rows, boolean ``[R, N]``; of an unordered pair the later one."""
    mask_RN = partner_BN.index_select(0, anchor_R)
    if kind in ("pos_pos", "neg_neg"):
        mask_RN &= torch.arange(partner_BN.shape[1], device=partner_BN.device) > first_R[:, None]
    return mask_RN


def mixed_sums(form: PairForm, similarity_M: Tensor, y_M: Tensor, anchor_M: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two sums ``[B]`` of the generic loss over labelled examples, as logarithms where the form keeps them."""
    similarity_M = similarity_M.to(torch.promote_types(similarity_M.dtype, torch.float32))
    y_M = y_M.to(similarity_M.dtype)
    neg_M = form.neg(similarity_M)
    neg_M = neg_M if form.all_in_negative else weigh(form, neg_M, 1.0 - y_M)
    pos_M = weigh(form, form.pos(similarity_M), y_M)
    return sum_groups(form, pos_M, anchor_M, size), sum_groups(form, neg_M, anchor_M, size)


def mixed_loss_explicit(form: PairForm, similarity_M: Tensor, y_M: Tensor, anchor_M: Tensor, size: int) -> Tensor:
    """Loss ``[B]`` of each anchor on a list of labelled examples; 0 with zero gradient for one without any.

    For NCA forms append the clean examples to the list, with labels 1 and 0: with mixed positives and negatives under
    one lam alone the loss is the constant ``log((1 - lam) / lam)``.

    Args:
        form: the base loss.
        similarity_M: ``[M]`` cosine similarity of anchor and example.
        y_M: ``[M]`` labels in [0, 1]; no gradient reaches them.
        anchor_M: ``[M]`` int64, which anchor.
        size: number of anchors.

    Raises:
        ValueError: lengths that differ.

    Example:
        >>> from kernels.pair_form import contrastive
        >>> mixed_loss_explicit(contrastive(0.0), torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([1]), 2)
        tensor([0.0000, 0.2500])
    """
    if not similarity_M.shape == y_M.shape == anchor_M.shape or similarity_M.ndim != 1:
        raise ValueError(
            f"similarities, labels and anchors of shapes {list(similarity_M.shape)}, {list(y_M.shape)} and "
            f"{list(anchor_M.shape)}; they must be lists [M] of the same length"
        )
    with torch.autocast(similarity_M.device.type, enabled=False):
        return form.loss(*mixed_sums(form, similarity_M, y_M, anchor_M, size))


def utilization(queries: Tensor, examples: Tensor) -> Tensor:
    """How far queries are from what training covers: ``u(Q, X) = mean_q min_x ||f(q) - f(x)||^2``, a scalar.

    More examples can only lower it. Only the nearest example is searched by products of matrices, block by block; its
    distance is taken from the difference, so that a duplicate is at distance 0. No gradient.

    Args:
        queries: ``[Q, D]`` embeddings, as the loss sees them (unit vectors for cosine losses).
        examples: ``[X, D]``, at least one.

    Raises:
        ValueError: shapes that do not fit, no query or no example.

    Example:
        >>> utilization(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [4.0, 4.0]]))
        tensor(2.5000)
    """
    check_embeddings(queries, examples)
    if not (len(queries) and len(examples)):
        raise ValueError(f"{len(queries)} queries and {len(examples)} examples; both must be at least 1")
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(queries.dtype, examples.dtype), torch.float32)
        queries, examples = queries.to(wide), examples.to(wide)
        half_square_X = examples.square().sum(1) / 2
        block = max(1, _ENTRIES // len(examples))
        nearest = [(half_square_X - rows @ examples.T).argmin(1) for rows in queries.split(block)]
        return (queries - examples[torch.cat(nearest)]).square().sum(1).mean()
