"""Any parts of any kinds together, built as ``train.py`` builds them, and trained for two updates."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, islice, product
from tempfile import TemporaryDirectory
from unittest.mock import patch

import sets
import torch
from bench import ALL, enlarged, finite, kinds
from partners import PARTNERS, command, configure, node, said

import recipes.building.assemble as assembly
from kernels.batch import Step
from lightning_modules.evaluators.base import EvaluationData, evaluate_all
from lightning_modules.part import TrainingData
from lightning_modules.step import run_step
from recipes.building.further_networks import FurtherNetworks
from recipes.building.initialization import built_network
from recipes.building.make import make, make_data
from recipes.building.probe import check_takes
from recipes.configuration.catalogue import holds_several
from recipes.configuration.problems import ConfigError

BASE = [
    "data=folder",
    "backbone=conv4",
    "head=linear",
    "task=classification",
    "loss=cross_entropy",
    "optimizer=sgd",
    "schedule=cosine",
    "trainer=default",
    "evaluator=[]",
    "optimizer.lr=0.001",  # an untrained network on six images stays finite
]
#: First lines of the refusals that building may end with; anything else is broken.
REFUSALS = (
    "these parts cannot work together:",
    "these surgeries cannot work together:",
    "this run does not fit together:",
)
#: Kinds that decide what validation and evaluators see; between others these say nothing about the pair.
LOOKED_AT = {"data", "evaluator", "head", "surgery", "task", "validation"}
_KEPT = TemporaryDirectory(prefix="kept_")  # goes with the process
PIXELS = 16  # of the upper left corner that is trained on: every pair takes milliseconds


def of(kind):
    return [part for part in ALL if part[0] == kind]


def pairs_of(one, other):
    """Every pair of two kinds; of one kind, where a run may have several of it."""
    if one == other:
        return list(combinations(of(one), 2)) if holds_several(one) else []
    return list(product(of(one), of(other)))


def kind_pairs():
    """Every two kinds that have a pair; each kind once with itself where it is a list."""
    found = [(one, other) for i, one in enumerate(kinds()) for other in kinds()[i:]]
    return [(one, other) for one, other in found if pairs_of(one, other)]


def compositions(pair):
    """Words with both parts; the other order as well, where their partners contradict each other."""
    first, second = (command(order, BASE) for order in (pair, pair[::-1]))
    conflict = sorted(first) != sorted(second) and all(said(PARTNERS, *part) for part in pair)
    return [first, second] if conflict else [first]


def outcome(pair, folder):
    """``None`` where the pair trains; else the lines with which it is refused.

    Raises:
        Exception: the pair is broken: whatever building raises beside a refusal, or training raises at all.
    """
    for words in compositions(pair):
        try:
            run = assembled(words)
        except ConfigError as error:
            refused = refusal(error)
        else:
            train(run, pair, folder)
            return None
    return refused


def refusal(error):
    """The lines of a refusal, each a sentence with a reason."""
    first, *lines = "\n".join(error.problems).splitlines()
    assert first in REFUSALS and lines, f"not refused but broken: {error!r}"
    for line in lines:
        assert len(line.partition(": ")[2].split() or line.split()) >= 8, f"a reason is a sentence of 8 words: {line}"
    return [line.removeprefix("- ") for line in lines]


def assembled(words):
    """The run of these words, as ``train.py`` makes it."""
    nodes = configure(words)
    nodes["trainer"] |= {"max_epochs": 2, "accelerator": "cpu"}
    source = next(word.removeprefix("data=") for word in words if word.startswith("data="))
    keys = [word.partition("=")[0].removeprefix("data.") for word in words if word.startswith("data.")]
    nodes["data"] = sets.settings(source) | {key: nodes["data"][key] for key in keys}
    if "folder" in (nodes.get("teaching") or {}):
        nodes["teaching"]["folder"] = _KEPT.name
    teaching = patch.object(FurtherNetworks, "add_teacher", _add_teacher)
    replaced = {"make": _make, "make_data": _data, "built_network": _network, "check_takes": _probe}
    with teaching, patch.multiple(assembly, **replaced, _context=partial(_context, assembly._context)):
        return assembly.assemble(recipe="matrix", **nodes)


def _context(of_run, data, *given):
    """That of the images that are trained on."""
    return replace(of_run(data, *given), image_size=min(data.image_size, PIXELS))


_ONCE = {}


def _once(key, build):
    if key not in _ONCE:
        _ONCE[key] = build()
    return _ONCE[key]


def _data(part, seed, noise=None):
    """A source, with its noise, that is set up once and keeps nothing of a run."""
    return _once(repr((part, noise)), partial(make_data, part, seed, noise))


def _make(part, *given, group):
    """``make``; a trainer without callbacks is made once."""
    build = partial(make, part, *given, group=group)
    return _once(repr(part), build) if group == "trainer" and given == ([],) else build()


def _network(backbone, surgery, head, init, data, goes_on):
    """A copy of the network with its surgery: one for each, however many pairs it is in."""
    key = repr((backbone, surgery, head, data.num_classes))
    network, reports, loaded = copy.deepcopy(
        _once(key, partial(built_network, backbone, surgery, head, init, data, goes_on))
    )
    network.made_of = key
    return network, reports, loaded


def _add_teacher(further, references, teaching):
    """A small network of the data's classes, untrained."""
    data = further.data
    part = {**node("backbone", "conv4"), "in_channels": data.channels}
    network = _network(part, {}, node("head", "linear"), None, data, False)[0]
    further.networks["teacher"] = teaching.teacher([network], [None])


