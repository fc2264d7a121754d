"""APGD: a plain loop written from the paper's algorithm 1, its checkpoints, and a best value that never falls."""

import pytest
import torch
from linear_victims import found_by, images
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output
from lightning_modules.attacks.apgd import APGD, checkpoints
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.victim import attacked


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 29, 35, 40, 44, 47, 50]),
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (1, [1]),
    ],
)
def test_checkpoints(steps, expected):
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99, and then past the end, by hand."""
    assert checkpoints(steps) == expected


class Rough(torch.nn.Module):
    """A network whose objective goes up and down within the ball, and whose first class is hard to leave."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = torch.nn.Parameter(4 * torch.randn(48, 12, generator=generator, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(12, 3, generator=generator, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor([11.0, 0.0, 0.0], dtype=torch.float64))

    def forward(self, image):
        return Output(logits=(image.flatten(1) @ self.first).sin() @ self.second + self.bias)

    def right(self, image):
        return Batch(image, self(image).logits.detach().argmax(1), torch.arange(len(image)))


def projected(image, moved, eps, norm):
    if norm == "linf":
        return moved.clamp(image - eps, image + eps).clamp(0, 1)
    step = moved.clamp(0, 1) - image
    return image + step * min(1.0, eps / max(step.norm().item(), 1e-12))


def by_the_paper(network, image, label, start, eps, steps, rho, norm):
    """Algorithm 1 for one sample, until it falls: the image, where the step size was halved, and whether it fell."""

    def measured(x):
        x = x.detach().requires_grad_(True)
        logits = network(x[None]).logits
        value = cross_entropy(logits, label[None])
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient, logits.argmax().item() != label.item()

    x = before = best = start
    value, gradient, fallen = measured(x)
    best_value, best_gradient, size = value, gradient, 2 * eps
    last, rises, value_then, halved_then, halved_at = 0, 0, value, False, []
    for k in range(steps):
        if fallen:
            break
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        z = projected(image, x + size * direction, eps, norm)
        after = z if k == 0 else projected(image, x + 0.75 * (z - x) + 0.25 * (x - before), eps, norm)
        before, x, value_before = x, after, value
        value, gradient, fallen = measured(x)
        rises += value > value_before
        if value > best_value or fallen:
            best, best_value, best_gradient = x, value, gradient
        if k + 1 in checkpoints(steps):
            halve = rises < rho * (k + 1 - last) or (not halved_then and best_value == value_then)
            if halve:
                size, x, gradient, value = size / 2, best, best_gradient, best_value
                halved_at.append(k + 1)
            last, rises, value_then, halved_then = k + 1, 0, best_value, halve
    return best, halved_at, fallen


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rho", [0.75, 0.4])
def test_it_is_the_algorithm_of_the_paper(norm, rho):
    network, image, eps = Rough(), images(12, low=0.1, high=0.9), 0.03 if norm == "linf" else 0.2
    label = network(image).logits.argmax(1)
    attack, index = APGDCE(eps=eps, norm=norm, steps=30, rho=rho), torch.arange(12)
    with attacked(network) as victim:
        found = attack.search(victim, image, label, Draw(0, 3, index)).image
    drawn, halvings = Draw(0, 3, index), []
    for row in range(12):
        if norm == "linf":
            direction = 2 * drawn.uniform(image, "apgd.start")[row] - 1
            direction = direction / direction.abs().max()
        else:
            direction = drawn.normal(image, "apgd.start")[row]
            direction = direction / direction.norm()
        start = projected(image[row], image[row] + eps * direction, eps, norm)
        expected, halved, fell = by_the_paper(network, image[row], label[row], start, eps, 30, rho, norm)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)
        halvings.append((fell, *halved))
    assert len(set(halvings)) > 3 and {fell for fell, *_ in halvings} == {True, False}, "many ways were gone"


class Watched(APGDCE):
    """Keeps what each step left."""

    def advance(self, victim, state, step):
        super().advance(victim, state, step)
        self.seen.append((state.row.clone(), state.value.clone(), state.fallen.clone(), state.size.flatten().clone()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_value_never_falls_and_the_step_size_never_grows(norm):
    network, image = Rough(), images(12)
    attack = Watched(eps=0.02, norm=norm, steps=50)
    attack.seen = []
    batch = network.right(image)
    found, victim = found_by(attack, network, batch)
    values, sizes = torch.full((12,), -torch.inf, dtype=torch.float64), torch.full((12,), 0.04, dtype=torch.float64)
    for row, value, fallen, size in attack.seen:
        assert (fallen | (value >= values[row])).all() and (size <= sizes[row]).all()
        values[row], sizes[row] = value, size
    assert (sizes < 0.04).any() and (values > -torch.inf).any()
    reached = cross_entropy(network(found).logits, batch.label, reduction="none")
    last = {int(r): (v, f) for row, value, fallen, _ in attack.seen for r, v, f in zip(row, value, fallen, strict=True)}
    for row, (value, _) in last.items():
        torch.testing.assert_close(reached[row].detach(), value, rtol=0, atol=1e-9)


def test_forwards_and_backwards_are_counted():
    network, image = Rough(), images(12)
    _, victim = found_by(APGDCE(eps=1e-7, steps=7), network, network.right(image))
    assert (victim.forwards, victim.backwards) == (12 * (1 + 1 + 7), 12 * (1 + 7)), "clean, start, steps"


def test_a_subclass_says_what_it_must_define():
    with pytest.raises(NotImplementedError, match=r"APGD must define criterion\(logits, label, target\)"):
        APGD().criterion(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eps": "eight"}, "eps=eight is no size"),
        ({"steps": 0}, r"steps=0 is out of range; allowed: steps >= 1"),
        ({"rho": 1.5}, r"rho=1.5 is out of range; allowed: 0 <= rho <= 1"),
        ({"restarts": 0}, r"restarts=0 is out of range"),
    ],
)
def test_values_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        APGDCE(**keys)
