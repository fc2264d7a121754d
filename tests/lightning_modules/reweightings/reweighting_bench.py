"""What tests of reweightings share: ten updates through the seats, and beside them a plain loop."""

import torch

from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

UPDATES = 10


def optimizer_of(network):
    return torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)


def composed(reweighting, context, attack=None, loss=None):
    parts = Parts(loss or CrossEntropy(), attack=attack, reweighting=reweighting)
    parts.setup(context)
    return parts


def train(parts, network, optimizer, make_batch, make_step, updates=range(UPDATES), micro_batches=1):
    """Two updates an epoch."""
    results = []
    for update in updates:
        step = make_step(network, update // 2, update)
        optimizer.zero_grad()
        result = run_step(parts, make_batch(range(8), seed=update), step, micro_batches=micro_batches)
        optimizer.step()
        parts.commit(result.whole(), step)
        results.append(result)
    return results


def plain_loop(network, make_batch, scalar, steps=0):
    """Ten updates of ``scalar(network, images, batch, survived, update)``, after PGD with so many steps."""
    optimizer = optimizer_of(network)
    for update in range(UPDATES):
        batch, survived = make_batch(range(8), seed=update), None
        images = batch.image
        if steps:
            with attacked(network) as victim:
                found = PGD(steps=steps).search(victim, images, batch.label, Draw(0, update, batch.index))
            images, survived = found.image, found.survived_steps
        optimizer.zero_grad()
        scalar(network, images, batch, survived, update).backward()
        optimizer.step()


def check_equal(ours, theirs, atol=1e-9):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
