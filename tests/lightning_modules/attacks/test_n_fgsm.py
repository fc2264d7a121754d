"""N-FGSM: the official step written down again, [0, 1] exactly, and no ball."""

from fractions import Fraction

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.n_fgsm import NFGSM
from lightning_modules.attacks.victim import attacked
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def found_by(attack, network, batch, update=3):
    with attacked(network, norms=attack.norms) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(0, update, batch.index)).image


def official(network, batch, noise, update=3):
    """train.py of the official repository, in [0, 1] and without its normalization."""
    eps = alpha = 8 / 255
    eta = noise * eps * (2 * Draw(0, update, batch.index).uniform(batch.image, "attack.start") - 1)
    eta = torch.max(torch.min(eta, 1 - batch.image), 0 - batch.image).requires_grad_(True)
    (grad,) = torch.autograd.grad(cross_entropy(network(batch.image + eta).logits, batch.label), eta)
    delta = eta + alpha * grad.sign()
    return batch.image + torch.max(torch.min(delta, 1 - batch.image), 0 - batch.image).detach()


@pytest.mark.parametrize("norms", ["eval", "train"])
@pytest.mark.parametrize("noise", [2.0, 0.0])
def test_it_is_the_official_step(make_network, make_batch, norms, noise):
    network, batch = make_network(batch_norm=True), make_batch(range(8))
    found = found_by(NFGSM(noise=noise, norms=norms), network, batch)
    network.train(norms == "train")
    torch.testing.assert_close(found, official(network, batch, noise), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_farther_than_the_ball_and_never_beyond_noise_and_step(make_network, make_batch, dtype):
    network, batch = make_network(dtype=dtype), make_batch(range(40), dtype=dtype)
    found = found_by(NFGSM(), network, batch)
    assert found.min() >= 0 and found.max() <= 1 and found.dtype == dtype
    pairs = zip(found.flatten().tolist(), batch.image.flatten().tolist(), strict=True)
    far = max(abs(Fraction(a) - Fraction(b)) for a, b in pairs)
    assert 2 * Fraction(8, 255) < far <= 3 * Fraction(8 / 255) + Fraction(1, 2**53)
    assert torch.equal(found_by(NFGSM(eps=0.0), network, batch), batch.image)


def test_a_sample_does_not_depend_on_its_batch(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    whole = found_by(NFGSM(), network, batch)
    part = found_by(NFGSM(), network, batch.map(lambda tensor: tensor[[5, 0]]))
    torch.testing.assert_close(part, whole[[5, 0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    network, plain = make_network(), make_network()
    optimizer, reference = (torch.optim.SGD(n.parameters(), 0.5, momentum=0.9) for n in (network, plain))
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        optimizer.zero_grad()
        parts = Parts(CrossEntropy(), attack=NFGSM())
        run_step(parts, batch, make_step(network, update=update), micro_batches=micro_batches)
        optimizer.step()
        moved = official(plain, batch, 2.0, update)
        reference.zero_grad()
        cross_entropy(plain(moved).logits, batch.label).backward()
        reference.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_the_step_is_as_long_as_the_ball_is_wide():
    assert NFGSM(eps="4/255").step_size == 4 / 255 and NFGSM(step_size=0.1).step_size == 0.1
    with pytest.raises(ValueError, match="noise=-1.0 is out of range; allowed: noise >= 0"):
        NFGSM(noise=-1.0)
