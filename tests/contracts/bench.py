"""Every part by its YAML, and the bench on which it trains.

Each part takes its seat beside the simplest others on the tiny network and trains a whole canonical run: ``EPOCHS``
epochs of two updates on sixteen samples that come back every epoch, long enough for shipped schedules to switch on.
"""

from contextlib import nullcontext

import pytest
import torch
import yaml

from kernels.batch import Batch, Step
from lightning_modules.evaluators.base import Evaluator
from lightning_modules.gradients.base import Gradient
from lightning_modules.heads.base import Head
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Attack, Context, Loss, Mixing, Regularizer, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from recipes.catalogue import CONFIGS
from recipes.make import make

#: Folders of configs/ that hold no part; tests of their own cover them. Every other folder needs a contract.
NO_PARTS = {
    "group", "backbone", "callback", "data", "noise", "optimizer", "recipe", "schedule", "surgery", "task", "trainer"
}  # fmt: skip
#: What a kind is, for parts that take a seat in a training step.
TRAINED = {
    "attack": Attack,
    "gradient": Gradient,
    "head": Head,
    "loss": Loss,
    "mixing": Mixing,
    "regularizer": Regularizer,
    "reweighting": Reweighting,
}
CONTRACTS = TRAINED | {"evaluator": Evaluator, "validation": Evaluator}
EPOCHS, SIZE, CLASSES, TRAIN = 20, 8, 3, 40


def nodes(kind):
    """{name: node} of every YAML of a kind."""
    found = {}
    for path in sorted((CONFIGS / kind).glob("*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[path.stem] = node if "_target_" in node else node[path.stem]
    return found


def kinds(configs=CONFIGS):
    """Every folder of configs/ that holds parts."""
    return sorted({path.parent.name for path in configs.glob("*/*.yaml")} - NO_PARTS)


KINDS = [kind for kind in kinds() if kind in TRAINED]
PARTS = [(kind, name) for kind in KINDS for name in nodes(kind)]
EVALUATORS = [(kind, name) for kind in ("evaluator", "validation") for name in sorted(nodes(kind))]
EVERY = pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}/{name}" for kind, name in PARTS])


class Shift(Attack):
    def forward(self, batch, step):
        return batch.replace(image=(batch.image + 0.1).clamp(0, 1), clean_image=batch.image)


class Both(Linear):
    """A head for whoever needs an embedding, also beside those who need logits."""

    gives = frozenset({"logits", "embedding"})
    embedding_dim = CLASSES

    def forward(self, features_BD, label=None):
        output = super().forward(features_BD, label)
        output.embedding = output.logits
        return output


class Bench:
    """A network and parts with the given ones in their seats, and the canonical run over them."""

    def __init__(self, make_network, chosen=(), dtype=torch.float32, autocast=False, seed=0, **changes):
        built = [(kind, name, build(kind, name, seed, **changes)) for kind, name in chosen]
        seats = {kind: part for kind, _, part in built if kind not in ("head", "regularizer")}
        every = [part for _, _, part in built]
        views = {view for part in every for view in part.views} | {need for part in every for need in part.needs}
        if views & {"adversarial", "attack"}:
            seats.setdefault("attack", Shift())
        regularizers = {name: part for kind, name, part in built if kind == "regularizer"}
        head = next((part for kind, _, part in built if kind == "head"), None)
        self.network = make_network(seed=seed, batch_norm=False, dtype=torch.float32)
        if head is not None:
            self.network.head = head
        elif "embedding" in views:
            self.network.head = Both(4, CLASSES)
        self.network.to(dtype)
        pairs = "pair_form" in views or "logits" not in self.network.head.gives
        loss = seats.pop("loss", Contrastive() if pairs else CrossEntropy())
        self.parts = Parts(loss, regularizers, **seats, head=self.network.head)
        self.parts.setup(context(self.network))
        self.optimizer = torch.optim.SGD([*self.network.parameters(), *owned(self.parts)], 0.1, momentum=0.9)
        self.dtype, self.autocast, self.history = dtype, autocast, []

    def step(self, batch, epoch, update):
        network = self.network.train()
        step = Step(epoch, update, seed=0, network=network, forward=network, batch_size=max(len(batch), 1))
        self.optimizer.zero_grad()
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
        return [*self.network.state_dict().values(), *self.parts.state_dict().values()]

    def weights(self):
        return list(self.network.parameters())


def build(kind, name, seed=0, **changes):
    torch.manual_seed(seed)
    return make(nodes(kind)[name] | changes, *((4, CLASSES) if kind == "head" else ()))


def owned(parts):
    return [p for p in parts.parameters() if p.requires_grad]


def context(network):
    return Context(CLASSES, TRAIN, max_epochs=EPOCHS, steps_per_epoch=2, network=network)


def canonical(index, epoch=0, dtype=torch.float32):
    """Images of these samples with noise of this epoch; every field that a part may read is there."""
    index = torch.tensor(list(index), dtype=torch.int64)
    generator = torch.Generator().manual_seed(epoch)
    image = torch.rand(TRAIN, 3, 5, 5, generator=torch.Generator().manual_seed(99))
    noise = 0.1 * torch.rand(TRAIN, 3, 5, 5, generator=generator)
    first, second = ((image * 0.9 + n)[index].to(dtype) for n in (noise, noise.flip(-1)))
    label = (index * 7 + index // 3) % CLASSES
    return Batch(first, label, index, second_image=second, clean_label=label, survived_steps=index % 4)


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
