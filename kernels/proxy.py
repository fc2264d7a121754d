"""Proxy losses: one trained vector for each class takes the place of the other samples of a pair.

Kim, Kim, Cho, Kwak. "Proxy Anchor Loss for Deep Metric Learning". CVPR 2020, arXiv 2003.13911. Teh, DeVries, Taylor.
"ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis". ECCV 2020, arXiv 2004.01113.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.margin_softmax import class_labels
from kernels.pairs import similarities


def proxy_anchor_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    proxies_CD: Tensor,
    *,
    alpha: float = 32.0,
    delta: float = 0.1,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
) -> Tensor:
    """Proxy-Anchor: every proxy gathers the samples of its class and pushes away all the others.

    ``1/|P+| sum_{p in P+} log(1 + sum_{x of p} exp(-alpha (s(x, p) - delta)))
    + 1/|P| sum_{p in P} log(1 + sum_{x not of p} exp(alpha (s(x, p) + delta)))``, P all proxies and P+ those with a
    sample of their class in the batch. The anchor is the proxy and the sums run over samples, so this is one value of
    the whole batch and no sum over samples: every sample bears that value, and their mean is it. Several processes
    give the gathered batch (with gradient) as ``columns``; the mean over all their samples is the loss once.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        labels_B: ``[B]`` classes below C; a sample of class -1 takes no part.
        proxies_CD: ``[C, D]``; they are normalized here.
        alpha: sharpness.
        delta: margin.
        columns: ``[N, D]`` the whole batch where the embeddings are a part of it (a memory may follow it).
        column_labels: ``[N]`` its classes.

    Returns:
        ``[B]``, in at least float32.

    Raises:
        ValueError: shapes that do not fit, labels that are not integers, columns without their labels.

    Example:
        >>> proxy_anchor_loss(torch.eye(2), torch.tensor([0, 1]), torch.eye(2)).shape
        torch.Size([2])
    """
    if (columns is None) != (column_labels is None):
        raise ValueError("columns and column_labels belong together; give both or neither")
    samples_ND, labels = (
        (embeddings_BD, labels_B) if columns is None or column_labels is None else (columns, column_labels)
    )
    similarity_NC = similarities(samples_ND, proxies_CD)
    labels_N = class_labels(labels, similarity_NC)
    known_N1 = (labels_N >= 0)[:, None]
    own_NC = labels_N[:, None] == torch.arange(len(proxies_CD), device=labels_N.device)
    pull_C = _log_one_plus(-alpha * (similarity_NC - delta), own_NC)
    push_C = _log_one_plus(alpha * (similarity_NC + delta), ~own_NC & known_N1)
    loss = pull_C.sum() / own_NC.any(0).sum().clamp_min(1) + push_C.mean()
    return loss.expand(len(labels_B))


def _log_one_plus(exponent_NC: Tensor, taken_NC: Tensor) -> Tensor:
    """``log(1 + sum exp)`` over the rows that are taken; 0 where none is."""
    exponent_NC = exponent_NC.masked_fill(~taken_NC, -torch.inf)
    return F.pad(exponent_NC, (0, 0, 1, 0)).logsumexp(0)  # the row of zeros is the one


def proxy_nca_pp_loss(
    embeddings_BD: Tensor, labels_B: Tensor, proxies_CD: Tensor, *, temperature: float = 1 / 9
) -> Tensor:
    """ProxyNCA++: minus the log-probability of the own proxy among all of them, by squared distance.

    ``-log softmax_c(-|x - p_c|^2 / T)[y]`` with x and p of length 1. T = 1/9 is the paper's (its code gives all vectors
    the length 3 instead). As ``|x - p|^2 = 2 - 2 s``, this is the normalized softmax of scale ``2 / T``, here 18.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        labels_B: ``[B]`` classes below C; -1 costs nothing.
        proxies_CD: ``[C, D]``; they are normalized here.
        temperature: T > 0.

    Returns:
        ``[B]``, in at least float32.

    Raises:
        ValueError: temperature not positive, shapes that do not fit, labels that are not integers.

    Example:
        >>> proxy_nca_pp_loss(torch.eye(2), torch.tensor([0, 1]), torch.ones(2, 2))
        tensor([0.6931, 0.6931])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    similarity_BC = similarities(embeddings_BD, proxies_CD)
    distance_BC = 2 - 2 * similarity_BC
    labels = class_labels(labels_B, similarity_BC)
    return F.cross_entropy(-distance_BC / temperature, labels, reduction="none", ignore_index=-1)
