"""A network that embeds, and one step of a loss on it."""

import torch

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Context

DIM = 6


class Head(torch.nn.Module):
    embedding_dim = DIM


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()


def setup(loss, classes=4):
    torch.manual_seed(3)
    loss.setup(Context(classes, 40, 5, 5, Net()))
    return loss.double()


def rows(count=10, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
    return embedding.requires_grad_(), torch.arange(count) % classes


def batch_of(labels, **extra):
    return Batch(torch.zeros(len(labels), 3, 2, 2), labels, torch.arange(len(labels)), extra=extra)


def step_at(update=0, size=10):
    return Step(0, update, seed=0, network=Net(), forward=None, batch_size=size)


def run(loss, embedding, labels, update=0, **extra):
    """The terms ``{name: [B]}`` of one step."""
    outputs = {"main": Output(embedding=embedding)}
    return loss(outputs, batch_of(labels, **extra), step_at(update, len(labels)))
