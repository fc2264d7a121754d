"""New photographs ask a saved gallery: ``python evaluate.py query=IMAGE_OR_FOLDER index=FOLDER [k=8]``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from recipes.checkpoints.stored import preprocessing_problems
from recipes.configuration.boundary import refusing
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.evaluate import Part, device_of, new_folder

if TYPE_CHECKING:
    import numpy as np

    from lightning_modules.evaluators.retrieval_saved import SavedGallery
    from lightning_modules.network import Network
    from lightning_modules.retrieval.search import Neighbours

PRINTED = 10  # queries whose neighbours are printed
SHOWN = "Nearest images"


def configure_query(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a query."""
    return compose_config(words, root="query", target="recipes.query.query")


def query(
    *,
    query: str,
    index: str,
    k: Annotated[int, "x >= 1"] = 8,
    checkpoint: str | None = None,
    backbone: Part | None = None,
    output: str | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Find the nearest images of a gallery, exactly, by the network and preprocessing that made it.

    Args:
        query: an image, or a folder of images.
        index: folder of a retrieval evaluation with ``save=true``.
        k: neighbours of each image.
        checkpoint: the network's file or run directory, where it is no longer at the place the gallery names.
        backbone: the backbone, where the gallery was made by one without a checkpoint.
        output: folder for what is written; ``INDEX/queries/DATE`` without.
        device: auto, cpu, cuda, ...

    Returns:
        For each image its path and its neighbours, best first; also in ``neighbours.json``, with a ``report.html``.

    Raises:
        ConfigError: a gallery, network or image that cannot be used, with the reason.
    """
    from datamodules.sources.unlabelled import Unlabelled
    from lightning_modules.evaluators.base import EvaluationData
    from lightning_modules.evaluators.embedded import embedded
    from lightning_modules.evaluators.retrieval_saved import load_gallery
    from recipes.running.directory import write_json

    asked, place = (Path(os.path.expanduser(path)) for path in (query, index))
    if not asked.exists():
        raise ConfigError([f"there is no {asked.absolute()}; query= names an image, or a folder of images"])
    with refusing():
        gallery = load_gallery(place)
        if problems := preprocessing_problems(gallery.preprocessing) or _grey(gallery):
            raise ConfigError([f"in the gallery {index}, {line}" for line in problems])
        network = _network(gallery, index, checkpoint, backbone).to(device_of(device)).eval()
        images = Unlabelled(gallery.preprocessing, root=str(asked))
        embeddings, _, order = embedded(network, EvaluationData((), ()), "test", images.dataloader)
        found = _nearest(gallery, embeddings, k)
        folder = new_folder(Path(output) if output else place / "queries" / time.strftime("%Y-%m-%d_%H-%M-%S"))
        folder.mkdir(parents=True)
    names = [images.paths[position] for position in order.tolist()]
    answers = [_answer(gallery, name, found, row) for row, name in enumerate(names)]
    write_json(folder / "neighbours.json", answers)
    _print(answers)
    print(_report(folder, gallery, answers, [images.source.picture(position) for position in order.tolist()]))
    return answers


def _grey(gallery: SavedGallery) -> list[str]:
    """Photographs have three channels."""
    grey = gallery.preprocessing.get("channels") == "grey"
    return ["images have one channel (grey), and a query asks with photographs in colour"] if grey else []


def _network(gallery: SavedGallery, index: str, checkpoint: str | None, backbone: Part | None) -> Network:
    """The network that made the vectors, and no other."""
    from lightning_modules.evaluators.retrieval_saved import AGAIN
    from lightning_modules.frozen import state_digest
    from recipes.building.subject import of_backbone

    if checkpoint is not None and backbone is not None:
        raise ConfigError(["give either checkpoint=PATH or backbone=NAME: one of them made the gallery"])
    if backbone is not None:
        network, where = of_backbone(backbone, {}).reference.network, f"backbone={backbone.get('name', 'NAME')}"
    else:
        where = checkpoint or gallery.checkpoint or ""
        network = _stored_network(where, index, named=checkpoint is None)
    if state_digest(network.state_dict()) != gallery.weights:
        raise ConfigError([
            f"the weights of {where} are not those that made the gallery {index}: vectors of two networks cannot be "
            f"compared; give checkpoint=PATH of the one that did, or {AGAIN}"
        ])  # fmt: skip
    return network


def _stored_network(path: str, index: str, named: bool) -> Network:
    from recipes.building.networks import network_of

    if not path:
        raise ConfigError(
            [f"the gallery {index} was made by a backbone without a checkpoint; give backbone=NAME again"]
        )
    if named and not Path(path).exists():
        raise ConfigError([f"the checkpoint that made the gallery {index}, {path}, is gone; give checkpoint=PATH"])
    return network_of(path, "checkpoint").network


def _nearest(gallery: SavedGallery, embeddings: Any, k: int) -> Neighbours:
    import torch

    from lightning_modules.evaluators.retrieval import RetrievalEvaluator

    if embeddings.shape[1] != gallery.embeddings.shape[1]:
        raise ConfigError([
            f"the network gives embeddings of {embeddings.shape[1]} numbers, the gallery holds "
            f"{gallery.embeddings.shape[1]} of each image"
        ])  # fmt: skip
    asks = torch.arange(len(gallery.embeddings) + len(embeddings)) >= len(gallery.embeddings)
    rows = torch.cat([gallery.embeddings, embeddings.to(gallery.embeddings.dtype)])
    return RetrievalEvaluator(metric=gallery.metric).search(rows, k, is_query=asks, is_gallery=~asks)


def _answer(gallery: SavedGallery, name: str, found: Neighbours, row: int) -> dict[str, Any]:
    """One image and its neighbours, as plain data; ``item`` is the position in index.faiss."""
    neighbours = [
        {
            "item": item,
            "score": float(score),
            "class": gallery.classes[item],
            "path": None if gallery.paths is None else gallery.paths[item],
        }
        for item, score in zip(found.ids[row].tolist(), found.scores[row], strict=True)
        if item >= 0
    ]
    return {"query": name, "neighbours": neighbours}


def _print(answers: list[dict[str, Any]]) -> None:
    for answer in answers[:PRINTED]:
        print(repr(answer["query"])[1:-1])
        for place, one in enumerate(answer["neighbours"], 1):
            name = one["path"] or f"image {one['item']}"
            print(f"  {place:>2}  {one['score']:.4f}  {one['class']!r}  {name!r}")
    if len(answers) > PRINTED:
        print(f"and {len(answers) - PRINTED} more, in neighbours.json")


def _report(folder: Path, gallery: SavedGallery, answers: list[dict[str, Any]], pictures: list[np.ndarray]) -> Path:
    """The page with a row for each image."""
    from lightning_modules.evaluators.result import Evaluation, RankedImage, RankedQuery
    from recipes.report.page import write_report

    def shown(item: dict[str, Any]) -> RankedImage:
        return RankedImage(_picture(gallery, item["item"]), item["class"], None, item["score"], item["item"])

    rows = [
        RankedQuery(
            picture,
            answer["query"],
            place,
            answer["neighbours"][0]["score"],
            [shown(one) for one in answer["neighbours"]],
            "best score",
        )
        for place, (answer, picture) in enumerate(zip(answers, pictures, strict=True))
    ]
    return write_report(folder, {"query": Evaluation(queries={SHOWN: rows})})


def _picture(gallery: SavedGallery, item: int) -> np.ndarray:
    """As the network saw it; a grey square where the file is gone or there is no picture."""
    import numpy as np

    from datamodules.reading.decode import read_rgb, resize_and_crop

    size = gallery.preprocessing["image_size"]
    if gallery.pictures is not None:
        return np.array(gallery.pictures[item])
    resize, interpolation = gallery.preprocessing["resize_size"], gallery.preprocessing["interpolation"]
    path = Path(gallery.paths[item] if gallery.paths else "")
    try:
        if path.is_file():  # nothing waits for a pipe
            return resize_and_crop(read_rgb(path), resize, size, interpolation)
    except (OSError, ValueError):
        pass
    return np.full((size, size, 3), 128, dtype=np.uint8)
