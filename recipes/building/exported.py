"""Reading exported files back as a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.base import Head
from lightning_modules.network import Network
from lightning_modules.state.state_fit import fit_problems, value_problems
from lightning_modules.surgery.base import operate
from lightning_modules.weights_file import read_weights
from recipes.building.make import make
from recipes.checkpoints.stored import class_problems, preprocessing_problems
from recipes.configuration.plain import value_problems as value_problems_of
from recipes.configuration.signature import TARGET

FORMAT_VERSION = 1


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
    version = metadata.get("format_version", "")
    if version not in {str(known) for known in range(1, FORMAT_VERSION + 1)}:
        reads = f"this one reads up to {FORMAT_VERSION}; update the library"
        raise ValueError(f"{path} has format_version {version!r:.80} in the metadata, {reads}")
    facts = _facts(path, metadata)
    network = _build(path, metadata["architecture"], facts)
    named = _by_place(path, network, state, facts["head"]["keys"])
    target = {key: value for key, value in network.state_dict().items() if not key.startswith("normalize.")}
    if wrong := fit_problems(target, named) or value_problems(target, named):
        raise ValueError(f"{path} does not hold the weights of {metadata['architecture']}: {'; '.join(wrong[:4])}")
    network.load_state_dict(named, strict=False)  # all but the constants, which the metadata gave
    return network.eval(), facts["classes"], facts["preprocessing"]


def _build(path: Path, architecture: str, facts: dict[str, Any]) -> Network:
    """The network that the metadata describe, with no weights yet."""
    try:
        surgeries = {name: make(node, group="surgery") for name, node in facts["surgery"].items()}
        backbone = create_backbone(
            name=architecture,
            in_channels=facts["in_channels"],
            kwargs=facts["kwargs"],
            mean=facts["preprocessing"]["mean"],
            std=facts["preprocessing"]["std"],
        )
        network = Network(backbone, _make_head(facts["head"], backbone.num_features, len(facts["classes"])))
        operate(network.backbone, surgeries)
    except Exception as error:  # what timm, a head or a surgery makes of values that they do not know
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"{path}: the metadata describe no network ({reason})") from error
    return network


def _by_place(path: Path, network: Network, state: dict[str, Tensor], keys: dict[str, str]) -> dict[str, Tensor]:
    """The weights by their keys in the network; those of the head are in timm's classifier or in a file beside."""
    heads = network.head.state_dict()
    head = {} if keys else _read(head_path(path))[0]
    for ours, timms in keys.items():
        if timms not in state:
            raise ValueError(f"{path} lacks the weight {timms}, which its metadata name")
        value = state.pop(timms)
        if ours in heads:  # a linear head without bias was written with zeros
            head[ours] = value.reshape(heads[ours].shape) if value.numel() == heads[ours].numel() else value
    return {
        **{f"backbone.{key}": value for key, value in state.items()},
        **{f"head.{key}": value for key, value in head.items()},
    }


def head_path(path: Path) -> Path:
    """Where the head lies that does not fit into timm's classifier."""
    return path.with_suffix(".head.safetensors")


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What the metadata state, of the types that are written; the file may come from anyone."""
    kinds = {"kwargs": dict, "in_channels": int, "classes": list, "preprocessing": dict, "head": dict}
    try:
        facts = {key: json.loads(metadata[key]) for key in kinds}
        facts["surgery"] = json.loads(metadata.get("surgery", "{}"))  # files of before it was written have none
        problems = value_problems_of(facts)
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata cannot be read ({type(error).__name__}: {error})") from error
    stated = [(key, facts[key], kind) for key, kind in {**kinds, "surgery": dict}.items()]
    inner: dict[str, dict[str, type]] = {
        "preprocessing": {"mean": list, "std": list},
        "head": {"class": str, "settings": dict, "keys": dict},
    }
    for key, entries in inner.items():
        if isinstance(facts[key], dict):
            stated += [(f"{key}.{name}", facts[key].get(name), kind) for name, kind in entries.items()]
    for key, value, kind in stated:
        if type(value) is not kind:
            raise ValueError(f"{path}: {key} in the metadata must be a {kind.__name__}, got {value!r:.80}")
    problems = problems or class_problems(facts["classes"]) or preprocessing_problems(facts["preprocessing"])
    if problems := problems or _other_problems(facts):
        raise ValueError(f"{path}: in the metadata, {problems[0]}")
    return facts


def _other_problems(facts: dict[str, Any]) -> list[str]:
    """Of the head's keys and of the constants; that there is one a channel is seen where they are used."""
    names = facts["head"]["keys"]
    wrong = [f"head.keys.{ours} must be a name, got {timms!r:.80}" for ours, timms in names.items()
             if not isinstance(timms, str)]  # fmt: skip
    if len(set(map(str, names.values()))) < len(names):
        wrong.append("head.keys names one weight twice")
    return wrong + [f"preprocessing.{key} must be a list of numbers, got {facts['preprocessing'][key]!r:.80}"
                    for key in ("mean", "std")
                    if any(type(value) not in (int, float) for value in facts["preprocessing"][key])]  # fmt: skip


def _make_head(stated: dict[str, Any], in_features: int, num_classes: int) -> Head:
    head: Head = make({TARGET: stated["class"], **stated["settings"]}, in_features, num_classes, group="head")
    return head


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; exported files that belong together must lie in one folder")
    return read_weights(path)
