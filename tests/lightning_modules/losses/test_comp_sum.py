"""Comp-sum as a part: plain loops with and without the smooth adversarial version, its attack and refusals."""

import math

import pytest
import torch
from adversarial_bench import counted, equal_weights, optimizer_of, ours, plain
from torch.nn.functional import one_hot

from kernels.batch import Batch
from kernels.comp_sum import comp_sum
from lightning_modules.attacks.pgd import PGD
from lightning_modules.losses.comp_sum import CompSum
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.part import Mixing
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def phi(z, label, tau, rho):
    """By the sum of exponentials."""
    own = z.gather(1, label[:, None])
    u = (((z - own) / rho).exp() * (1 - one_hot(label, 3))).sum(1)
    return (1 + u).log() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def moved(clean, adversarial, label):
    """Distances of the margins."""
    margins = [z.gather(1, label[:, None]) - z for z in (clean, adversarial)]
    return (margins[1] - margins[0]).square().sum(1).sqrt().sum()


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_are_a_plain_loop(make_network, make_batch, make_step, tau, micro_batches):
    network, reference = make_network(), make_network()
    optimizers = [optimizer_of(net) for net in (network, reference)]
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        for optimizer in optimizers:
            optimizer.zero_grad()
        step = make_step(network, update=update)
        terms = run_step(Parts(CompSum(tau=tau, rho=0.5)), batch, step, micro_batches=micro_batches).terms
        phi(reference(batch.image).logits, batch.label, tau, 0.5).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    equal_weights(network, reference)
    assert list(terms) == ["comp_sum"]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_smooth_adversarial_version_is_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    """Its first term is that of the clean image, and its attack raises the second."""
    network, reference = make_network(), make_network()
    loss = CompSum(tau=1.5, rho=0.5, nu=0.8)
    terms = list(ours(network, loss, make_batch, make_step, micro_batches, objective="margin_shift"))

    def by_hand(clean, adversarial, label):
        return phi(clean, label, 1.5, 0.5).sum() + 0.8 * moved(clean, adversarial, label)

    values = list(plain(reference, by_hand, moved, make_batch))
    equal_weights(network, reference)
    assert all(list(of) == ["comp_sum", "comp_sum_shift"] for of in terms)
    assert [sum(of.values()).item() for of in terms] == pytest.approx(values, rel=1e-9)
    assert min(of["comp_sum_shift"].item() for of in terms) > 0


def test_without_a_ball_it_is_the_first_term(make_network, make_batch, make_step):
    """gamma = 0: the attack cannot move, and the second term is 0 without a gradient."""
    gradients = []
    for loss, attack in ((CompSum(nu=2.0), PGD(eps=0.0, objective="margin_shift")), (CompSum(), None)):
        network = make_network()
        result = run_step(Parts(loss, attack=attack), make_batch(range(8)), make_step(network))
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)
    assert list(result.terms) == ["comp_sum"]


def test_its_attack_finds_larger_shifts_than_one_on_the_cross_entropy(make_network, make_batch, make_step):
    """And without a random start it finds none, since the distance has no gradient at the clean image."""
    shift = {}
    for name, start in (("margin_shift", "normal"), ("ce", "normal"), ("margin_shift", "none")):
        attack = PGD(objective=name, start=start, eps=0.2, step_size=0.05)
        parts = Parts(CompSum(nu=1.0), attack=attack)
        shift[name, start] = run_step(parts, make_batch(range(8)), make_step(make_network())).terms["comp_sum_shift"]
    assert shift["margin_shift", "normal"] > shift["ce", "normal"] > 0 == shift["margin_shift", "none"]


def test_forwards(make_network, make_batch, make_step):
    """One in all without nu; with it those of the attack, whose clean prediction is made once, and two."""
    for keys, attack, expected in (
        ({}, None, 1),
        ({}, PGD(steps=4), 4 + 1),
        ({"nu": 1.0}, PGD(steps=4, objective="margin_shift"), 4 + 1 + 2),
    ):
        network = make_network()
        seen = counted(network)
        run_step(Parts(CompSum(**keys), attack=attack), make_batch(range(8)), make_step(network))
        assert seen == [8] * expected


def test_without_nu_the_attacked_image_is_learnt(make_network, make_batch, make_step):
    network = make_network()
    result = run_step(Parts(CompSum(tau=0.5), attack=PGD(steps=2)), make_batch(range(8)), make_step(network)).whole()
    expected = comp_sum(network(result.batch.image).logits, result.batch.label, tau=0.5)
    torch.testing.assert_close(result.losses["comp_sum"], expected.detach(), rtol=0, atol=1e-12)


def test_tau_one_trains_as_cross_entropy(make_network, make_batch, make_step):
    gradients = []
    for loss in (CompSum(tau=1.0), CrossEntropy()):
        network = make_network()
        run_step(Parts(loss), make_batch(range(8)), make_step(network))
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("nu", [0.0, 1.0])
def test_mixed_labels_and_mixed_precision(make_network, make_batch, make_step, make_context, nu):
    attack = PGD(steps=2, objective="margin_shift") if nu else None
    found = []
    for autocast in (False, True):
        network = make_network(dtype=torch.float32)
        parts = Parts(CompSum(nu=nu, tau=0.0), attack=attack, mixing=Mixup())
        parts.setup(make_context(network))
        batch = make_batch(range(8), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = run_step(parts, batch, make_step(network))
        assert result.batches[0].label.ndim == 2 and all(p.grad.isfinite().all() for p in network.parameters())
        assert all(value.dtype == torch.float32 and value.isfinite() for value in result.terms.values())
        found.append(result.terms["comp_sum"].item())
    assert found[0] == pytest.approx(found[1], rel=3e-2)


class Behind(Mixing):
    """Mixes in the feature map of the main view."""

    at = "feature_map"

    def mix_batch(self, batch: Batch, step) -> Batch:
        return batch


def test_refusals():
    with pytest.raises(ValueError, match="loss reads the view 'adversarial', and there is no attack; add one with"):
        Parts(CompSum(nu=1.0))
    with pytest.raises(ValueError, match="loss cannot be combined with mixing: the clean and the attacked image are"):
        Parts(CompSum(nu=1.0), attack=PGD(), mixing=Behind())
    assert Parts(CompSum(), attack=PGD(), mixing=Behind()).views == ("main",)
    for key, value in (("tau", -0.5), ("nu", -1.0), ("rho", 0.0), ("rho", math.inf)):
        with pytest.raises(ValueError, match=f"{key}={value} is out of range; allowed: {key} >"):
            CompSum(**{key: value})
    with pytest.raises(ValueError, match="which objective=margin_shift does not know; set objective=ce"):
        PGD(targeted=True, objective="margin_shift")
