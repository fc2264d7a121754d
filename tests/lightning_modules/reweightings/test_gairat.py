"""GAIRAT: the official weights, a plain loop, and the steps that must be those of the attack."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reweighting_bench import check_equal, composed, optimizer_of, plain_loop, train
from torch.nn.functional import cross_entropy

from kernels.batch import Batch
from lightning_modules.attacks.pgd import PGD
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Attack
from lightning_modules.parts import Parts
from lightning_modules.reweightings.gairat import GAIRAT, gairat_weights

ARRAYS = np.load(Path(__file__).parents[2] / "reference" / "adversarial" / "losses_on_logits.npz", allow_pickle=False)
KAPPA = torch.from_numpy(ARRAYS["gairat/kappa"])


@pytest.mark.parametrize("lam", [-1.0, 0.0, math.inf])
@pytest.mark.parametrize("function", ["tanh", "sigmoid", "discrete"])
def test_equals_the_official_code(function, lam):
    expected = torch.from_numpy(ARRAYS[f"gairat/{function.capitalize()}_lambda={lam}"])
    found = gairat_weights(KAPPA, 10, lam, function)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.mean().item() == pytest.approx(1, abs=1e-14)
    if lam == math.inf and function != "discrete":
        assert torch.equal(found, torch.ones_like(found))


def coefficients(part, kappa, step, dtype=torch.float64):
    batch = Batch(torch.zeros(len(kappa), 0), kappa, torch.arange(len(kappa)), survived_steps=kappa)
    return part({"a": torch.zeros(len(kappa), dtype=dtype), "b": torch.ones(len(kappa), dtype=dtype)}, {}, batch, step)


def test_coefficients_sum_to_one_for_every_term(make_step, make_network):
    found = coefficients(GAIRAT(steps=10), KAPPA.long(), make_step(make_network()))
    expected = torch.from_numpy(ARRAYS["gairat/Tanh_lambda=-1.0"]) / len(KAPPA)
    assert set(found) == {"a", "b"}
    for value in found.values():
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    single = coefficients(GAIRAT(steps=10), KAPPA.long(), make_step(make_network()), torch.float32)
    assert single["a"].dtype == torch.float32 and (KAPPA.diff() > 0).all() and (found["a"].diff() < 0).all()


def test_odd_steps_are_halved_exactly():
    found = gairat_weights(torch.tensor([0, 3, 7]), 7)
    raw = [(1 + math.tanh(-1 + 5 * (3.5 - kappa) / 3.5)) / 2 for kappa in (0, 3, 7)]
    torch.testing.assert_close(found, torch.tensor(raw, dtype=torch.float64) / sum(raw) * 3, rtol=1e-10, atol=0)


def test_weights_that_underflow_keep_their_ratios():
    """All samples far from the boundary, and lambda low: 1 + tanh is zero in float64."""
    found = gairat_weights(torch.tensor([10, 10, 9]), 10, -40.0)
    share = math.exp(2 * 1.0)  # a differs by 1, sigmoid(2a) is exp(2a) here
    expected = torch.tensor([1, 1, share], dtype=torch.float64) * 3 / (2 + share)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gairat_weights(torch.tensor([4, 4]), 10), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context, micro_batches):
    network, plain = make_network(), make_network()
    parts = composed(GAIRAT(), make_context(network), PGD(steps=4))
    results = train(parts, network, optimizer_of(network), make_batch, make_step, micro_batches=micro_batches)

    def scalar(net, images, batch, survived, update):
        raw = [(1 + math.tanh(-1 + 5 * (2 - kappa) / 2)) / 2 for kappa in survived.tolist()]
        losses = cross_entropy(net(images).logits, batch.label, reduction="none")
        return sum(weight / sum(raw) * loss for weight, loss in zip(raw, losses, strict=True))

    plain_loop(plain, make_batch, scalar, 4)
    check_equal(network, plain)
    kappas = torch.cat([micro.survived_steps for result in results for micro in result.batches])
    assert {0, 4} <= set(kappas.tolist()), "some are weighed up, some down"
    assert parts.report()["reweighting"]["active_step_share"] > 0 and "effective_sample_share" in "".join(
        parts.end_epoch()
    )


def test_steps_are_taken_from_the_attack_or_compared_with_it(make_context, make_network):
    context = make_context(make_network())
    for keys, steps in (({}, 7), ({"steps": 7}, 7)):
        part = GAIRAT(**keys)
        composed(part, context, PGD(steps=steps))
        assert part.steps == 7
    with pytest.raises(
        ValueError, match="reweighting.steps=10 differs from the 7 steps of the attack.* set it to 7, or"
    ):
        composed(GAIRAT(steps=10), context, PGD(steps=7))
    with pytest.raises(ValueError, match="takes the number of steps from the attack, which is 0"):
        composed(GAIRAT(), context, PGD(steps=0))
    with pytest.raises(ValueError, match="which is None; .* where no attack is composed with it"):
        GAIRAT().setup(context)


class Blind(Attack):
    """Counts nothing."""


def test_an_attack_that_does_not_count_is_refused():
    for attack in (None, Blind()):
        with pytest.raises(
            ValueError, match="reweighting needs survived_steps: choose an attack that counts the steps"
        ):
            Parts(CrossEntropy(), attack=attack, reweighting=GAIRAT())
    Parts(CrossEntropy(), attack=PGD(), reweighting=GAIRAT())


def test_counts_that_are_missing(make_step, make_network):
    batch = Batch(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match=r"GAIRAT reads how many steps of an attack each sample withstood"):
        GAIRAT(steps=10)({"a": torch.zeros(2)}, {}, batch, make_step(make_network()))
