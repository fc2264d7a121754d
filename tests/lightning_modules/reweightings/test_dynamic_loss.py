"""Dynamic loss-based weights: the four functions by hand, their invariances, and a plain loop."""

import math

import pytest
import torch
from reweighting_bench import check_equal, composed, optimizer_of, plain_loop, train
from torch.nn.functional import cross_entropy

from lightning_modules.reweightings.dynamic_loss import DynamicLoss, dynamic_loss_weights

STRATEGIES = ("linupper", "upper", "quadratic", "extremes")


def by_hand(losses, strategy, r):
    """In Python floats."""
    low, high = min(losses), max(losses)
    values = []
    for loss in losses:
        h = 2 * (loss - (low + high) / 2) / max(high - low, 1e-6)
        f = {"linupper": min(h + 1, 1), "upper": 0.5 * h + 0.5, "quadratic": 1 - h * h, "extremes": abs(h)}[strategy]
        values.append(math.exp(f / r))
    return torch.tensor([value / sum(values) for value in values], dtype=torch.float64)


@pytest.fixture
def losses():
    return torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("r", [0.05, 0.4, 1.0])
def test_values_and_invariances(losses, strategy, r):
    found = dynamic_loss_weights(losses, strategy, r)
    torch.testing.assert_close(found, by_hand(losses.tolist(), strategy, r), rtol=1e-11, atol=0)
    assert found.min() > 0 and found.sum().item() == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(dynamic_loss_weights(7 * losses - 3, strategy, r), found, rtol=1e-11, atol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dynamic_loss_weights(losses[order], strategy, r), found[order])
    uniform = torch.full((9,), 1 / 9, dtype=torch.float64)
    torch.testing.assert_close(dynamic_loss_weights(losses, strategy, 1e9), uniform, rtol=1e-8, atol=0)
    torch.testing.assert_close(dynamic_loss_weights(torch.full_like(losses, 2.5), strategy, r), uniform)
    assert dynamic_loss_weights(torch.tensor([3.0]), strategy, r).tolist() == [1.0]


def test_shapes_of_the_functions():
    losses = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    upper, middle = dynamic_loss_weights(losses, "linupper", 0.4), dynamic_loss_weights(losses, "quadratic", 0.4)
    assert upper[2] == upper[3] == upper[4] > upper[1] > upper[0], "constant for the upper half"
    torch.testing.assert_close(middle, middle.flip(0))
    assert middle.argmax() == 2 and dynamic_loss_weights(losses, "extremes", 0.4).argmin() == 2


def test_an_outlier_does_not_press_the_others_together():
    losses = torch.cat([torch.linspace(0, 1, 20), torch.tensor([1000.0])]).double()
    plain, cut = (dynamic_loss_weights(losses, "linupper", 0.4, quantile) for quantile in (0.0, 0.1))
    assert plain[19] / plain[0] < 1.01 and cut[19] / cut[0] > 5
    inner = losses.clamp(losses.quantile(0.1), losses.quantile(0.9))  # cut at the quantiles
    torch.testing.assert_close(cut, dynamic_loss_weights(inner, "linupper", 0.4), rtol=1e-11, atol=0)


def test_no_gradient_through_the_weights(losses):
    losses.requires_grad_()
    weights = dynamic_loss_weights(losses, "linupper", 1.0)
    (weights * losses).sum().backward()
    assert torch.equal(losses.grad, weights)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context, micro_batches):
    """The first four are the plain mean."""
    network, plain = make_network(), make_network()
    parts = composed(DynamicLoss(radius=0.2, warmup_updates=4), make_context(network))
    train(parts, network, optimizer_of(network), make_batch, make_step, micro_batches=micro_batches)

    def scalar(net, images, batch, survived, update):
        losses = cross_entropy(net(images).logits, batch.label, reduction="none")
        return losses.mean() if update < 4 else losses @ by_hand(losses.tolist(), "linupper", 0.2)

    plain_loop(plain, make_batch, scalar)
    check_equal(network, plain)
    assert parts.report()["reweighting"] == {"first_active_epoch": 2, "active_step_share": 0.6}


def test_refusals(make_context, make_network):
    with pytest.raises(ValueError, match="warmup_updates=25 lasts as long as the 25 updates of this run"):
        DynamicLoss(warmup_updates=25).setup(make_context(make_network()))
    DynamicLoss(warmup_updates=24).setup(make_context(make_network()))
    with pytest.raises(ValueError, match="quantile=0.5 is out of range; allowed: 0 <= quantile < 0.5"):
        DynamicLoss(quantile=0.5)
