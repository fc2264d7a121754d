"""A part of a configuration -> the object it names. Nothing else in this library imports what a text names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch

from datamodules.base import ImageData
from lightning_modules.network import Network
from lightning_modules.state.state_fit import fit_problems, value_problems
from lightning_modules.surgery.base import operate
from recipes.configuration.allow import allowed, allowing, is_allowed
from recipes.configuration.kinds import Kinds, check_callable, kinds_of, names_of, nested_kinds
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ANYWHERE, TARGET, holds_part, is_part, place_of, signature
from recipes.configuration.validate import group_problems, part_problems

Part = dict[str, Any]


def make(node: Part, *positional: Any, group: str | None = None) -> Any:
    """Build one part: its keys as keyword arguments, nested parts first.

    Args:
        node: the part.
        positional: arguments in front of its keys.
        group: the config group it belongs to: its target lies in that folder and makes an object of that kind. None
            for any folder of parts.

    Raises:
        ConfigError: a target that is no part of this library and lies in no package that the user allowed, or keys that
            do not fit it; nothing is imported then. A target that makes another kind of object; it is not called then.
    """
    if problems := part_problems(node, group or "part", *([place_of(group)] if group else ANYWHERE)):
        raise ConfigError(problems)
    return _build(node, positional, kinds_of(group) if group else None, group or "part")


def maker(node: Part, group: str | None = None) -> Callable[..., Any]:
    """A function of the positional arguments that ``make`` will be given later, with what is allowed now."""
    packages = allowed()

    def later(*positional: Any) -> Any:
        with allowing(packages):
            return make(node, *positional, group=group)

    return later


def make_data(data: Part, seed: int, noise: Part | None = None) -> ImageData:
    """A data module that is set up, with the noise in its labels."""
    module: ImageData = make(data, seed, group="data")
    module.noise = None if noise is None else make(noise, group="noise")
    module.setup()
    return module


def build_network(
    backbone: Part,
    surgery: dict[str, Part],
    head: Part,
    num_classes: int,
    before_surgery: Callable[[Network], None] | None = None,
) -> tuple[Network, list[str]]:
    """Backbone with its pretrained weights, head, then surgery in the order of its phases; and what surgery reports."""
    body = make(backbone, group="backbone")
    network = Network(body, make(head, body.num_features, num_classes, group="head"))
    surgeries = {name: make(part, group="surgery") for name, part in surgery.items()}
    if before_surgery is not None:
        before_surgery(network)
    network.surgeries, network.surgery_config = surgeries, surgery
    return network, operate(network.backbone, surgeries)


def without_pretrained(backbone: Part) -> Part:
    """A backbone whose weights come from a checkpoint: its name downloads nothing, its path is not read."""
    return {**backbone, "pretrained": False} if "pretrained" in signature(backbone[TARGET]) else backbone


def rebuild_network(
    config: Part, num_classes: int, state: dict[str, torch.Tensor], where: str = "the checkpoint"
) -> Network:
    """The network of a stored configuration with stored weights; pretrained files are not needed again.

    Raises:
        ConfigError: a part that is none of its group; a stored configuration may come from anyone.
        ValueError: the weights are of another architecture, number of classes or kind of numbers, or not finite.
    """
    stored = {group: config.get(group) for group in ("backbone", "head", "surgery")}
    if problems := [line for group, value in stored.items() for line in group_problems(group, value)]:
        raise ConfigError(problems)
    network, _ = build_network(
        without_pretrained(config["backbone"]), config.get("surgery") or {}, config["head"], num_classes
    )
    target = network.state_dict()
    if wrong := fit_problems(target, state):
        raise ValueError(
            f"{where} does not fit its recipe's network with {num_classes} classes: {_some(wrong)}; "
            "evaluate it on data with the classes it was trained for"
        )
    if wrong := value_problems(target, state):
        raise ValueError(f"the weights of {where} cannot be computed with: {_some(wrong)}")
    network.load_state_dict(state)
    return network


def _some(lines: Iterable[str]) -> str:
    first, *rest = list(lines)
    return "; ".join([first, *rest[:3], *([f"and {len(rest) - 3} more"] if len(rest) > 3 else [])])


def _build(node: Part, positional: tuple[Any, ...], kinds: Kinds | None, path: str) -> Any:
    """``node`` has been checked against its source; here the objects that it names are."""
    target = _imported(node[TARGET], path)
    try:
        if kinds:
            check_callable(target, kinds, node[TARGET])
        inner = {key: nested_kinds(target, key) for key, value in node.items() if key != TARGET and holds_part(value)}
    except TypeError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    keys = {key: _nested(value, inner.get(key), f"{path}.{key}") for key, value in node.items() if key != TARGET}
    part = target(*positional, **keys)
    if kinds and not isinstance(part, kinds):
        raise ConfigError([f"{path}: {node[TARGET]} gave a {type(part).__name__}, not {names_of(kinds)}"])
    return part


def _nested(value: Any, kinds: Kinds | None, path: str) -> Any:
    """A value with every part in it built, also in lists and dicts."""
    if is_part(value):
        return _build(value, (), kinds, path)
    if isinstance(value, dict):
        return {key: _nested(item, kinds, f"{path}.{key}") for key, item in value.items()}
    return [_nested(item, kinds, path) for item in value] if isinstance(value, list) else value


def _imported(target: str, path: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except Exception as error:
        if not (is_allowed(target) or isinstance(error, ImportError)):
            raise
        raise ConfigError([f"{path}: importing {module} failed: {type(error).__name__}: {error}"]) from error
