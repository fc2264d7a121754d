"""FGSM: one step of the papers' length, in the ball."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.fgsm import FGSM
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked


def found_by(attack, network, batch):
    with attacked(network) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(0, 3, batch.index)), victim


@pytest.mark.parametrize(("start", "length"), [("uniform", 10 / 255), ("none", 8 / 255)])
def test_it_is_the_step_of_the_paper(make_network, make_batch, start, length):
    network, batch = make_network(batch_norm=True), make_batch(range(8))
    found, victim = found_by(FGSM(start=start), network, batch)
    network.eval()
    x = batch.image
    if start == "uniform":
        delta = 8 / 255 * (2 * Draw(0, 3, batch.index).uniform(x, "attack.start") - 1)
        x = (x + delta).clamp(0, 1)
    x = x.clone().requires_grad_(True)
    logits = network(x).logits
    (g,) = torch.autograd.grad(cross_entropy(logits, batch.label, reduction="sum"), x)
    delta = (x - batch.image + length * g.sign()).clamp(-8 / 255, 8 / 255)
    torch.testing.assert_close(found.image, (batch.image + delta).clamp(0, 1).detach(), rtol=0, atol=1e-15)
    assert torch.equal(found.survived_steps, (logits.argmax(1) == batch.label).long())
    assert (victim.forwards, victim.backwards) == (8, 8), "one forward and one backward"


def test_its_step_grows_with_the_ball(make_network, make_batch):
    for eps in ("4/255", 0.1):
        attack = FGSM(eps=eps)
        assert attack.step_size == pytest.approx(1.25 * attack.eps, rel=1e-15)
    assert FGSM(eps="4/255", step_size="1/255").step_size == 1 / 255
    network, batch = make_network(), make_batch(range(8))
    ours, theirs = (found_by(attack, network, batch)[0].image for attack in (FGSM(), PGD(steps=1, step_size="10/255")))
    assert torch.equal(ours, theirs)


def test_no_ball_is_the_image(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    assert torch.equal(found_by(FGSM(eps=0.0), network, batch)[0].image, batch.image)


def test_a_size_that_is_none():
    with pytest.raises(ValueError, match="eps=much is no size"):
        FGSM(eps="much")
