"""A small student and another teacher, ten updates of one beside the other, and the same as a plain loop."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import Backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.teaching.live import Live

CLASSES, SAMPLES, SIZE, SIDE, SEED = 3, 39, 8, 8, 3


class Small(nn.Module):
    """One convolution in timm's interface, of any width and stride; or tokens of patches."""

    def __init__(self, channels=4, stride=1, tokens=False):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=stride, padding=1)
        self.tokens, self.num_features = tokens, channels
        self.head_hidden_size = channels

    def forward_features(self, image):
        found = self.conv(image).tanh()
        return found.flatten(2).mT if self.tokens else found

    def forward_head(self, feature_map, pre_logits=False):
        return feature_map.mean(1) if self.tokens else feature_map.mean((2, 3))


def small(seed=0, head=Linear, head_keys=None, dtype=torch.float64, **keys):
    """A network of its own initial weights."""
    torch.manual_seed(seed)
    model = Small(**keys)
    backbone = Backbone(model, "small", model.num_features, 3, (0.5,) * 3, (0.25,) * 3)
    return Network(backbone, head(model.num_features, CLASSES, **(head_keys or {}))).to(dtype)


def teacher(width=6, seed=7, **keys):
    return small(seed, channels=width, **keys)


def context(network, networks=None, **keys):
    given = {"seed": SEED, "image_size": SIDE, "batch_size": SIZE} | keys
    return Context(CLASSES, SAMPLES, max_epochs=5, steps_per_epoch=2, network=network, networks=networks or {}, **given)


def together(term, student, teachers, loss=None, name="term", dtype=torch.float64, **keys):
    """The parts of a run, set up: the term beside cross-entropy."""
    frozen = Live().teacher(teachers, [None] * len(teachers))
    regularizers = {name: term} if term is not None else {}
    parts = Parts(loss or CrossEntropy(), regularizers, head=student.head, networks={"teacher": frozen})
    parts.setup(context(student, {"teacher": frozen}, **keys))
    return parts.to(dtype)


def batch_of(update, dtype=torch.float64):
    """Eight of 39 samples, 13 of each class."""
    index = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(update))[:SIZE]
    image = torch.rand(SAMPLES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(99), dtype=dtype)
    return Batch(image[index], index % CLASSES, index)


def optimizer_of(*owners):
    return torch.optim.SGD([p for owner in owners for p in owner.parameters() if p.requires_grad], 0.1, momentum=0.9)


def train(parts, student, updates=10, dtype=torch.float64):
    """The terms of each update; two of them are an epoch."""
    optimizer, history = optimizer_of(student, parts), []
    for update in range(updates):
        step = Step(update // 2, update, seed=SEED, network=student, forward=student, batch_size=SIZE)
        optimizer.zero_grad()
        result = run_step(parts, batch_of(update, dtype), step)
        optimizer.step()
        parts.commit(result.whole(), step)
        history.append({name: float(value) for name, value in result.terms.items()})
    return history


def plain_loop(student, teaching, term, *owners, after=None, updates=10):
    """The same by hand: ``term(student's output, teacher's, batch, epoch)`` is added to the mean cross-entropy.

    ``after(batch, epoch)`` runs behind each update; ``owners`` are trained beside the student.
    """
    optimizer = optimizer_of(student, *owners)
    for update in range(updates):
        batch = batch_of(update)
        optimizer.zero_grad()
        ours = student(batch.image, want_maps=("final",))
        with torch.no_grad():
            theirs = teaching(batch.image, want_maps=("final",))
        value = term(ours, theirs, batch, update // 2)
        (cross_entropy(ours.logits, batch.label) + value).backward()
        optimizer.step()
        if after is not None:
            after(batch, update // 2)


def check_ten_steps(term, by_hand, tolerance=1e-9, **keys):
    """Ten updates with a term of logits or relations are those of a plain loop."""
    student, plain, teaching = small(**keys), small(**keys), teacher()
    parts = together(term, student, [teacher()])
    history = train(parts, student)
    plain_loop(plain, teaching.eval(), by_hand)
    check_same(student, plain, tolerance)
    return history


def check_same(ours, theirs, tolerance=1e-9):
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def value_of(term, student, teaching, labels=None, epoch=0, **fields):
    """A term of given outputs, before ``setup``."""
    count = len(labels) if labels is not None else SIZE
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    batch = Batch(torch.zeros(count, 3, 2, 2), labels, torch.arange(count), **fields)
    step = Step(epoch, 2 * epoch, seed=SEED, network=nn.Identity(), forward=nn.Identity(), batch_size=count)
    return term({"main": student, "teacher/main": teaching}, batch, step)
