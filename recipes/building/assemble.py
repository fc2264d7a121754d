"""Configuration -> objects: one function whose signature is the schema of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import seed_everything

from datamodules.base import ImageData
from kernels.ranges import range_checked
from lightning_modules.evaluators.base import Evaluator
from lightning_modules.network import Network
from lightning_modules.part import MAIN, Context, Loss
from lightning_modules.parts import Parts
from lightning_modules.teaching.live import Live
from recipes.building.fits import check_fit
from recipes.building.further_networks import FurtherNetworks
from recipes.building.initialization import built_network
from recipes.building.make import make, make_data, maker
from recipes.building.probe import check_takes
from recipes.configuration.boundary import refusing
from recipes.configuration.catalogue import holds_several
from recipes.configuration.problems import ConfigError
from recipes.configuration.stages import listed
from recipes.processes.stop import seconds
from recipes.running.directory import stage_beside
from recipes.running.run import Run

Part = dict[str, Any]


@range_checked
def assemble(
    command: str | None = None,
    resume: Path | None = None,
    needs_images: bool = False,
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
    noise: Part | None = None,
    surgery: dict[str, Part] | None = None,
    mixing: Part | None = None,
    attack: Part | None = None,
    reweighting: Part | None = None,
    gradient: Part | None = None,
    regularizer: dict[str, Part] | None = None,
    validation: dict[str, Part] | None = None,
    select: list[str] | None = None,
    evaluator: dict[str, Part] | None = None,
    callback: dict[str, Part] | None = None,
    init: str | None = None,
    teacher: str | list[str] | None = None,
    teaching: Part | None = None,
    peer: str | None = None,
    seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
    name: str | None = None,
    output: str = "runs",
    max_time: Annotated[int, "x > 0"] | Annotated[float, "x > 0"] | str | None = None,
    save_every: Annotated[int, "x >= 1"] | None = None,
    stop_after: Annotated[int, "x >= 1"] | None = None,
    **others: dict[str, Any] | None,
) -> Run:
    """Build everything a run needs; nothing is written to disk yet.

    Args:
        command: the command line, for the record.
        resume: the run directory to go on in.
        needs_images: refuse data without images now, before a network is built; otherwise a set whose facts are
            declared can be looked at without them, and ``run`` refuses.
        recipe: its name.
        data, backbone, head, task, loss, optimizer, schedule, trainer: one part each.
        surgery, regularizer, validation, evaluator, callback: several parts by name. Without ``validation`` the task
            says what validates.
        select: metrics of the validation that decide which epoch is the best; None for what its evaluators select by.
        noise, mixing, attack, reweighting, gradient: one part or None.
        init: a network by reference (see ``recipes.building.networks``) whose weights this one starts from.
        teacher: one that is frozen, for parts that read ``teacher/main``; of several the logits are averaged.
        teaching: how it is looked at; None for one that is computed in every update.
        peer: a second one that is trained, for parts that read ``peer/main``; a name is a new one of that backbone.
        seed: of initialization, order, augmentation and every draw of a part.
        name: of the run directory.
        output: folder of all runs.
        max_time: wall-time budget from the start of training on: seconds, or such as 90s, 11h30m. Then the run saves
            and ends with exit code 75.
        save_every: updates between two checkpoints inside an epoch; None saves at the end of each epoch only. A signal
            saves at any time.
        stop_after: save and end (exit code 75) after so many updates of the run.
        others: a part, or several by name, of each further group in configs/group/.

    Raises:
        ConfigError: values or combinations of parts that cannot work, with the reason.
    """
    config = dict(locals())
    for given in ("command", "resume", "needs_images", "others"):
        del config[given]
    config |= others
    with refusing():
        seconds(max_time)
        seed_everything(seed, workers=True, verbose=False)
        data_module = make_data(data, seed, noise)
        if needs_images and data_module.absent:
            raise ConfigError([data_module.absent])
        # The weights of a run that goes on are in its checkpoint: what it began with is not needed again.
        goes_on = resume is not None and any((resume / "checkpoints").glob("last*.ckpt"))
        init, peer = (stage_beside(reference, resume) for reference in (init, peer))
        teachers = [str(stage_beside(reference, resume)) for reference in listed(teacher)]
        network, reports, loaded = built_network(backbone, surgery or {}, head, init, data_module, goes_on)
        further = FurtherNetworks(data_module, seed, goes_on)
        if teachers:
            further.add_teacher(teachers, make(teaching, group="teaching") if teaching else Live())
        elif teaching is not None:
            raise ValueError("teaching says how a teacher is looked at, and there is none; set teacher=, or ~teaching")
        if peer is not None:
            further.add_peer(peer, backbone, surgery or {}, head)
        seats = {"mixing": mixing, "attack": attack}
        seats |= {"reweighting": reweighting, "gradient": gradient}
        parts = _parts(network, loss, regularizer, seats, others, further)
        check_takes(network, data_module.channels, data_module.image_size, parts.maps.get(MAIN, ()))
        context = _context(data_module, network, trainer["max_epochs"], seed)
        makers = maker(optimizer, "optimizer"), maker(schedule, "schedule")
        validating = _each("validation", validation) or None
        module = make(task, network, parts, *makers, context, validating, select, group="task")
        module.configure_optimizers()  # refuses names and values now, not after the run directory is made
        fitter = make(trainer, list(_each("callback", callback).values()), group="trainer")
        further.begin_teacher(parts, str(fitter.precision))
        evaluators: dict[str, Evaluator] = _each("evaluator", evaluator)
        _check_processes(fitter.num_devices * fitter.num_nodes, data_module, parts.loss)
        check_fit(module, data_module, evaluators, fitter.num_devices * fitter.num_nodes)
    if fitter.num_devices == 1 and data_module.num_workers == 0:
        data_module.device = fitter.strategy.root_device
    reports |= {"networks": further.lines}
    return Run(config, data_module, module, fitter, evaluators, reports, loaded, command=command, resume=resume)


def _check_processes(world: int, data: ImageData, loss: Loss) -> None:
    """A share of every batch for every process, and a loss that is defined on shares."""
    if world > 1 and not (loss.per_sample or loss.gathers):
        raise ValueError(
            f"{world} processes see only their share of a batch, and {type(loss).__name__} is defined on the whole "
            "one; train with trainer.devices=1"
        )
    data.order.check_shares(world)
    if 0 < len(data.val_index) < world:
        raise ValueError(
            f"{len(data.val_index)} validation sample(s) cannot be shared by {world} processes; use fewer "
            "(trainer.devices), or hold out more with data.val_fraction"
        )


def _each(group: str, named: dict[str, Part] | None) -> dict[str, Any]:
    """Every part of a group that holds several, by its name."""
    return {name: make(part, group=group) for name, part in (named or {}).items()}


def _context(data: ImageData, network: Network, max_epochs: int, seed: int) -> Context:
    return Context(
        num_classes=data.num_classes,
        num_train=data.num_train,
        max_epochs=max_epochs,
        steps_per_epoch=data.steps_per_epoch,
        network=network,
        seed=seed,
        batch_size=data.order.samples_of(0),
        last_batch_size=data.order.samples_of(data.steps_per_epoch - 1),
        val_is_query=data.val_is_query,
        val_classes=data.classes_of("val"),
        data_key=data.key,
        image_size=data.image_size,
    )


def _parts(
    network: Network,
    loss: Part,
    regularizer: dict[str, Part] | None,
    seats: dict[str, Part | None],
    others: dict[str, dict[str, Any] | None],
    further: FurtherNetworks,
) -> Parts:
    built = _each("regularizer", regularizer)  # first: the order decides what each draws for its weights
    chosen = {name: make(seat, group=name) for name, seat in seats.items() if seat}
    beside = dict[str, Any]()
    for group, node in others.items():
        several = holds_several(group)
        named = {f"{group}/{name}": part for name, part in (node or {}).items()} if several else {group: node}
        beside |= {name: make(part, group=group) for name, part in named.items() if part}
    made = make(loss, group="loss")
    parts = Parts(made, built, **chosen, head=network.head, others=beside, networks=further.networks)
    further.check_read(parts)
    return parts
