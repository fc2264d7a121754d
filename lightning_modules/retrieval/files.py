"""Neighbours as a result, and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_modules.retrieval.scores import Array


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest gallery items of each query, best first.

    Attributes:
        queries: ``[Q]`` rows that asked.
        ids: ``[Q, K]`` rows of the gallery items, -1 behind the last one.
        scores: ``[Q, K]`` float32 cosines, or minus the squared distances; -inf behind the last one.
    """

    queries: Array
    ids: Array
    scores: Array


def save_neighbours(path: str | Path, neighbours: Neighbours) -> None:
    """Write an ``.npz`` with ``queries``, ``ids`` and ``scores``; ``load_neighbours`` reads it."""
    with open(path, "wb") as file:  # numpy would add a suffix to a name
        np.savez(file, queries=neighbours.queries, ids=neighbours.ids, scores=neighbours.scores)


def load_neighbours(path: str | Path) -> Neighbours:
    """Read what ``save_neighbours`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Neighbours(file["queries"], file["ids"], file["scores"])
