"""Configuration -> objects: one function whose signature is the schema of a run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import seed_everything

from lightning_modules.evaluators.base import Evaluator
from lightning_modules.network import Network
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.surgery.base import PHASES
from recipes.run import Run
from recipes.signature import ANYWHERE, TARGET, is_part, place_of
from recipes.validate import ConfigError, group_problems, part_problems

Part = dict[str, Any]


def assemble(
    command: str | None = None,
    *,
    recipe: str,
    data: Part,
    backbone: Part,
    head: Part,
    task: Part,
    loss: Part,
    optimizer: Part,
    schedule: Part,
    trainer: Part,
    surgery: dict[str, Part] | None = None,
    mixing: Part | None = None,
    attack: Part | None = None,
    teacher: Part | None = None,
    reweighting: Part | None = None,
    gradient: Part | None = None,
    regularizer: dict[str, Part] | None = None,
    evaluator: dict[str, Part] | None = None,
    callback: dict[str, Part] | None = None,
    seed: int = 0,
    name: str | None = None,
    output: str = "runs",
) -> Run:
    """Build everything a run needs; nothing is written to disk yet.

    Args:
        command: the command line, for the record.
        recipe: its name.
        data, backbone, head, task, loss, optimizer, schedule, trainer: one part each.
        surgery, regularizer, evaluator, callback: several parts by name.
        mixing, attack, teacher, reweighting, gradient: one part or None.
        seed: of initialization, order, augmentation and every draw of a part.
        name: of the run directory.
        output: folder of all runs.

    Raises:
        ConfigError: values or combinations of parts that cannot work, with the reason.
    """
    config = {key: value for key, value in locals().items() if key != "command"}
    try:
        seed_everything(seed, workers=True, verbose=False)
        data_module = make(data, seed)
        data_module.setup()
        network, report = _network(backbone, surgery or {}, head, data_module.num_classes)
        seats = {"mixing": mixing, "attack": attack, "teacher": teacher}
        seats |= {"reweighting": reweighting, "gradient": gradient}
        parts = _parts(network, loss, regularizer or {}, seats)
        context = Context(
            num_classes=data_module.num_classes,
            num_train=data_module.num_train,
            max_epochs=trainer["max_epochs"],
            steps_per_epoch=data_module.steps_per_epoch,
            network=network,
            seed=seed,
        )
        module = make(task, network, parts, maker(optimizer), maker(schedule), context)
        module.configure_optimizers()  # refuses names and values now, not after the run directory is made
        fitter = make(trainer, [make(part) for part in (callback or {}).values()])
        evaluators: dict[str, Evaluator] = {key: make(part) for key, part in (evaluator or {}).items()}
        if unlabelled := [key for key, part in evaluators.items() if part.reads != "labelled"]:
            raise ValueError(
                f"evaluator {', '.join(unlabelled)} reads a folder of images without labels, which a training run does "
                "not have; run it afterwards with python evaluate.py checkpoint=RUN evaluator=NAME data.root=FOLDER"
            )
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigError([str(error)]) from error
    _check_processes(fitter.num_devices * fitter.num_nodes, data)
    if fitter.num_devices == 1 and data_module.num_workers == 0:
        data_module.device = fitter.strategy.root_device
    return Run(config, data_module, module, fitter, evaluators, surgery_report=report, command=command)


def _check_processes(world: int, data: Part) -> None:
    """Equal shares for every process, so that the mean of the processes' gradients is that of the global batch."""
    if world > 1 and (data["batch_size"] % world or not data.get("drop_last", True)):
        raise ConfigError(
            [
                f"{world} processes need equal shares of every batch: set data.drop_last=true and a data.batch_size "
                f"that {world} divides (got {data['batch_size']})"
            ]
        )


def make(node: Part, *positional: Any, group: str | None = None) -> Any:
    """Build one part: its keys as keyword arguments, nested parts first.

    Args:
        node: the part.
        positional: arguments in front of its keys.
        group: the config group whose folder the target has to lie in; None for any folder of parts.

    Raises:
        ConfigError: a target that is no part of this library, or keys that do not fit it. Nothing is imported then.
    """
    if problems := part_problems(node, group or "part", *([place_of(group)] if group else ANYWHERE)):
        raise ConfigError(problems)
    module, _, name = node[TARGET].rpartition(".")
    keys = {key: _nested(value) for key, value in node.items() if key != TARGET}
    return getattr(import_module(module), name)(*positional, **keys)


def _nested(value: Any) -> Any:
    """A value with every part in it built, also in lists and dicts."""
    if is_part(value):
        return make(value)
    if isinstance(value, dict):
        return {key: _nested(item) for key, item in value.items()}
    return [_nested(item) for item in value] if isinstance(value, list) else value


def maker(node: Part) -> Any:
    """A function of the positional arguments that ``make`` will be given later."""
    return lambda *positional: make(node, *positional)


def _network(backbone: Part, surgery: dict[str, Part], head: Part, num_classes: int) -> tuple[Network, list[str]]:
    """Backbone with its pretrained weights, head, then surgery in the order of its phases."""
    body = make(backbone)
    network = Network(body, make(head, body.num_features, num_classes))
    surgeries = sorted((make(part) for part in surgery.values()), key=lambda item: PHASES.index(item.phase))
    return network, [line for item in surgeries for line in item.apply(network)]


def _parts(network: Network, loss: Part, regularizer: dict[str, Part], seats: dict[str, Part | None]) -> Parts:
    built = {key: make(part) for key, part in regularizer.items()}
    chosen = {name: make(seat) for name, seat in seats.items() if seat}
    return Parts(make(loss), built, **chosen, head=network.head)


def rebuild_network(config: Part, num_classes: int, state: dict[str, torch.Tensor]) -> Network:
    """The network of a stored configuration with stored weights; pretrained files are not needed again.

    Raises:
        ConfigError: a part that is none of its group; a stored configuration may come from anyone.
        ValueError: the weights are of another architecture or number of classes.
    """
    stored = {group: config.get(group) for group in ("backbone", "head", "surgery")}
    if problems := [line for group, value in stored.items() for line in group_problems(group, value)]:
        raise ConfigError(problems)
    network, _ = _network(
        {**config["backbone"], "pretrained": False}, config.get("surgery") or {}, config["head"], num_classes
    )
    wrong = [
        f"{key}: {list(state[key].shape)} in the checkpoint, {list(value.shape)} in the network"
        for key, value in network.state_dict().items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint does not fit its recipe's network with {num_classes} classes: {'; '.join(wrong[:4])}; "
            "evaluate it on data with the classes it was trained for"
        )
    network.load_state_dict(state)
    return network
