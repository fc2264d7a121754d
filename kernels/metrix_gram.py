"""Metrix on embeddings, from the Gram matrix alone.

The similarity of an anchor with a mix of two unit vectors needs neither: ``s(a, lam e_i + (1 - lam) e_j) =
(lam S_ai + (1 - lam) S_aj) / n_ij`` with ``n_ij^2 = lam^2 + (1 - lam)^2 + 2 lam (1 - lam) S_ij``. So the loss of all
M mixed examples takes M numbers, where mixing takes ``M x D`` of them. The numbers are handled in blocks of rows; with
more than one block, each is computed again in the backward pass instead of being kept.

Shape legend: B anchors, N candidates (the columns), D dimensions, R rows of pairs with the same anchor and first
member, U different first members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.metrix import allowed, mixed_label, pair_rows
from kernels.pair_form import PairForm, clean_sums, sum_groups, sum_rows, weigh
from kernels.pairs import check_embeddings, check_labels, hardest, pair_masks, unit

#: Mixed examples handled at a time: 16 MiB an array in float32.
BLOCK = 1 << 22


def embedding_metrix(
    form: PairForm,
    embeddings: Tensor,
    labels: Tensor,
    lam: float,
    *,
    pairs: str = "pos_neg",
    renormalize: bool = True,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
    kept: Tensor | None = None,
    top_k: int | None = None,
    with_clean: bool | None = None,
) -> Tensor:
    """Loss of each anchor on mixes of the embeddings of its positives and negatives.

    Gradient reaches anchors and both members of a mix. An anchor without mixed examples has loss 0 and gradient 0:
    one without positives for all kinds but ``anc_neg``.

    Args:
        form: the base loss, with sample anchors; proxies are in kernels/metrix_proxy.py.
        embeddings: ``[B, D]``, of any length; they are mixed as unit vectors.
        labels: ``[B]`` integers.
        lam: weight of the first member of a pair, one for the whole batch, see ``draw_mix``.
        pairs: ``pos_neg`` (a positive and a negative), ``anc_neg`` (the anchor as its own positive and a negative),
            ``pos_pos`` or ``neg_neg`` (unordered pairs).
        renormalize: take the cosine with the mix; otherwise the product with it as it is, shorter than 1.
        columns: ``[N, D]`` candidates in place of the batch itself; anchor i must be row ``first_own + i``.
        column_labels: ``[N]`` their classes.
        first_own: where the anchors start among the columns.
        kept: boolean ``[B, N]``, positives and negatives that a miner kept; None for all.
        top_k: only the k negatives most similar to the anchor; None for all.
        with_clean: put the clean examples into the same sums. None does so where the form needs it: in NCA every mix
            of a positive and a negative under one lam counts the same above and below the fraction, so the loss of
            mixes alone is the constant ``log((1 - lam) / lam)``.

    Returns:
        ``[B]`` in float32 or the wider type of embeddings and columns.

    Raises:
        ValueError: shapes or labels that do not fit, lam outside [0, 1], an unknown kind, top_k below 1.

    Example:
        >>> from kernels.pair_form import contrastive
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> embedding_metrix(contrastive(), z, torch.tensor([0, 0, 1]), lam=0.5)
        tensor([-0.2500, -0.2500,  0.0000])
    """
    check_embeddings(embeddings, columns)
    check_labels(embeddings, labels, columns, column_labels, first_own)
    positive_BN, negative_BN = pair_masks(labels, column_labels, first_own)
    if kept is not None:
        if kept.shape != positive_BN.shape:
            raise ValueError(f"kept of shape {list(kept.shape)}; it must be {list(positive_BN.shape)}")
        positive_BN, negative_BN = positive_BN & kept, negative_BN & kept
    with torch.autocast(embeddings.device.type, enabled=False):
        unit_BD = unit(embeddings)
        mixture = Mixture(form, pairs, lam, renormalize, top_k, with_clean)
        sums = mixture.sums(unit_BD, unit_BD if columns is None else unit(columns), positive_BN, negative_BN)
        return form.loss(*sums)


@dataclass(frozen=True)
class Mixture:
    """What to mix and how; the arguments of ``embedding_metrix``."""

    form: PairForm
    pairs: str
    lam: float
    renormalize: bool = True
    top_k: int | None = None
    with_clean: bool | None = None

    def sums(
        self, anchors_BD: Tensor, columns_ND: Tensor, positive_BN: Tensor, negative_BN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two sums ``[B]`` of the generic loss over all mixed examples, from unit vectors."""
        form, label = self.form, mixed_label(self.pairs, self.lam)
        similarity_BN = anchors_BD @ columns_ND.T
        mined_BN = negative_BN if self.top_k is None else hardest(similarity_BN, negative_BN, self.top_k)
        pos_R, neg_R, anchor_R = self._row_sums(anchors_BD, columns_ND, similarity_BN, positive_BN, mined_BN)
        pos_B = sum_groups(form, weigh(form, pos_R, label), anchor_R, len(anchors_BD))
        neg_R = neg_R if form.all_in_negative else weigh(form, neg_R, 1.0 - label)
        neg_B = sum_groups(form, neg_R, anchor_R, len(anchors_BD))
        if form.needs_clean if self.with_clean is None else self.with_clean:
            clean = clean_sums(form, similarity_BN, positive_BN, negative_BN)
            pos_B, neg_B = (_add(form, a, b) for a, b in zip((pos_B, neg_B), clean, strict=True))
        return pos_B, neg_B

    def _row_sums(
        self, anchors_BD: Tensor, columns_ND: Tensor, similarity_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the second members ``[R]``, without the labels, and the anchor of each row."""
        anchor_R, first_R, partner_BN = pair_rows(positive_BN, negative_BN, self.pairs, 0)
        if self.pairs == "anc_neg":
            first_s_R, gram_UN, row_R = _squared(anchors_BD), similarity_BN, anchor_R
            squared_U = first_s_R
        else:
            first_s_R = similarity_BN.flatten().index_select(0, anchor_R * len(columns_ND) + first_R)
            gram_UN, squared_U, row_R = _gram(anchors_BD, columns_ND, similarity_BN, first_R)
        inverse_UN = self._inverse_length(gram_UN, squared_U, _squared(columns_ND)) if self.renormalize else None
        block = max(1, BLOCK // max(len(columns_ND), 1))
        several = len(anchor_R) > block and torch.is_grad_enabled() and similarity_BN.requires_grad
        parts = []
        for start in range(0, max(len(anchor_R), 1), block):
            own = slice(start, start + block)
            arguments = similarity_BN, inverse_UN, partner_BN, anchor_R[own], first_R[own], row_R[own], first_s_R[own]
            if several:
                parts.append(checkpoint(self._block, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._block(*arguments))
        pos, neg = zip(*parts, strict=True)
        return torch.cat(pos), torch.cat(neg), anchor_R

    def _inverse_length(self, gram_UN: Tensor, squared_U: Tensor, squared_N: Tensor) -> Tensor:
        """``1 / n`` of each mix; 0 for one without direction (opposite members and lam = 1/2), like ``unit``."""
        lam, rest = self.lam, 1.0 - self.lam
        square_UN = gram_UN * (2.0 * lam * rest) + (lam * lam * squared_U)[:, None] + rest * rest * squared_N
        return square_UN.masked_fill(square_UN <= 16 * torch.finfo(square_UN.dtype).eps, float("inf")).rsqrt()

    def _block(
        self,
        similarity_BN: Tensor,
        inverse_UN: Tensor | None,
        partner_BN: Tensor,
        anchor_R: Tensor,
        first_R: Tensor,
        row_R: Tensor,
        first_s_R: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sums ``[R]`` of both sides over the second members; a side that no label reaches is not computed."""
        form, label = self.form, mixed_label(self.pairs, self.lam)
        s_RN = torch.add((self.lam * first_s_R)[:, None], similarity_BN.index_select(0, anchor_R), alpha=1.0 - self.lam)
        if inverse_UN is not None:
            s_RN = s_RN * inverse_UN.index_select(0, row_R)
        mask_RN = allowed(partner_BN, anchor_R, first_R, self.pairs)
        none_R = s_RN.new_full((len(s_RN),), float("-inf") if form.in_logs else 0.0)
        pos_R = sum_rows(form, form.pos(s_RN), mask_RN) if label > 0 else none_R
        neg_R = sum_rows(form, form.neg(s_RN), mask_RN) if label < 1 or form.all_in_negative else none_R
        return pos_R, neg_R


def _gram(
    anchors_BD: Tensor, columns_ND: Tensor, similarity_BN: Tensor, first_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of first members with columns ``[U, N]``, their squared lengths, the row of each first member."""
    if anchors_BD is columns_ND:
        return similarity_BN, _squared(columns_ND), first_R
    used_U, row_R = first_R.unique(return_inverse=True)
    return columns_ND[used_U] @ columns_ND.T, _squared(columns_ND)[used_U], row_R


def _squared(rows: Tensor) -> Tensor:
    """Squared lengths of unit vectors: 1, with zero gradient, and 0 for a row without direction."""
    return rows.detach().square().sum(1)


def _add(form: PairForm, a_B: Tensor, b_B: Tensor) -> Tensor:
    """Sum of two sums, or its logarithm from theirs."""
    both_B2 = torch.stack([a_B, b_B], dim=1)
    return sum_rows(form, both_B2, torch.ones_like(both_B2, dtype=torch.bool))
