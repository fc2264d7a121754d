"""The barrier attack: at a stationary point of its lower level, strictly inside, downhill, each sample by itself."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lightning_modules.attacks.barrier import Barrier
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def found_by(attack, network, batch):
    with attacked(network) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(0, 3, batch.index)).image


def lower(network, batch, c, eps, moved, objective="ce"):
    """``[B]`` the value of the lower level, from the page."""
    a, b = (-batch.image).clamp(min=-eps), (1 - batch.image).clamp(max=eps)
    d = moved - batch.image
    logits = network(moved).logits
    loss = cross_entropy(logits, batch.label, reduction="none")
    if objective == "kl":
        clean = log_softmax(network(batch.image).logits, 1).detach()
        loss = kl_div(log_softmax(logits, 1), clean, reduction="none", log_target=True).sum(1)
    return -loss - c * (torch.log(b - d) + torch.log(d - a)).flatten(1).sum(1)


def gradient(network, batch, c, eps, moved, objective="ce"):
    moved = moved.detach().requires_grad_(True)
    return torch.autograd.grad(lower(network, batch, c, eps, moved, objective).sum(), moved)[0]


def bordering(batch):
    """Some pixels at 0 and at 1, where half of the box is left."""
    image = batch.image.clone()
    image[0], image[1, 0] = 0.0, 1.0
    return batch.replace(image=image)


@pytest.mark.parametrize("objective", ["ce", "kl"])
@pytest.mark.parametrize(("eps", "c"), [("8/255", 1e-2), ("8/255", 1e-4), (0.4, 1e-2), (0.4, 1e-3)])
def test_enough_steps_solve_the_lower_level(make_network, make_batch, c, eps, objective):
    network, batch = make_network(batch_norm=True), bordering(make_batch(range(8)))
    attack = Barrier(eps=eps, c=c, steps=60, objective=objective)
    moved = found_by(attack, network, batch)
    network.eval()
    start = gradient(network, batch, c, attack.eps, found_by(Barrier(eps=eps, steps=0), network, batch), objective)
    left = gradient(network, batch, c, attack.eps, moved, objective)
    assert left.abs().max() < 1e-3 * start.abs().max()


def test_it_starts_in_the_middle_and_every_step_goes_down(make_network, make_batch):
    network, batch = make_network(), bordering(make_batch(range(8)))
    a, b = (-batch.image).clamp(min=-0.4), (1 - batch.image).clamp(max=0.4)
    torch.testing.assert_close(found_by(Barrier(eps=0.4, steps=0), network, batch), batch.image + (a + b) / 2)
    values = []
    for steps in range(6):
        moved = found_by(Barrier(eps=0.4, c=1e-3, steps=steps), network, batch)
        values.append(lower(network, batch, 1e-3, 0.4, moved).detach())
    assert all((after <= before + 1e-12).all() for before, after in zip(values, values[1:], strict=False))
    assert (values[1] < values[0]).all()


def test_a_step_that_goes_up_is_halved(make_network, make_batch):
    """On a network that bends much, full steps overshoot; no sample is ever worse than before."""
    network, batch = make_network(), make_batch(range(8))
    with torch.no_grad():
        network.backbone.conv.weight.mul_(8)
    values, halved = [], False
    for steps in range(12):
        moved = found_by(Barrier(eps=0.4, c=1e-3, steps=steps), network, batch)
        values.append(lower(network, batch, 1e-3, 0.4, moved).detach())
        halved |= bool(steps and (values[-1] == values[-2]).any())
    assert all((after <= before + 1e-10).all() for before, after in zip(values, values[1:], strict=False))
    assert halved, "some step was refused, else this shows nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-12, 1e-2])
def test_strictly_inside(make_network, make_batch, dtype, c):
    network, batch = make_network(dtype=dtype), bordering(make_batch(range(40), dtype=dtype))
    moved = found_by(Barrier(c=c), network, batch)
    low = (-batch.image.double()).clamp(min=-8 / 255)
    high = (1 - batch.image.double()).clamp(max=8 / 255)
    d = moved.double() - batch.image.double()
    assert moved.dtype == dtype and (d > low).all() and (d < high).all()
    assert torch.equal(found_by(Barrier(eps=0.0), network, batch), batch.image)


def test_without_barrier_it_is_a_sign_step_to_the_border(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    batch = batch.replace(image=batch.image * 0.8 + 0.1)  # the middle of the box is the image
    found = found_by(Barrier(eps="1/255", c=1e-12, steps=1), network, batch)
    step = found_by(PGD(eps="1/255", start="none", steps=1, step_size="1/255"), network, batch)
    torch.testing.assert_close(found, step, rtol=0, atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch_nor_on_the_draw(make_network, make_batch):
    network, batch = make_network(), make_batch(range(8))
    whole = found_by(Barrier(), network, batch)
    for rows in ([2], [5, 0, 7]):
        part = found_by(Barrier(), network, batch.map(lambda tensor, rows=rows: tensor[rows]))
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)
    with attacked(network) as victim:
        again = Barrier().search(victim, batch.image, batch.label, Draw(9, 9, batch.index)).image
    assert torch.equal(again, whole) and victim.forwards == victim.backwards == 8 * 11


def test_no_trace_in_the_network(make_network, make_batch, make_step):
    network, batch = make_network(batch_norm=True, dropout=0.5).train(), make_batch(range(8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    moved = Barrier()(batch, make_step(network))
    assert torch.equal(moved.clean_image, batch.image) and not torch.equal(moved.image, batch.image)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_adversarial_training_is_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    network, plain = make_network(), make_network()
    optimizer, reference = (torch.optim.SGD(n.parameters(), 0.5, momentum=0.9) for n in (network, plain))
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        optimizer.zero_grad()
        parts = Parts(CrossEntropy(), attack=Barrier(steps=3))
        run_step(parts, batch, make_step(network, update=update), micro_batches=micro_batches)
        optimizer.step()
        moved = found_by(Barrier(steps=3), plain, batch)
        reference.zero_grad()
        cross_entropy(plain(moved).logits, batch.label).backward()
        reference.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("c", 0.0, "c > 0"), ("steps", -1, "steps >= 0"), ("step_size", 1.5, "0 < step_size <= 1")],
)
def test_values_that_cannot_be(key, value, allowed):
    with pytest.raises(ValueError, match=f"{key}={value} is out of range; allowed: {allowed}"):
        Barrier(**{key: value})
