"""Metrix with proxies: Proxy-Anchor, whose anchors are proxies, and ProxyNCA, whose examples are.

Venkataramanan et al. "It Takes Two to Tango: Mixup for Deep Metric Learning". ICLR 2022, arXiv 2106.04990.
Kim, Kim, Cho, Kwak. "Proxy Anchor Loss for Deep Metric Learning". CVPR 2020, arXiv 2003.13911.
Teh, DeVries, Taylor. "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis". ECCV 2020,
arXiv 2004.01113.

Shape legend: B samples, P proxies (one a class), D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.metrix_gram import Mixture
from kernels.pair_form import PairForm, nca, proxy_anchor
from kernels.pairs import check_embeddings, unit


def proxy_anchor_metrix(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    lam: float,
    *,
    alpha: float = 32.0,
    delta: float = 0.1,
    pairs: str = "pos_neg",
    renormalize: bool = True,
    top_k: int | None = None,
) -> Tensor:
    """Proxy-Anchor on mixes of samples; with ``anc_neg``, on mixes of each proxy with its negative samples.

    Args:
        embeddings: ``[B, D]``.
        labels: ``[B]`` integers, the proxy of each sample; one of class -1 takes no part.
        proxies: ``[P, D]``.
        lam: weight of the first member of a pair.
        alpha: sharpness.
        delta: margin.
        pairs: as in ``embedding_metrix``, of samples seen from a proxy.
        renormalize: take the cosine with the mix.
        top_k: only the k negative samples most similar to the proxy.

    Returns:
        ``[P]`` the share of each proxy in the loss, which is their sum: see ``proxy_shares``.

    Raises:
        ValueError: shapes or labels that do not fit, lam outside [0, 1], an unknown kind, top_k below 1.
    """
    own_BP, other_BP = _masks(embeddings, labels, proxies)
    form = proxy_anchor(alpha, delta)
    with torch.autocast(embeddings.device.type, enabled=False):
        mixture = Mixture(form, pairs, lam, renormalize, top_k)
        return proxy_shares(form, *mixture.sums(unit(proxies), unit(embeddings), own_BP.T, other_BP.T))


def proxy_shares(form: PairForm, pos_P: Tensor, neg_P: Tensor) -> Tensor:
    """The share ``[P]`` of each proxy in a Proxy-Anchor loss, from its two sums (``clean_sums``, ``mixed_sums``).

    Positive terms are divided by the number of proxies with anything positive among their examples (a sample of their
    class; or a mix, which for ``anc_neg`` every proxy has), negative terms by the number of all proxies.
    """
    with_positive = (pos_P > float("-inf")).sum().clamp(min=1)
    return form.sigma_of(pos_P, form.weight_pos) / with_positive + form.sigma_of(neg_P, form.weight_neg) / len(neg_P)


def proxy_nca_metrix(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    lam: float,
    *,
    temperature: float = 1.0 / 9.0,
    over_all: bool = True,
    pairs: str = "pos_neg",
    renormalize: bool = True,
    top_k: int | None = None,
) -> Tensor:
    """ProxyNCA++ on mixes of proxies; with ``anc_neg``, on mixes of each sample with the proxies of other classes.

    The printed formula sums over mixes alone. A sample has one positive proxy, all its mixes carry the label lam, and
    numerator and denominator are the same sum times lam and ``1 - lam``: a constant. Here the clean proxies stay in
    both sums, and the denominator runs over everything, as it does in the clean loss:

    ``-log((exp(s_p / T) + sum_v y exp(s_v / T)) / (sum_all proxies exp(s / T) + sum_v exp(s_v / T)))``

    This is the probability to pick something positive among proxies and mixes, where a mix is positive with the
    probability y. It is never negative, and without mixes the clean loss.

    Args:
        embeddings: ``[B, D]``.
        labels: ``[B]`` integers, the proxy of each sample; one of class -1 takes no part.
        proxies: ``[P, D]``.
        lam: weight of the first member of a pair.
        temperature: T > 0.
        over_all: ProxyNCA++; off, the denominator has negatives alone, with weight ``1 - y``, as in ProxyNCA.
        pairs: as in ``embedding_metrix``, of proxies seen from a sample.
        renormalize: take the cosine with the mix.
        top_k: mix only with the k proxies of other classes most similar to the sample; the clean ones all stay.

    Returns:
        ``[B]``.

    Raises:
        ValueError: shapes or labels that do not fit, lam outside [0, 1], an unknown kind, top_k below 1.
    """
    own_BP, other_BP = _masks(embeddings, labels, proxies)
    form = nca(temperature, over_all=over_all)
    with torch.autocast(embeddings.device.type, enabled=False):
        mixture = Mixture(form, pairs, lam, renormalize, top_k)
        return form.loss(*mixture.sums(unit(embeddings), unit(proxies), own_BP, other_BP))


def _masks(embeddings_BD: Tensor, labels_B: Tensor, proxies_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean ``[B, P]``: the proxy of each sample and the others; neither for a sample of class -1."""
    check_embeddings(embeddings_BD, proxies_PD)
    if labels_B.shape != embeddings_BD.shape[:1] or labels_B.is_floating_point():
        raise ValueError(
            f"labels of shape {list(labels_B.shape)} and dtype {labels_B.dtype} for {len(embeddings_BD)} embeddings; "
            "proxies need one integer class a sample"
        )
    own_BP = labels_B[:, None] == torch.arange(len(proxies_PD), device=labels_B.device)
    return own_BP, ~own_BP & (labels_B >= 0)[:, None]
