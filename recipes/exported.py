"""Reading exported files back as a network."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

import lightning_modules.heads
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.base import Head
from lightning_modules.network import Network
from lightning_modules.surgery.base import operate
from recipes.make import make


def load_exported(path: str | Path) -> tuple[Network, list[str], dict[str, Any]]:
    """The network of an exported file, in eval mode, with class names and preprocessing.

    Nothing in the file is evaluated: architectures come from timm's list, heads from the files in our heads folder.

    Raises:
        FileNotFoundError: the file, or its head beside it, is missing.
        ValueError: not an exported file, or one whose content does not fit together.
    """
    path = Path(path)
    state, metadata = _read(path)
    if "architecture" not in metadata:
        raise ValueError(f"{path} was not exported by this library; its weights go to backbone.pretrained={path}")
    facts = _facts(path, metadata)
    surgeries = {name: make(node, group="surgery") for name, node in facts["surgery"].items()}
    backbone = create_backbone(
        name=metadata["architecture"],
        in_channels=facts["in_channels"],
        kwargs=facts["kwargs"],
        mean=facts["preprocessing"]["mean"],
        std=facts["preprocessing"]["std"],
    )
    head = _make_head(facts["head"], backbone.num_features, len(facts["classes"]))
    head_state = _read(head_path(path))[0] if not facts["head"]["keys"] else {}
    for ours, timms in facts["head"]["keys"].items():
        if timms not in state:
            raise ValueError(f"{path} does not hold the weights of {metadata['architecture']}: {timms} is missing")
        value = state.pop(timms)
        if ours in head.state_dict():  # a linear head without bias was written with zeros
            head_state[ours] = value.reshape(head.state_dict()[ours].shape)
    network = Network(backbone, head)
    operate(network.backbone, surgeries)
    try:
        network.backbone.load_state_dict(state, strict=True)
        head.load_state_dict(head_state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {metadata['architecture']}: {error}") from error
    return network.eval(), facts["classes"], facts["preprocessing"]


def head_path(path: Path) -> Path:
    """Where the head lies that does not fit into timm's classifier."""
    return path.with_suffix(".head.safetensors")


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What the metadata state, of the types that are written; the file may come from anyone."""
    kinds = {"kwargs": dict, "in_channels": int, "classes": list, "preprocessing": dict, "head": dict}
    inner: dict[str, dict[str, type]] = {
        "preprocessing": {"mean": list, "std": list},
        "head": {"class": str, "settings": dict, "keys": dict},
    }
    try:
        facts = {key: json.loads(metadata[key]) for key in kinds}
        facts["surgery"] = json.loads(metadata.get("surgery", "{}"))  # files of before it was written have none
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata cannot be read ({type(error).__name__}: {error})") from error
    stated = [(key, facts[key], kind) for key, kind in kinds.items()]
    for key, entries in inner.items():
        if isinstance(facts[key], dict):
            stated += [(f"{key}.{name}", facts[key].get(name), kind) for name, kind in entries.items()]
    stated.append(("surgery", facts["surgery"], dict))
    for key, value, kind in stated:
        if not isinstance(value, kind):
            raise ValueError(f"{path}: {key} in the metadata must be a {kind.__name__}, got {value!r:.80}")
    return facts


def _make_head(stated: dict[str, Any], in_features: int, num_classes: int) -> Head:
    module, _, name = stated["class"].rpartition(".")
    package = lightning_modules.heads
    allowed = {f"{package.__name__}.{file.stem}" for file in Path(package.__path__[0]).glob("[!_]*.py")}
    kind = getattr(import_module(module), name, None) if module in allowed else None
    if not (isinstance(kind, type) and issubclass(kind, Head)):
        raise ValueError(f"head {stated['class']!r} is not one of ours; heads lie in {', '.join(sorted(allowed))}")
    return kind(in_features, num_classes, **stated["settings"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; exported files that belong together must lie in one folder")
    try:
        with safe_open(path, "pt") as file:
            return dict(load_file(path)), dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
