"""Whether a checkpoint is one that this run can go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.base import ImageData
from datamodules.manifest import manifest_difference
from lightning_modules.frozen import Frozen
from lightning_modules.state.state_fit import fit_problems
from lightning_modules.tasks.task import Task
from recipes.checkpoints.form import position_problem
from recipes.configuration.moved import read_stored
from recipes.configuration.problems import ConfigError
from recipes.running.resume import differences

Content = dict[str, Any]


@contextmanager
def fitting(path: Path | None) -> Iterator[None]:
    """Explains what loading a state raises: it may have the right form and be of another optimizer or part."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        where = path or "the checkpoint"
        raise ConfigError([f"cannot go on from {where}: its state does not fit: {reason}"]) from error


def check_same(content: Content, config: Content, data: ImageData, task: Task, world_size: int) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        content: the checkpoint, of the form of one to go on from.
        config: of this run.
        data: of this run, set up.
        task: of this run.
        world_size: number of processes of this run.

    Raises:
        ConfigError: naming what differs, with both values.
    """
    try:
        stored = read_stored(content["config"])
    except ValueError as error:
        raise ConfigError([f"the checkpoint's configuration cannot be read: {error}"]) from error
    problems = differences(stored, config)
    before = len(content["processes"])
    if before != world_size:
        problems.append(f"the checkpoint is of {before} process(es), and there are {world_size} now")
    problems += [
        f"the data have changed: {line}"
        for line in manifest_difference(content["data"]["manifest"], data.manifest_parts())
    ]
    if content["data"]["split"] != data.split_record():
        problems.append(f"the split was {content['data']['split']} and is {data.split_record()} now")
    context = task.context
    if not problems and (problem := position_problem(content, context.max_epochs, context.steps_per_epoch)):
        problems.append(f"in the checkpoint, {problem}")
    problems = problems or _other_frozen(content, config, task)
    problems = problems or [f"in the checkpoint, {line}" for line in _weight_problems(content, task)[:4]]
    if problems:
        raise ConfigError([f"cannot go on with this run: {line}" for line in problems])


def load_stored(network: Any, state: dict[str, Any], path: Path) -> None:
    """Give a network the weights of a checkpoint of the same run.

    Raises:
        ConfigError: they are of another network, or other numbers.
    """
    if problems := fit_problems(network.state_dict(), state)[:4]:
        raise ConfigError([f"the weights of {path} do not fit the network of the run: {line}" for line in problems])
    network.load_state_dict(state)


def _other_frozen(content: Content, config: Content, task: Task) -> list[str]:
    """Networks that were only looked at, and that have other weights now; their own are in no checkpoint."""
    problems = []
    for name, module in task.parts.networks.items():
        stored = content["training"]["task"].get(f"parts.networks.{name}._extra_state")
        if isinstance(module, Frozen) and stored is not None and stored != (now := module.checksum()):
            problems.append(
                f"{name}={config.get(name)} has weights with the checksum {now}, and those of the run had {stored}; "
                "give the same file"
            )
    return problems


def _weight_problems(content: Content, task: Task) -> list[str]:
    """What of the networks does not fit; whether the state of the parts does, they say themselves as they load it."""
    stored, target = content["training"]["task"], task.state_dict()
    networks = ("network.", "ema.", "parts.networks.")
    return fit_problems(*({key: value for key, value in state.items() if key.startswith(networks)}
                          for state in (target, stored)))  # fmt: skip


def where(content: Content) -> str:
    """The position of a checkpoint in words."""
    epoch, batches = content["position"]
    return f"update {content['update']}, {batches} batches into epoch {epoch}"
