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
from recipes.signature import ROOMS
from recipes.validate import TARGET, ConfigError, is_part

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
        parts = _parts(loss, regularizer or {}, mixing, attack, teacher, reweighting, gradient)
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


def make(node: Part, *positional: Any) -> Any:
    """Build one part: its keys as keyword arguments, nested parts first.

    Raises:
        ConfigError: a target outside our rooms. Nothing is imported then.
    """
    module, _, name = node[TARGET].rpartition(".")
    if module.split(".")[0] not in ROOMS:
        rooms = ", ".join(ROOMS)
        raise ConfigError([f"{node[TARGET]!r} is not a part of this library; targets start with {rooms}"])
    keys = {key: make(value) if is_part(value) else value for key, value in node.items() if key != TARGET}
    return getattr(import_module(module), name)(*positional, **keys)


def maker(node: Part) -> Any:
    """A function of the positional arguments that ``make`` will be given later."""
    return lambda *positional: make(node, *positional)


def _network(backbone: Part, surgery: dict[str, Part], head: Part, num_classes: int) -> tuple[Network, list[str]]:
    """Backbone with its pretrained weights, head, then surgery in the order of its phases."""
    body = make(backbone)
    network = Network(body, make(head, body.num_features, num_classes))
    surgeries = sorted((make(part) for part in surgery.values()), key=lambda item: PHASES.index(item.phase))
    return network, [line for item in surgeries for line in item.apply(network)]


def _parts(loss: Part, regularizer: dict[str, Part], *seats: Part | None) -> Parts:
    built = {key: make(part) for key, part in regularizer.items()}
    return Parts(make(loss), built, *(make(seat) if seat else None for seat in seats))


def rebuild_network(config: Part, num_classes: int, state: dict[str, torch.Tensor]) -> Network:
    """The network of a stored configuration with stored weights; pretrained files are not needed again.

    Raises:
        ValueError: the weights are of another architecture or number of classes.
    """
    network, _ = _network(
        {**config["backbone"], "pretrained": False}, config["surgery"] or {}, config["head"], num_classes
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
