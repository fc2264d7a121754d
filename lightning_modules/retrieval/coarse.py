"""Nearest rows by bfloat16 scores, on CPUs that multiply those faster than float32.

Rows rounded to bfloat16 lie within a known distance of the rows, so that their cosine is off by a known amount at most.
A list of more candidates than are asked for then holds the right ones, unless scores lie closer together than that: the
search asks for the neighbours of such queries again, in float32.

Shape legend: B queries, L candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.tiles import MANY, SIDE, listed, selected

HALF = 2.0**-8  # spacing of bfloat16 numbers relative to their size: twice the rounding error
PROBED = 32  # queries that are asked first
OPEN = 0.05  # share of undecided ones among them, at which lists are long enough
WIDEST = 3  # candidates that are kept of one that is asked for, at most
Bounded = Iterator[tuple[Array, Array, Array, Array]]


def has_fast_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 numbers (AVX512-BF16 or AMX)."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def coarse(scores: Scores, count: int, wanted: int) -> Bounded | None:
    """Candidates by bfloat16 scores, with float32 scores; None where that is no use.

    Args:
        scores: of queries with the gallery.
        count: neighbours that must be decided.
        wanted: candidates, some more.

    Yields:
        queries ``[B]``, scores ``[B, wanted]`` descending, columns ``[B, wanted]`` (-inf and -1 behind the last item),
        and ``[B]`` what a column that was left out scores at most.
    """
    most = WIDEST * wanted
    if scores.device.type != "cpu" or scores.metric != "cosine" or not has_fast_bfloat16():
        return None
    if most >= MANY or 4 * most > len(scores.gallery) or len(scores.queries) < SIDE:
        return None
    error = _error(scores)
    width = _width(scores, count, wanted, error)
    return None if width is None else _candidates(scores, wanted, width, error)


def _error(scores: Scores) -> float:
    """Bound on the error of a bfloat16 score before it is rounded itself.

    |q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'|; the products are added in float32, rounded twice at each step.
    """
    stray, step = 0.0, max(CHUNK // scores.embeddings.shape[1], 1)
    for start in range(0, len(scores.embeddings), step):
        ids = np.arange(start, min(start + step, len(scores.embeddings)))
        off = scores.rows(ids)[0] - scores.rows(ids, torch.bfloat16)[0]
        stray = max(stray, float(off.norm(dim=1).max()))
    stray = 1.001 * stray + 2.0**-20
    return stray * (2 + stray) + 2 * scores.error


def _width(scores: Scores, count: int, wanted: int, error: float) -> int | None:
    """The shortest lists that leave few queries undecided, by a sample of them; None where the longest do not."""
    sample = np.unique(np.linspace(0, len(scores.queries) - 1, PROBED).astype(int))
    best = np.concatenate([score for _, score, _ in selected(scores, WIDEST * wanted, sample)])
    with np.errstate(invalid="ignore"):  # a short list: -inf + inf
        reached = best + HALF * np.abs(best) + 2 * error >= best[:, count - 1 : count]  # one error of each score
    needed = int(np.sort(reached.sum(1))[int((1 - OPEN) * (len(sample) - 1))])
    return None if needed >= WIDEST * wanted else max(needed + 1, wanted)


def _candidates(scores: Scores, wanted: int, width: int, error: float) -> Bounded:
    for queries, score, column in listed(scores, width, torch.bfloat16):
        last = score[:, -1].astype(np.float64)
        outside = last + HALF * np.abs(last) + error
        score = np.where(column >= 0, scores.near(queries, column), np.float32(-np.inf))
        order = np.argsort(-score, axis=1, kind="stable")[:, :wanted]
        score, column = np.take_along_axis(score, order, 1), np.take_along_axis(column, order, 1)
        with np.errstate(invalid="ignore"):
            outside = np.fmax(outside, score[:, -1].astype(np.float64) + scores.error)
        yield queries, score, column, outside
