"""Adam in the ball: equal to torch's Adam with a projection, exactly inside, and each sample by itself."""

from fractions import Fraction

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lightning_modules.attacks.adam_pgd import AdamPGD
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.victim import attacked


def found_by(attack, network, batch):
    with attacked(network) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(0, 3, batch.index)), victim


@pytest.mark.parametrize("start", ["none", "uniform"])
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_it_is_torchs_adam_with_a_projection(make_network, make_batch, start, objective):
    network, batch = make_network(batch_norm=True), make_batch(range(8))
    keys = {"beta1": 0.7, "beta2": 0.9, "adam_eps": 1e-3}
    found, victim = found_by(AdamPGD(steps=6, start=start, objective=objective, **keys), network, batch)
    network.eval()
    eps, x = 8 / 255, batch.image.clone()
    if start == "uniform":
        x += eps * (2 * Draw(0, 3, batch.index).uniform(x, "attack.start") - 1)
        x = x.clamp(batch.image - eps, batch.image + eps).clamp(0, 1)
    clean = log_softmax(network(batch.image).logits, 1).detach()
    x = torch.nn.Parameter(x)
    adam = torch.optim.Adam([x], lr=2 / 255, betas=(0.7, 0.9), eps=1e-3, maximize=True)
    right = torch.zeros(8, dtype=torch.int64)
    for _ in range(6):
        z = network(x).logits
        right += z.argmax(1) == batch.label
        value = cross_entropy(z, batch.label, reduction="sum")
        if objective == "kl":
            value = kl_div(log_softmax(z, 1), clean, reduction="sum", log_target=True)
        (x.grad,) = torch.autograd.grad(value, x)
        adam.step()
        with torch.no_grad():
            x.copy_(x.clamp(batch.image - eps, batch.image + eps).clamp(0, 1))
    torch.testing.assert_close(found.image, x.detach(), rtol=0, atol=1e-13)
    assert torch.equal(found.survived_steps, right)
    assert (victim.forwards, victim.backwards) == (8 * (6 + (objective == "kl")), 48)


@pytest.mark.parametrize("eps", ["8/255", "1/3", 0.0])
def test_exactly_in_the_ball(make_network, make_batch, eps):
    network, batch = make_network(dtype=torch.float32), make_batch(range(40), dtype=torch.float32)
    attack = AdamPGD(eps=eps, steps=4, step_size=0.2)
    x = found_by(attack, network, batch)[0].image
    pairs = zip(x.flatten().tolist(), batch.image.flatten().tolist(), strict=True)
    far = max(abs(Fraction(a) - Fraction(b)) for a, b in pairs)
    assert Fraction(999, 1000) * Fraction(attack.eps) <= far <= Fraction(attack.eps) and 0 <= x.min() <= x.max() <= 1


def test_a_sample_does_not_depend_on_its_batch(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    whole, _ = found_by(AdamPGD(), network, batch)
    part, _ = found_by(AdamPGD(), network, batch.map(lambda tensor: tensor[[5, 0]]))
    torch.testing.assert_close(part.image, whole.image[[5, 0]], rtol=0, atol=1e-12)


def test_no_step_is_the_start(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    assert torch.equal(found_by(AdamPGD(steps=0, start="none"), network, batch)[0].image, batch.image)


@pytest.mark.parametrize("key", ["beta1", "beta2"])
def test_a_decay_that_is_none(key):
    with pytest.raises(ValueError, match=f"{key}=1.0 is out of range; allowed: 0 <= {key} < 1"):
        AdamPGD(**{key: 1.0})
