"""PGD: exactly in its ball, independent of the batch, equal to a plain loop, and without a trace in the network."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kernels import counter_rng
from kernels.perturbation import as_fraction
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def draw_of(batch, seed=0):
    return Draw(seed, 3, batch.index)


def found_by(attack, network, batch):
    with attacked(network, norms=attack.norms, bf16=attack.bf16) as victim:
        return attack.search(victim, batch.image, batch.label, draw_of(batch)), victim


@pytest.mark.parametrize("start", ["none", "uniform", "normal"])
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_it_is_a_plain_loop(make_network, make_batch, start, objective):
    network, batch = make_network(batch_norm=True), make_batch(range(8))
    attack = PGD(steps=5, start=start, objective=objective)
    found, victim = found_by(attack, network, batch)
    eps, step, draw = 8 / 255, 2 / 255, draw_of(batch)
    network.eval()
    x = batch.image.clone()
    if start == "uniform":
        x = x + eps * (2 * draw.uniform(x, "attack.start") - 1)
    elif start == "normal":
        x = x + 0.001 * draw.normal(x, "attack.start")
    x = x.clamp(batch.image - eps, batch.image + eps).clamp(0, 1)
    clean = log_softmax(network(batch.image).logits, 1).detach()
    right = torch.zeros(8, dtype=torch.int64)
    for _ in range(5):
        x = x.detach().requires_grad_(True)
        z = network(x).logits
        right += z.argmax(1) == batch.label
        value = cross_entropy(z, batch.label, reduction="sum")
        if objective == "kl":
            value = kl_div(log_softmax(z, 1), clean, reduction="sum", log_target=True)
        (g,) = torch.autograd.grad(value, x)
        x = (x + step * g.sign()).clamp(batch.image - eps, batch.image + eps).clamp(0, 1)
    assert torch.equal(found.image, x.detach()) and torch.equal(found.survived_steps, right)
    assert (victim.forwards, victim.backwards) == (8 * (5 + (objective == "kl")), 40)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", ["8/255", "1/3", 0.0])
def test_exactly_in_the_ball(make_network, make_batch, norm, dtype, eps):
    """In exact arithmetic, also where float32 rounds a sum outwards; float64 is that of a plain sum."""
    network, batch = make_network(dtype=dtype), make_batch(range(40), dtype=dtype)
    found, _ = found_by(PGD(eps=eps, norm=norm, steps=4, step_size=0.1), network, batch)
    size, x = float(as_fraction(eps)), found.image
    assert x.dtype == dtype and x.min() >= 0 and x.max() <= 1
    if norm == "linf":
        far = max(
            abs(Fraction(a) - Fraction(b))
            for a, b in zip(x.flatten().tolist(), batch.image.flatten().tolist(), strict=True)
        )
        assert far <= Fraction(size) + (Fraction(1, 2**53) if dtype == torch.float64 else 0)
        assert far >= Fraction(size) * Fraction(999, 1000), "the border is reached"
    else:
        far = np.linalg.norm((x.double() - batch.image.double()).flatten(1).numpy(), axis=1)
        assert (far <= size).all() and (far > 0.9 * size - 1e-9).all()
    if not size:
        assert torch.equal(x, batch.image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_random_number_is_at_an_end(monkeypatch, dtype):
    """All bits set, or none: a uniform number of 1 would be an infinite normal one, and an image that is no number."""
    for word in (-1, 0):
        monkeypatch.setattr(counter_rng, "mix", lambda _, word=word: torch.full((1, 75), word))
        image = torch.zeros(1, 3, 5, 5, dtype=dtype)
        draw = Draw(0, 0, torch.arange(1))
        uniform = draw.uniform(image, "x")
        assert uniform.dtype == dtype and ((uniform > 0) & (uniform < 1)).all()
        assert draw.normal(image, "x").isfinite().all() and draw.normal(image, "x").abs().max() < 5.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_does_not_depend_on_its_batch(make_network, make_batch, norm):
    network, batch = make_network(), make_batch(range(8))
    whole, _ = found_by(PGD(norm=norm, restarts=3), network, batch)
    for rows in ([2], [5, 0, 7]):
        part, _ = found_by(PGD(norm=norm, restarts=3), network, batch.map(lambda t, rows=rows: t[rows]))
        torch.testing.assert_close(part.image, whole.image[rows], rtol=0, atol=1e-12)
    assert not torch.equal(batch.image, whole.image)


def test_more_restarts_are_never_worse(make_network, make_batch):
    network, batch = make_network(), make_batch(range(40))
    values = []
    for restarts in (1, 2, 8):
        found, _ = found_by(PGD(steps=1, restarts=restarts), network, batch)
        values.append(cross_entropy(network(found.image).logits, batch.label, reduction="none").detach())
    assert all((b >= a).all() for a, b in zip(values, values[1:], strict=False)) and (values[2] > values[0]).any()


def test_towards_a_class(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    found, _ = found_by(PGD(targeted=True, start="none", steps=3), network, batch)
    target = (batch.label + 1) % 3
    before, after = (log_softmax(network(x).logits, 1).gather(1, target[:, None]) for x in (batch.image, found.image))
    assert (after > before).all()


@pytest.mark.parametrize("norms", ["eval", "train"])
def test_nothing_of_the_network_is_touched(make_network, make_batch, make_step, norms):
    network, batch = make_network(batch_norm=True, dropout=0.5).train(), make_batch(range(8))
    network.backbone.conv.eval()  # a mode of its own
    network.backbone.conv.bias.requires_grad_(False)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    attack = PGD(steps=2, norms=norms)
    attack(batch, make_step(network))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in network.parameters())
    assert [p.requires_grad for p in network.backbone.conv.parameters()] == [True, False]
    assert network.training and network.backbone.norm.training and not network.backbone.conv.training


def test_adversarial_training_is_a_plain_loop(make_network, make_batch, make_step):
    """Ten steps of cross-entropy on the attacked images, also in micro-batches."""
    for micro_batches in (1, 3):
        network, plain = make_network(), make_network()
        optimizer, reference = (torch.optim.SGD(n.parameters(), 0.5, momentum=0.9) for n in (network, plain))
        attack = PGD(steps=3)
        for update in range(10):
            batch = make_batch(range(8), seed=update)
            optimizer.zero_grad()
            step = make_step(network, update=update)
            run_step(Parts(CrossEntropy(), attack=attack), batch, step, micro_batches=micro_batches)
            optimizer.step()
            with attacked(plain) as victim:
                found = attack.search(victim, batch.image, batch.label, Draw(0, update, batch.index))
            reference.zero_grad()
            cross_entropy(plain(found.image).logits, batch.label).backward()
            reference.step()
        for a, b in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eps": "8/0"}, "eps=8/0 is no size"),
        ({"eps": "-1/255"}, "eps=-1/255 is out of range"),
        ({"eps": "eight"}, "eps=eight is no size; write a number from 0 on, or a fraction such as 8/255"),
        ({"restarts": 2, "start": "none"}, "restarts=2 without a random start are all the same"),
        ({"targeted": True, "objective": "kl"}, "targeted=true goes towards a class"),
    ],
)
def test_values_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        PGD(**keys)
