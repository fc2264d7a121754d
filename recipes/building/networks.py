"""A network by reference: what a text names, wherever its weights are, with all that is known of it.

====================================  ================================================================================
a reference                           gives
====================================  ================================================================================
a run directory                       the best network of that run
``FILE.ckpt``                         the network of a checkpoint of ours
``FILE.safetensors``                  an exported network of ours
``NAME@FILE.safetensors``             timm's NAME (or ours) with weights in timm's key names and the file's classifier
``NAME``                              timm's NAME with timm's own weights and classifier; a folder of that name is
                                      ``./NAME``
====================================  ================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from datamodules.labels.unicode_form import in_composed_form
from lightning_modules.backbones.classifier import class_names, own_classifier, preprocessing_of
from lightning_modules.backbones.timm_backbone import check_name
from lightning_modules.frozen import state_digest
from lightning_modules.names import unknown_name
from lightning_modules.network import Network
from lightning_modules.weights_file import read_weights
from recipes.building.exported import load_exported
from recipes.building.make import make, rebuild_network
from recipes.checkpoints.form import check_evaluable
from recipes.checkpoints.load import load_checkpoint
from recipes.checkpoints.stored import stored_config
from recipes.configuration.signature import TARGET
from recipes.configuration.validate import group_problems
from recipes.running.directory import run_directory_of

Part = dict[str, Any]
TIMM = "lightning_modules.backbones.timm_backbone.create_backbone"
FEATURES = "lightning_modules.heads.embedding.Embedding"
_AT = re.compile(r"([A-Za-z]\w*(?:\.\w+)?)@(.+\.safetensors)")


@dataclass(frozen=True, slots=True)
class Reference:
    """A network and what is known of it.

    Attributes:
        network: in eval mode, on the CPU. Where no classifier came with the weights, the pooled features are its
            embedding.
        classes: that it was trained on, in the order of its logits; None where nothing says so.
        preprocessing: of its images; None where nothing says so.
        origin: the reference, as it was given.
        folder: the run directory, or where the file lies; None for a name.
        config: of the run that it is from; None for anything but a checkpoint.
    """

    network: Network
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any] | None
    origin: str
    folder: Path | None = None
    config: Part | None = None

    @property
    def checksum(self) -> str:
        """sha256 over names and values of the weights."""
        return state_digest(self.network.state_dict())

    @property
    def classifies(self) -> bool:
        """Whether the network gives class scores."""
        return "logits" in self.network.head.gives


def network_of(reference: str | Part, key: str = "reference", channels: int = 3) -> Reference:
    """The network that a reference names; the random state stays where it is.

    Args:
        reference: a text as above, or a backbone part, whose ``pretrained`` then says which weights it has.
        key: that the reference was given for, for messages.
        channels: of the images, for a name and its file; other references say it themselves.

    Raises:
        FileNotFoundError: no such file or run, or no way to timm's weights.
        ValueError: a name that is none, or a file that holds no network.
    """
    with torch.random.fork_rng(devices=[]):  # architectures draw an initialization before they are given weights
        return _network_of(reference, key, channels)


def _network_of(reference: str | Part, key: str, channels: int) -> Reference:
    if not isinstance(reference, str):
        return _of_backbone(reference, str(reference.get("name", "backbone")))
    if is_name(reference):
        check_name(reference)
        plain = reference.partition(".")[0]
        with _told(key, reference, f"; a file of weights is {key}={plain}@FILE.safetensors"):
            return _of_backbone(_part(reference, True, channels), reference)
    if found := _AT.fullmatch(reference):
        check_name(found[1])
        _check_file(Path(found[2]).expanduser(), reference, key)
        return _of_backbone(_part(found[1], found[2], channels), reference, Path(found[2]).parent)
    path = Path(reference).expanduser()
    if path.suffix == ".safetensors":
        return _of_file(path, reference, key)
    if path.suffix == ".ckpt" or path.exists() or "/" in reference:
        return _of_checkpoint(path, reference, key)
    models = timm.list_models()
    raise ValueError(
        f"{unknown_name(key, reference, models)}; a network is also a run directory, FILE.ckpt, FILE.safetensors or "
        "NAME@FILE.safetensors"
    )


def is_name(reference: str) -> bool:
    """Whether a reference is the name of a model, with or without a weight tag, and no path."""
    return not reference.endswith((".ckpt", ".safetensors")) and reference.partition(".")[0] in timm.list_models()


def order_of(classes: tuple[str, ...], wanted: tuple[str, ...]) -> list[int] | None:
    """The place of each wanted class among ``classes``; None where one of them is not there.

    Example:
        >>> order_of(("ant", "bee", "cat"), ("cat", "ant"))
        [2, 0]
    """
    places = {in_composed_form(name): number for number, name in enumerate(classes)}
    order = [places.get(in_composed_form(name)) for name in wanted]
    return None if None in order else order  # type: ignore[return-value]


@contextmanager
def _told(key: str, reference: str, advice: str = "") -> Iterator[None]:
    """What goes wrong inside says which reference it came from."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}={reference}: {error}{advice}") from error
    except ValueError as error:
        raise ValueError(f"{key}={reference}: {error}{advice}") from error


def _of_checkpoint(path: Path, origin: str, key: str) -> Reference:
    with _told(key, origin):
        content = load_checkpoint(path, check_evaluable)
    where = f"the checkpoint {path}"
    config = stored_config(content, where)
    classes = tuple(content["classes"])
    network = rebuild_network(config, len(classes), content["network"], where).eval()
    return Reference(network, classes, content["preprocessing"], origin, run_directory_of(path), config)


def _of_file(path: Path, origin: str, key: str) -> Reference:
    _check_file(path, origin, key)
    if "architecture" not in read_weights(path)[1]:
        raise ValueError(
            f"{key}={origin}: the file does not say of which model its weights are; write {key}=NAME@{origin}, with a "
            "name of timm.list_models() such as resnet18 or cifar_resnet20"
        )
    network, classes, preprocessing = load_exported(path)
    return Reference(network, tuple(classes), preprocessing, origin, path.parent)


def _check_file(path: Path, origin: str, key: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{key}={origin}: there is no file {path}")


def _of_backbone(part: Part, origin: str, folder: Path | None = None) -> Reference:
    """A backbone, with the classifier of its weights where they have one."""
    backbone = make(part, group="backbone")
    head = own_classifier(backbone, part.get("pretrained", False)) if part[TARGET] == TIMM else None
    classes = None if head is None else class_names(backbone, head.num_classes)
    if head is None:
        head = make({TARGET: FEATURES, "dim": None}, backbone.num_features, 1, group="head")
    preprocessing = preprocessing_of(backbone) if part[TARGET] == TIMM else None
    return Reference(Network(backbone, head).eval(), classes, preprocessing, origin, folder)


def _part(name: str, pretrained: bool | str, channels: int) -> Part:
    part: Part = {TARGET: TIMM, "name": name, "pretrained": pretrained, "in_channels": channels}
    if problems := group_problems("backbone", part):
        raise ValueError(problems[0])
    return part