def _probe(network, *facts):
    """Whether a network takes the images: asked once for each."""
    _once(f"probe {network.made_of} {facts}", partial(check_takes, network, *facts))


@cache
def batches(data):
    """Two training batches, and the first of the validation and of the test part."""
    loaders = (data.train_dataloader(), 2), (data.val_dataloader(), 1), (data.test_dataloader(), 1)
    return [
        [batch.replace(image=batch.image[..., :PIXELS, :PIXELS].clone()) for batch in islice(loader, count)]
        for loader, count in loaders
    ]


def train(run, pair, folder):
    """Two updates in the precision of the trainer; then validation and evaluators, where one of the pair is to do with
    them."""
    task, parts = run.task, run.task.parts
    optimizer, network = task.configure_optimizers(), task.network.train()
    named = {name: p for name, p in task.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in named.items()}
    training, validating, testing = batches(run.data)
    parts.prepare(TrainingData(partial(iter, training), network, torch.device("cpu")))
    terms = set()
    for update, batch in enumerate(training):
        task.schedule.step_update(update)
        step = Step(update, update, seed=0, network=network, forward=network, batch_size=len(batch))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if "bf16" in run.trainer.precision else nullcontext():
            result = run_step(parts, batch, step, parameters=named)
        optimizer.step()
        parts.commit(result.whole(), step)
        terms |= result.terms.keys()
        assert finite(result.terms.values()) and finite([p for p in named.values()]), "not finite"
    assert any(not torch.equal(before[name], p) for name, p in named.items()), "nothing was trained"
    assert {name for kind, name in pair if kind == "regularizer"} <= terms, "a regularizer left no term"
    if not LOOKED_AT & {kind for kind, _ in pair}:
        return
    facts = task.context
    data = EvaluationData(validating, facts.val_classes, is_query=facts.val_is_query, brief=True)
    parts.validated(network, evaluated(task.validation.evaluators, network, data))
    parts.end_epoch()
    if run.evaluators:
        again = partial(iter, training)
        names, query = run.data.classes_of("test"), run.data.test_is_query
        paths = [f"{i}.png" for i in range(10000)]
        testing = [enlarged(batch, run.evaluators.values()) for batch in testing]
        data = EvaluationData(testing, names, paths=paths, output=folder, train=again, is_query=query, brief=True)
        evaluated(run.evaluators, network, data)


def evaluated(evaluators, network, data):
    done, failed = evaluate_all(evaluators, network, data)
    for error in failed.values():
        raise error
    return {name: value for evaluation in done.values() for name, value in evaluation.metrics.items()}
