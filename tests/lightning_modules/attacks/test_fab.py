"""FAB: what is nearer than eps is found, also at the border of [0, 1], and a step is recomputed by hand."""

import pytest
import torch
from linear_victims import LinearVictim, can_fall_l2, can_fall_linf, found_by, images, wrong

from kernels.batch import Batch, Output
from lightning_modules.attacks.fab import FAB


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 5])
def test_what_is_closer_than_eps_is_found_and_nothing_else(norm, classes):
    network = LinearVictim(classes)
    batch = network.right(images(60, low=0.0 if norm == "linf" else 0.3, high=1.0 if norm == "linf" else 0.7))
    can_fall, eps = (can_fall_linf, 0.02) if norm == "linf" else (can_fall_l2, 0.08)
    found, _ = found_by(FAB(eps=eps, norm=norm, targets=classes - 1, steps=30), network, batch)
    fallen = wrong(network, found, batch.label)
    surely, possibly = (can_fall(network, batch, size) > 0 for size in (0.99 * eps, eps))
    assert 10 < surely.sum() < 55
    assert fallen[surely].all() and not fallen[~possibly].any()
    assert torch.equal(found[~fallen], batch.image[~fallen]), "what stands is returned as it was"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_by_hand(norm):
    """From the clean image both steps are one: it goes eta times the distance to the border."""
    network = LinearVictim(2)
    batch = network.right(images(1, low=0.4, high=0.6, seed=4))
    normal = (network.weight[1 - batch.label[0]] - network.weight[batch.label[0]]).detach()
    value = network(batch.image).logits.detach()[0]
    gap = value[1 - batch.label[0]] - value[batch.label[0]]
    along, gained = (normal.sign(), normal.abs().sum()) if norm == "linf" else (normal, normal.square().sum())
    step = -gap / gained * along
    found, victim = found_by(FAB(eps=1.0, norm=norm, targets=1, steps=1), network, batch)
    torch.testing.assert_close(found.flatten(), batch.image.flatten() + 1.05 * step, rtol=0, atol=1e-12)
    assert (victim.forwards, victim.backwards) == (3, 1), "clean, gradient, and where it went"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("beta", [None, 0.9, 0.7])
def test_two_steps_by_hand_with_the_way_back_between_them(norm, beta):
    """Along the normal, in units of the distance to the border: 1.05 is wrong and outside of the ball, so it goes back
    to ``1.05 beta``, and from there on. Without the way back (beta = 1) the gradient would be taken at 1.05."""
    keys, share = ({}, 0.9) if beta is None else ({"beta": beta}, beta)
    network = LinearVictim(2)
    batch = network.right(images(1, low=0.4, high=0.6, seed=4))
    normal = (network.weight[1 - batch.label[0]] - network.weight[batch.label[0]]).detach()
    value = network(batch.image).logits.detach()[0]
    gap = value[1 - batch.label[0]] - value[batch.label[0]]
    along, gained = (normal.sign(), normal.abs().sum()) if norm == "linf" else (normal, normal.square().sum())
    unit = -gap / gained * along
    distance = unit.abs().max() if norm == "linf" else unit.norm()
    seen = []
    handle = network.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten()))
    found, _ = found_by(FAB(eps=1.04 * distance.item(), norm=norm, targets=1, steps=2, **keys), network, batch)
    handle.remove()
    back = 1.05 * share
    alpha = min((1 - back) / (1 - back + 1), 0.1)
    ahead = (1 - alpha) * (back + 1.05 * (1 - back)) + alpha * 1.05
    walked = [((image - batch.image.flatten()) @ unit / unit.square().sum()).item() for image in seen]
    assert walked == pytest.approx([0, 0, 1.05, back, ahead], abs=1e-10)
    assert 1 < ahead < 1.04, "the second end is wrong and in the ball"
    torch.testing.assert_close(found.flatten(), batch.image.flatten() + ahead * unit, rtol=0, atol=1e-12)


class Curved(torch.nn.Module):
    """Two classes: the other one beyond a circle around the grey image."""

    def __init__(self):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, image):
        far = (image - 0.5).flatten(1).square().sum(1)
        return Output(logits=torch.stack([0 * far, far - self.radius**2], 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_point_of_a_curved_border_is_approached(norm):
    """It goes back towards the clean image from outside of the ball, until it is in it."""
    network = Curved()
    direction = torch.full((48,), 1 / 48**0.5, dtype=torch.float64)
    image = (0.5 + 0.2 * direction).view(1, 3, 4, 4)
    batch = Batch(image, torch.tensor([0]), torch.tensor([0]))
    nearest = 0.4 if norm == "l2" else 0.4 / 48**0.5
    for eps, falls in ((1.02 * nearest, True), (0.99 * nearest, False)):
        found, victim = found_by(FAB(eps=eps, norm=norm, targets=1), network, batch)
        assert wrong(network, found, batch.label).item() is falls
        assert victim.backwards > 2, "the first step is too long for either"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eta": 0.5}, r"eta=0.5 is out of range; allowed: eta >= 1"),
        ({"alpha_max": 2.0}, r"alpha_max=2.0 is out of range"),
        ({"beta": 0.0}, r"beta=0.0 is out of range; allowed: 0 < beta <= 1"),
        ({"targets": 0}, r"targets=0 is out of range"),
        ({"eps": "-1/255"}, r"eps=-1/255 is out of range"),
    ],
)
def test_values_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        FAB(**keys)
