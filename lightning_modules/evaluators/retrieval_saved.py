"""What ``save=true`` leaves: a gallery that new photographs can ask.

embeddings.npz   embeddings, labels and index (``Batch.index``) of every evaluated image
neighbours.npz   queries, ids and scores of the nearest
index.faiss      the gallery for serving; ``faiss.read_index`` reads it
gallery.json     what each item of the gallery is, in the order of index.faiss, and what made its vector
pictures.npy     uint8 [G, H, W, 3], the gallery's pictures where they come from no files
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.frozen import state_digest
from lightning_modules.network import Network
from lightning_modules.retrieval.index import build, save_index
from lightning_modules.retrieval.inputs import exact_products
from lightning_modules.retrieval.scores import Array, Metric, Scores
from lightning_modules.retrieval.search import Neighbours
from lightning_modules.whole_file import whole_file

#: What reading files that were cut or changed raises, besides an error of this module.
DAMAGED = (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, RecursionError, BadZipFile, zlib.error)
AGAIN = "save it with evaluator=[retrieval] evaluator.retrieval.save=true"


@dataclass(frozen=True, slots=True)
class SavedGallery:
    """A gallery on disk.

    Attributes:
        embeddings: ``[G, E]``.
        metric: that it was searched with.
        classes: ``[G]`` name of each item's class.
        paths: ``[G]`` file of each item; None where its picture is in ``pictures``.
        pictures: uint8 ``[G, H, W, 3]``, or None.
        checkpoint: file or run directory of the network that made the vectors; None for none.
        weights: ``state_digest`` of what that network stores.
        preprocessing: of the images, as ``ImageData.preprocessing`` says it.
    """

    embeddings: torch.Tensor
    metric: Metric
    classes: list[str]
    paths: list[str] | None
    pictures: Array | None
    checkpoint: str | None
    weights: str
    preprocessing: dict[str, Any]


def save_vectors(
    folder: Path, embeddings: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, found: Neighbours
) -> None:
    """Write embeddings.npz and neighbours.npz."""
    with whole_file(folder / "embeddings.npz") as path:
        np.savez(path, embeddings=embeddings.numpy(), labels=labels.numpy(), index=index.numpy())
    with whole_file(folder / "neighbours.npz") as path:
        np.savez(path, queries=found.queries, ids=found.ids, scores=found.scores)


def save_gallery(
    network: Network,
    data: EvaluationData,
    vectors: tuple[torch.Tensor, Array, Array],
    rows: Array,
    metric: Metric,
    kind: str,
    options: dict[str, Any] | None,
) -> None:
    """Write index.faiss, pictures.npy where there are no files, and gallery.json, which says that all is there.

    Args:
        network: that made the vectors.
        data: of the evaluation; has an output folder.
        vectors: embeddings ``[N, E]``, names of classes and ``Batch.index`` ``[N]`` of every evaluated image.
        rows: ``[G]`` which of them are the gallery.
        metric: of the search.
        kind: of the index.
        options: its settings.
    """
    assert data.output is not None
    embeddings, names, index = vectors
    with exact_products(), whole_file(data.output / "index.faiss") as path:
        save_index(path, build(Scores(embeddings, rows, rows, metric), kind, options))
    own = index[rows].tolist()
    if data.paths is None and data.picture is not None:
        with whole_file(data.output / "pictures.npy") as path:
            np.save(path, np.stack([data.picture(one) for one in own]), allow_pickle=False)
    origin = {"checkpoint": None, "preprocessing": {}} | (data.origin or {})
    facts = {
        "metric": metric,
        "checkpoint": origin["checkpoint"] and _seen_from(data.output, origin["checkpoint"]),
        "weights": state_digest(network.state_dict()),
        "preprocessing": origin["preprocessing"],
        "rows": rows.tolist(),
        "classes": names[rows].tolist(),
        "paths": None if data.paths is None else [_seen_from(data.output, data.paths[one]) for one in own],
    }
    with whole_file(data.output / "gallery.json") as path:
        path.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _seen_from(folder: Path, path: str) -> str:
    """A path that was given as a relative one, from the folder: whoever moves both, or shares the file, may do so."""
    return path if os.path.isabs(path) else os.path.relpath(path, folder)


def load_gallery(folder: Path) -> SavedGallery:
    """Read what was saved; the files may come from anyone.

    Raises:
        FileNotFoundError: there is no saved gallery in the folder.
        ValueError: one that is damaged, or was saved without what made it.
    """
    if not (folder / "gallery.json").is_file():
        raise FileNotFoundError(f"there is no gallery.json in {folder.absolute()}; {AGAIN}")
    try:
        facts = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
        with np.load(folder / "embeddings.npz", allow_pickle=False) as file:
            embeddings = file["embeddings"][_rows(facts, len(file["labels"]))]
        pictures = None if facts["paths"] is not None else _pictures(folder / "pictures.npy")
        names = ("metric", "classes", "paths", "checkpoint", "weights", "preprocessing")
        kept = {name: facts[name] for name in names}
        gallery = SavedGallery(embeddings=torch.from_numpy(embeddings), pictures=pictures, **kept)
        _check(gallery)
        gallery = _opened(gallery, folder)
    except DAMAGED as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the gallery in {folder.absolute()} cannot be read ({reason}); {AGAIN}") from error
    return gallery


def _opened(gallery: SavedGallery, folder: Path) -> SavedGallery:
    """With paths as they open from here."""
    checkpoint, paths = gallery.checkpoint, gallery.paths
    here = None if checkpoint is None else os.path.normpath(folder / checkpoint)
    return replace(gallery, checkpoint=here, paths=paths and [os.path.normpath(folder / path) for path in paths])


def _rows(facts: Any, total: int) -> Array:
    rows = np.asarray(facts["rows"])
    if rows.dtype.kind != "i" or rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= total:
        raise ValueError(f"rows are no positions among {total} embeddings")
    return rows


def _pictures(path: Path) -> Array | None:
    pictures: Array | None = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
    return pictures


def _check(gallery: SavedGallery) -> None:
    total = len(gallery.embeddings)
    if gallery.embeddings.ndim != 2 or not gallery.embeddings.is_floating_point():
        raise ValueError(f"embeddings of type {gallery.embeddings.dtype} and shape {list(gallery.embeddings.shape)}")
    if gallery.metric not in ("cosine", "l2"):
        raise ValueError(f"metric={gallery.metric!r} is neither cosine nor l2")
    for name, values in (("classes", gallery.classes), ("paths", gallery.paths)):
        if values is not None and not (isinstance(values, list) and all(isinstance(one, str) for one in values)):
            raise ValueError(f"{name} are no list of names")
        if values is not None and len(values) != total:
            raise ValueError(f"{len(values)} {name} for {total} embeddings")
    if (pictures := gallery.pictures) is not None:
        fits = pictures.ndim == 4 and pictures.shape[::3] == (total, 3) and pictures.size > 0
        if not fits or pictures.dtype != np.uint8:
            raise ValueError(f"pictures of type {pictures.dtype} and shape {pictures.shape} for {total} embeddings")
    if not (gallery.checkpoint is None or isinstance(gallery.checkpoint, str)) or not isinstance(gallery.weights, str):
        raise ValueError("checkpoint and weights are no text")
