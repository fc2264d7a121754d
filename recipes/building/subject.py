"""What evaluate.py looks at: a network by reference, the images it is given, and whether the two fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.labels.unicode_form import same_names
from datamodules.sources.unlabelled import Unlabelled
from lightning_modules.evaluators.base import EvaluationData, Evaluator
from lightning_modules.evaluators.feature_cache import FeatureCache
from lightning_modules.network import Network
from lightning_modules.picked import Picked
from recipes.building.make import make_data
from recipes.building.networks import Reference, network_of, order_of
from recipes.building.probe import check_takes
from recipes.checkpoints.stored import without_download
from recipes.configuration.problems import ConfigError
from recipes.running.test_data import test_data

Part = dict[str, Any]
UNLABELLED = ["root", "eval_batch_size", "num_workers", "max_pixels"]  # keys of data that a folder of images takes
RETRIEVE = "evaluate its features with evaluator=[retrieval]"
EMBEDS = "the head of this checkpoint gives an embedding and none; take evaluator=[retrieval]"
OTHERS = f"compares with class means of training, and the test part of this data has other classes; {RETRIEVE}"
ALONE = (
    "no classes: its weights bring no classifier of one linear layer; set backbone.pretrained=true for timm's own, or "
    + RETRIEVE
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated.

    Attributes:
        refer: gives the network and what is known of it; a backbone is built, and its weights are fetched, only once
            the images have been found.
        data: the data part it is evaluated on.
        folder: what evaluators write goes into a folder below.
        seed: of the run.
        what: the network is, in messages.
        noise: the noise part of its training labels, which evaluators that read the training part see too.
        checkpoint: the reference as it was given, where it is one.
    """

    refer: Callable[[], Reference]
    data: Part
    folder: Path
    seed: int = 0
    what: str = "checkpoint"
    noise: Part | None = None
    checkpoint: str | None = None

    @property
    def reference(self) -> Reference:
        return self.refer()


@dataclass(frozen=True, slots=True)
class Source:
    """What an evaluator reads, and channels and size of the images."""

    data: EvaluationData
    channels: int
    image_size: int


def of_backbone(backbone: Part, data: Part) -> Subject:
    """A backbone on data; a weight tag in its name says which weights it has."""
    name = str(backbone.get("name", "backbone"))
    tagged = "." in name and backbone.get("pretrained") is False
    refer = cache(lambda: network_of({**backbone, "pretrained": True} if tagged else backbone, "backbone"))
    return Subject(refer, data, Path("evaluations") / name, what="backbone")


def of_checkpoint(checkpoint: str, data: Part | None, change: Callable[[Part], Part]) -> Subject:
    """A checkpoint on its own data after ``change``, or on others."""
    reference = network_of(checkpoint, "checkpoint")
    config = reference.config or {"data": {}, "seed": 0}
    folder = (reference.folder or Path()) / "evaluations"
    node, noise = (data, None) if data else (change(without_download(config["data"])), config.get("noise"))
    return Subject(lambda: reference, node, folder, config["seed"], noise=noise, checkpoint=checkpoint)


def source_of(
    run: Evaluator, subject: Subject, root: str | None, folder: Path, cache: FeatureCache | None = None
) -> Source:
    """Labelled: the test part of the data module. Unlabelled: every image below ``data.root``.

    Raises:
        ConfigError: no folder, or a network that says nothing about classes or images.
    """
    if run.reads == "labelled":
        module = make_data(subject.data, subject.seed, subject.noise)
        if run.compares == "training" and module.classes_of("test") != module.classes:
            raise ConfigError([f"evaluator {type(run).__name__} {OTHERS}"])
        return Source(test_data(module, folder, cache, subject.checkpoint), module.channels, module.image_size)
    classes, preprocessing = subject.reference.classes, subject.reference.preprocessing
    if classes is None or preprocessing is None:
        raise ConfigError([f"a backbone alone predicts {ALONE}"])
    if root is None:
        raise ConfigError(["data.root must be given: data.root=FOLDER with the images to predict"])
    keys = {key: subject.data[key] for key in UNLABELLED if key in subject.data}
    images = Unlabelled(preprocessing, **{**keys, "root": root})
    data = EvaluationData(images.dataloader(), classes, paths=images.paths, output=folder)
    return Source(data, 3, preprocessing["image_size"])


def networks_for(runs: dict[str, Evaluator], subject: Subject, sources: dict[str, Source]) -> dict[str, Network]:
    """The network for the evaluators of each kind of images, which share one pass over them."""
    found: dict[str, Network] = {}
    for name in sorted(runs, key=lambda name: runs[name].compares == "network"):  # these decide about the classes
        found[runs[name].reads] = network_for(runs[name], subject, sources[name])
    return found


def network_for(run: Evaluator, subject: Subject, source: Source) -> Network:
    """The network as an evaluator looks at it: with the classes of the data, in their order.

    Raises:
        ConfigError: it cannot give what is read, takes no such images, or knows other classes.
    """
    reference = subject.reference
    network = reference.network
    compares = run.reads == "labelled" and run.compares == "network"
    if not reference.classifies and (compares or run.reads_logits):
        scores = f"evaluator {type(run).__name__} reads class scores, and {EMBEDS}"
        raise ConfigError([f"a backbone alone knows {ALONE}" if reference.classes is None else scores])
    if compares:
        network = _with_classes(subject, tuple(source.data.classes))
    check_takes(network, source.channels, source.image_size)
    return network


def _with_classes(subject: Subject, found: tuple[str, ...]) -> Network:
    reference, network = subject.reference, subject.reference.network
    count = network.head.num_classes
    if reference.classes is None:
        if len(found) != count:
            raise ConfigError([f"the weights of {reference.origin} are for {count} classes, the data has {len(found)}"])
        print(f"{reference.origin} names no classes: its {count} are taken to be those of the data, in their order")
        return network
    if same_names(found, reference.classes):
        return network
    order = order_of(reference.classes, found)
    if order is None:
        raise ConfigError([_class_difference(subject.what, reference.classes, found)])
    print(f"the data has {len(found)} of the {count} classes of the {subject.what}: only they are compared")
    return network.with_head(Picked(network.head, order))


def _class_difference(what: str, trained: tuple[str, ...], found: tuple[str, ...]) -> str:
    unknown = next(name for name in found if order_of(trained, (name,)) is None)
    if len(trained) != len(found):
        return (
            f"the {what} was trained for {len(trained)} classes, the data has {len(found)}, and {unknown!r} is none of "
            f"them (they are named as {trained[0]!r}); {RETRIEVE}"
        )
    place = found.index(unknown)
    return (
        f"class names differ from those of the {what}: {trained[place]!r} there, {unknown!r} in the data at its place; "
        f"{RETRIEVE}"
    )
