"""Softmax over cosines with a margin on the angle to the own class.

Liu et al. "SphereFace: Deep Hypersphere Embedding for Face Recognition". CVPR 2017, arXiv 1704.08063. Wang et al.
"CosFace: Large Margin Cosine Loss for Deep Face Recognition". CVPR 2018, arXiv 1801.09414. Deng, Guo, Xue, Zafeiriou.
"ArcFace: Additive Angular Margin Loss for Deep Face Recognition". CVPR 2019, arXiv 1801.07698. Without a margin: Zhai,
Wu. "Classification is a Strong Baseline for Deep Metric Learning" (NormSoftmax). BMVC 2019, arXiv 1811.12649.
"""

from __future__ import annotations

from math import cos, pi, sin
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.contrastive import root
from kernels.pairs import similarities

Kind = Literal["none", "cos_face", "arc_face", "sphere_face"]
KINDS = ("none", "cos_face", "arc_face", "sphere_face")


def margin_logits(
    cosine_BC: Tensor,
    labels_B: Tensor,
    *,
    kind: Kind,
    margin: float = 0.0,
    scale: float = 64.0,
    norms: Tensor | None = None,
) -> Tensor:
    """Scaled cosines, that of the own class with its margin. Evaluate with ``scale * cosine_BC``, without labels.

    With theta the angle to the own class and s the scale, the own logit is

    - none: ``s cos(theta)`` (NormSoftmax of temperature 1 / s),
    - cos_face: ``s (cos(theta) - m)``,
    - arc_face: ``s cos(theta + m)`` up to ``theta = pi - m`` and ``s (cos(theta) - m sin(m))`` beyond, where the cosine
      would rise again. By sines and cosines: no inverse cosine, so finite at theta = 0 with its gradient,
    - sphere_face: ``s |x| ((-1)^k cos(m theta) - 2k)``, ``k = floor(m theta / pi)``; every other logit bears |x| too.

    Args:
        cosine_BC: ``[B, C]`` cosines of embeddings and class vectors.
        labels_B: ``[B]`` classes below C; a row of -1 gets no margin.
        kind: which margin.
        margin: m: a difference of cosines (cos_face, 0.35), radians (arc_face, 0.5), a factor (sphere_face, 4); 0 for
            none.
        scale: s; 64 for many classes, 30 for few, 1 for sphere_face.
        norms: ``[B]`` lengths |x| of the embeddings, for sphere_face only.

    Returns:
        ``[B, C]``, in at least float32.

    Raises:
        ValueError: an unknown kind, a margin outside its range, norms missing or not used, labels that do not fit.

    Example:
        >>> margin_logits(torch.tensor([[0.5, 0.25]]), torch.tensor([0]), kind="cos_face", margin=0.25, scale=4.0)
        tensor([[1., 1.]])
    """
    _check(kind, margin, norms)
    cosine_BC = cosine_BC.to(torch.promote_types(cosine_BC.dtype, torch.float32))
    labels_B1 = class_labels(labels_B, cosine_BC)[:, None]
    if kind != "none":
        own_B1 = cosine_BC.gather(1, labels_B1.clamp_min(0))
        moved_B1 = torch.where(labels_B1 >= 0, _with_margin(own_B1, kind, margin), own_B1)
        cosine_BC = cosine_BC.scatter(1, labels_B1.clamp_min(0), moved_B1)
    return scale * cosine_BC if norms is None else scale * norms.to(cosine_BC.dtype)[:, None] * cosine_BC


def margin_softmax_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    weight_CD: Tensor,
    *,
    kind: Kind,
    margin: float = 0.0,
    scale: float = 64.0,
) -> Tensor:
    """Cross-entropy of each sample over ``margin_logits``.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here (sphere_face keeps their lengths as a factor).
        labels_B: ``[B]`` classes below C; -1 costs nothing.
        weight_CD: ``[C, D]`` class vectors; they are normalized here.
        kind: which margin.
        margin: see ``margin_logits``.
        scale: see ``margin_logits``.

    Returns:
        ``[B]``, in at least float32.

    Raises:
        ValueError: as ``margin_logits``; shapes that do not fit.

    Example:
        >>> margin_softmax_loss(torch.eye(2), torch.tensor([0, -1]), torch.ones(3, 2), kind="none")
        tensor([1.0986, 0.0000])
    """
    cosine_BC = similarities(embeddings_BD, weight_CD)
    norms = embeddings_BD.to(cosine_BC.dtype).norm(dim=1) if kind == "sphere_face" else None
    logits_BC = margin_logits(cosine_BC, labels_B, kind=kind, margin=margin, scale=scale, norms=norms)
    return F.cross_entropy(logits_BC, labels_B.long(), reduction="none", ignore_index=-1)


def class_labels(labels_B: Tensor, scores_BC: Tensor) -> Tensor:
    """The labels as int64.

    Raises:
        ValueError: not one integer class for each row of the scores.
    """
    if labels_B.is_floating_point() or labels_B.shape != scores_BC.shape[:1]:
        raise ValueError(
            f"labels of shape {list(labels_B.shape)} and dtype {labels_B.dtype} for scores of shape "
            f"{list(scores_BC.shape)}; one integer class a row is needed (for mixed labels, weigh the losses of both)"
        )
    return labels_B.long()


def _with_margin(cosine: Tensor, kind: Kind, margin: float) -> Tensor:
    if kind == "cos_face":
        return cosine - margin
    if kind == "sphere_face":
        return _psi(cosine, int(margin))
    moved = cosine * cos(margin) - root(1 - cosine.square()) * sin(margin)
    return torch.where(cosine >= cos(pi - margin), moved, cosine - margin * sin(margin))


def _psi(cosine: Tensor, m: int) -> Tensor:
    """``(-1)^k cos(m theta) - 2k``, decreasing on [0, pi]; cos(m theta) is the Chebyshev polynomial of cos(theta)."""
    before, chebyshev = torch.ones_like(cosine), cosine
    for _ in range(m - 1):
        before, chebyshev = chebyshev, 2 * cosine * chebyshev - before
    k = torch.floor(m * cosine.detach().clamp(-1, 1).acos() / pi)
    return (1 - 2 * (k % 2)) * chebyshev - 2 * k


def _check(kind: str, margin: float, norms: Tensor | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if (kind == "sphere_face") != (norms is not None):
        raise ValueError(
            f"kind {kind} {'without' if norms is None else 'with'} norms; sphere_face, and only it, uses them"
        )
    allowed = {
        "none": (margin == 0, "0"),
        "cos_face": (margin >= 0, "at least 0"),
        "arc_face": (0 <= margin < pi, "radians from 0 to below pi"),
        "sphere_face": (margin >= 1 and int(margin) == margin, "a whole number from 1"),
    }
    fits, what = allowed[kind]
    if not fits:
        raise ValueError(f"margin of {kind} must be {what}, got {margin}")
