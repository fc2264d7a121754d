"""Every part by its YAML, and the bench on which it trains.

Each part takes its seat beside the partners that its header names and the simplest others on a tiny network, and trains
a whole canonical run: ``EPOCHS`` epochs of two updates on sixteen samples that come back every epoch. The ``quick``
words of the headers let every part act in it.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from partners import command, configure, node

from kernels.batch import Batch, Step
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.part import Context, TrainingData
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.base import operate
from lightning_modules.teaching.live import Live
from recipes.building.make import make
from recipes.configuration.catalogue import CONFIGS, holds_several

#: Kinds that take a seat in a training step. Whatever is in configs/ stands here, or in one of the two lists below.
PARTS_OF_A_STEP = ("attack", "gradient", "head", "loss", "mixing", "regularizer", "reweighting")
#: What else decides how weights move: the bench trains these too.
AROUND_A_STEP = ("backbone", "optimizer", "schedule", "surgery")
#: Kinds with contracts of their own beside the bench: test_data, test_evaluators; all of them are in the matrix.
BESIDE = ("callback", "data", "evaluator", "noise", "task", "teaching", "trainer", "validation")
EPOCHS, SIZE, CLASSES, TRAIN = 4, 8, 3, 40


def kinds(configs=CONFIGS):
    """Every folder of configs/ that holds parts."""
    return sorted({path.parent.name for path in configs.glob("*/*.yaml")} - {"group", "recipe"})


def names(kind):
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


KINDS = [kind for kind in kinds() if kind in (*PARTS_OF_A_STEP, *AROUND_A_STEP)]
ALL = [(kind, name) for kind in kinds() for name in names(kind)]
TRAINED = [(kind, name) for kind, name in ALL if kind in KINDS]
PARTS = [(kind, name) for kind, name in TRAINED if kind in PARTS_OF_A_STEP]
EVALUATORS = [(kind, name) for kind, name in ALL if kind in ("evaluator", "validation")]


def each(parts):
    """A test for each of these parts."""
    return pytest.mark.parametrize(("kind", "name"), parts, ids=["/".join(part) for part in parts])


EVERY = each(TRAINED)


class Bench:
    """A network and parts with the given ones in their seats, and the canonical run over them.

    Args:
        make_network: for whatever names no backbone in its partners; it has no norm that needs several samples.
        chosen: (kind, name) of each part.
        words: of the command line, in place of what ``chosen`` and their headers say.
        dtype, autocast: of the weights, or of the forward.
        seed: of the weights.
        changes: keys of the chosen parts.
    """

    def __init__(self, make_network, chosen=(), words=None, dtype=torch.float32, autocast=False, seed=0, **changes):
        self.nodes = configure(command(chosen) if words is None else words)
        for kind, name in chosen if changes else ():
            (self.nodes[kind][name] if holds_several(kind) else self.nodes[kind]).update(changes)
        self.network = self._network(make_network, seed).to(dtype)
        seats = {kind: self._make(kind) for kind in PARTS_OF_A_STEP if kind not in ("head", "regularizer")}
        regularizers = {name: make(part, group="regularizer") for name, part in self._several("regularizer")}
        networks = {"teacher": self._teacher(make_network, dtype)} if self.nodes.get("teacher") else {}
        loss, head = seats.pop("loss") or CrossEntropy(), self.network.head
        self.parts = Parts(loss, regularizers, **seats, head=head, networks=networks)
        self.parts.setup(context(self.network, networks))
        self.parts.prepare(TrainingData(partial(training, dtype), self.network, torch.device("cpu")))
        trained = [*self.network.parameters(), *owned(self.parts)]
        self.optimizer = self._make("optimizer", self.network, self.parts) or torch.optim.SGD(trained, 0.1, 0.9)
        self.schedule = self._make("schedule", self.optimizer, 2 * EPOCHS)
        self.dtype, self.autocast, self.history = dtype, autocast, []

    def _teacher(self, make_network, dtype):
        """Another network of the same classes; its weights are its own."""
        return (self._make("teaching") or Live()).teacher([make_network(seed=7, dtype=dtype)], [None])

    def _several(self, kind):
        return (self.nodes.get(kind) or {}).items()

    def _make(self, kind, *positional):
        found = self.nodes.get(kind)
        return make(found, *positional, group=kind) if found else None

    def _network(self, make_network, seed):
        network = make_network(seed=seed, batch_norm=False, dtype=torch.float32)
        torch.manual_seed(seed)
        if backbone := self._make("backbone"):
            network = Network(backbone, Linear(backbone.num_features, CLASSES))
        operate(network.backbone, {name: make(part, group="surgery") for name, part in self._several("surgery")}, 16)
        network.head = self._make("head", network.num_features, CLASSES) or network.head
        return network

    def step(self, batch, epoch, update):
        network = self.network.train()
        step = Step(epoch, update, seed=0, network=network, forward=network, batch_size=max(len(batch), 1))
        self.optimizer.zero_grad()
        if self.schedule:
            self.schedule.step_update(update)
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            result = run_step(self.parts, batch, step)
        self.optimizer.step()
        self.parts.commit(result.whole(), step)
        return result

    def run(self, epochs=range(EPOCHS)):
        for epoch in epochs:
            for half in range(2):
                batch = canonical(range(SIZE * half, SIZE * half + SIZE), epoch, self.dtype)
                self.history.append(self.step(batch, epoch, 2 * epoch + half).terms)
            self.parts.end_epoch()
        return self

    def tensors(self):
        """Everything training has changed: weights, and state of the parts."""
        both = [*self.network.state_dict().values(), *self.parts.state_dict().values()]
        return [value for value in both if isinstance(value, torch.Tensor)]  # of a teacher there is a checksum

    def weights(self):
        return list(self.network.parameters())


def build(kind, name, seed=0, **changes):
    torch.manual_seed(seed)
    return make(node(kind, name) | changes, *((4, CLASSES) if kind == "head" else ()), group=kind)


def owned(parts):
    return [p for p in parts.parameters() if p.requires_grad]


def context(network, networks):
    sizes = {"max_epochs": EPOCHS, "steps_per_epoch": 2, "image_size": 5}
    return Context(CLASSES, TRAIN, network=network, networks=networks, **sizes)


def canonical(index, epoch=0, dtype=torch.float32):
    """Images of these samples with noise of this epoch; every field that a part may read is there."""
    index = torch.tensor(list(index), dtype=torch.int64)
    generator = torch.Generator().manual_seed(epoch)
    image = torch.rand(TRAIN, 3, 5, 5, generator=torch.Generator().manual_seed(99))
    noise = 0.1 * torch.rand(TRAIN, 3, 5, 5, generator=generator)
    first, second = ((image * 0.9 + n)[index].to(dtype) for n in (noise, noise.flip(-1)))
    label = (index * 7 + index // 3) % CLASSES
    return Batch(first, label, index, second_image=second, clean_label=label, survived_steps=index % 4)


def training(dtype=torch.float32):
    """The batches that parts are shown before the first update."""
    return [canonical(range(start, start + SIZE), dtype=dtype) for start in range(0, TRAIN, SIZE)]


def enlarged(batch, evaluators):
    """The batch with its images as large as all evaluators need."""
    times = -(-max((one.smallest_image for one in evaluators), default=1) // batch.image.shape[-1])
    return batch.replace(image=batch.image.repeat(1, 1, times, times)) if times > 1 else batch


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same(ours, theirs):
    """Equal bit for bit: tensors by dtype and value, plain values by type too; nan equals itself."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def finite(tensors):
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
