"""Ten steps of a loss beside an attack, and the same as a plain PyTorch loop that shares only the random start."""

import torch

from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

EPS, STEP, STEPS = 8 / 255, 2 / 255, 3


def optimizer_of(network):
    return torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)


def ours(network, loss, make_batch, make_step, micro_batches=1, **attack):
    """The terms of ten updates of ``run_step``."""
    parts, optimizer = Parts(loss, attack=PGD(steps=STEPS, start="normal", **attack)), optimizer_of(network)
    for update in range(10):
        optimizer.zero_grad()
        step = make_step(network.train(), update=update)
        result = run_step(parts, make_batch(range(8), seed=update), step, micro_batches=micro_batches)
        optimizer.step()
        yield result.terms


def plain(network, loss, raised, make_batch):
    """The loss of ten updates, ``loss(clean, adversarial, label)`` summed over the batch.

    Args:
        raised: ``(clean, adversarial, label)`` -> sum, what the attack raises.
    """
    optimizer = optimizer_of(network)
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        image, label = batch.image, batch.label
        moved = attacked_image(network, image, label, raised, Draw(0, update, batch.index))
        network.train()
        optimizer.zero_grad()
        clean = network(image).logits
        value = loss(clean, network(moved).logits, label) / 8
        value.backward()
        optimizer.step()
        yield value.item()


def attacked_image(network, image, label, raised, draw):
    network.eval()
    clean = network(image).logits.detach()
    low, high = (image - EPS).clamp(min=0), (image + EPS).clamp(max=1)
    moved = (image + 0.001 * draw.normal(image, "attack.start")).clamp(low, high)
    for _ in range(STEPS):
        moved.requires_grad_(True)
        (slope,) = torch.autograd.grad(raised(clean, network(moved).logits, label), moved)
        moved = (moved.detach() + STEP * slope.sign()).clamp(low, high)
    return moved.detach()


def equal_weights(network, reference, tolerance=1e-9):
    for (name, a), b in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def counted(network):
    """A list that grows by the size of every batch that the network is given."""
    seen = []
    network.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    return seen
