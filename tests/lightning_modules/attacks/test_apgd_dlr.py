"""APGD-DLR: its objectives by hand, what few classes raise in their place, and targets by rank."""

import numpy as np
import pytest
import torch
from linear_victims import LinearVictim, can_fall_linf, found_by, images, wrong

from kernels.adversarial_losses import dlr, dlr_targeted, margin
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.apgd_dlr import APGDDLR


def test_objectives_by_hand():
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(30, 6, generator=generator, dtype=torch.float64), torch.arange(30) % 6
    target = (label + 1 + torch.arange(30) % 5) % 6
    for row, (z, y, t) in enumerate(zip(logits.numpy(), label.numpy(), target.numpy(), strict=True)):
        ordered = np.sort(z)[::-1]
        other = max(z[i] for i in range(6) if i != y)
        assert dlr(logits, label)[row].item() == pytest.approx(-(z[y] - other) / (ordered[0] - ordered[2] + 1e-12))
        scale = ordered[0] - (ordered[2] + ordered[3]) / 2 + 1e-12
        assert dlr_targeted(logits, label, target)[row].item() == pytest.approx(-(z[y] - z[t]) / scale)
        assert margin(logits, label)[row].item() == pytest.approx(other - z[y])
    assert torch.equal(dlr(logits, label) > 0, logits.argmax(1) != label)


def test_neither_scale_nor_shift_of_the_logits_matters():
    logits = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label, target = torch.arange(8) % 5, torch.arange(2, 10) % 5
    for changed in (logits * 1e4, logits + 7):
        torch.testing.assert_close(dlr(changed, label), dlr(logits, label))
        torch.testing.assert_close(dlr_targeted(changed, label, target), dlr_targeted(logits, label, target))


@pytest.mark.parametrize("targets", [None, 1])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_with_too_few_classes_the_margin_is_raised(classes, targets):
    logits = torch.randn(8, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label, attack = torch.arange(8) % classes, APGDDLR(targets=targets)
    target = (label + 1) % classes
    found = attack.criterion(logits, label, target)
    if classes >= (3 if targets is None else 4):
        expected = dlr(logits, label) if targets is None else dlr_targeted(logits, label, target)
    else:
        other = logits.clone()
        other[torch.arange(8), label] = -torch.inf
        aim = other.max(1).values if targets is None else logits[torch.arange(8), target]
        expected = aim - logits[torch.arange(8), label]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_overconfident_logits_do_not_stop_it():
    """Where float32 cross-entropy has no gradient left, DLR finds what it found before."""
    network = LinearVictim(4, dtype=torch.float32)
    batch = network.right(images(40, dtype=torch.float32))
    expected = wrong(network, found_by(APGDDLR(eps=0.03, targets=3), network, batch)[0], batch.label)
    with torch.no_grad():
        network.weight.mul_(1e4), network.bias.mul_(1e4)
    found = wrong(network, found_by(APGDDLR(eps=0.03, targets=3), network, batch)[0], batch.label)
    by_cross_entropy = wrong(network, found_by(APGDCE(eps=0.03), network, batch)[0], batch.label)
    assert torch.equal(found, expected) and by_cross_entropy.sum() < found.sum()


def test_every_target_is_gone_to_in_order_of_its_logit():
    """With all targets, exactly those fall that can; a class that only the last target reaches is found by it."""
    network = LinearVictim(6)
    batch = network.right(images(60))
    can = can_fall_linf(network, batch, 0.02) > 0
    fallen = {k: wrong(network, found_by(APGDDLR(eps=0.02, targets=k), network, batch)[0], batch.label) for k in (1, 5)}
    assert torch.equal(fallen[5], can) and fallen[1].sum() <= fallen[5].sum()

    class Order(APGDDLR):
        seen: list = []

        def start(self, victim, standing):
            self.seen.append((standing.image, standing.label, standing.target))
            return super().start(victim, standing)

    found_by(Order(eps=1e-6, steps=1, targets=5), network, batch)
    for rank, (image, label, target) in enumerate(Order.seen):
        ordered = network(image).logits.sort(1, descending=True).indices
        assert torch.equal(ordered[:, 0], label) and torch.equal(ordered[:, rank + 1], target)
    assert len(Order.seen) == 5
