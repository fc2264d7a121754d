"""KL-DRO: equal to a plain loop, one move of the tracker an update, exact under resume, silent before its start."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reweighting_bench import check_equal, composed, optimizer_of, plain_loop, train
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output, Update
from kernels.dro import effective_sample_size, kl_dro_weights
from lightning_modules.attacks.pgd import PGD
from lightning_modules.gradients.sam import SAM
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Loss
from lightning_modules.parts import Parts
from lightning_modules.reweightings.kl_dro import KLDRO
from lightning_modules.step import run_step

ARRAYS = np.load(Path(__file__).parents[2] / "reference" / "doubly_robust_at" / "weights.npz", allow_pickle=False)
LOSSES = torch.tensor([0.3, 2.0, 0.1, 1.2], dtype=torch.float64)


def weights_of(part, loss_B, step, commit=True):
    (found,) = part({"loss": loss_B}, {}, None, step).values()
    if commit:
        part.commit(Update({}, None), step)
    return found


@pytest.fixture
def step(make_step, make_network):
    network = make_network()
    return lambda update=0, epoch=0: make_step(network, epoch, update)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("steps", [0, 3], ids=["clean", "pgd"])
@pytest.mark.parametrize("level", ["batch", "compositional"])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context, level, steps, micro_batches):
    """Written from the page, in the direct form."""
    network, plain = make_network(), make_network()
    part = KLDRO(level=level, radius=0.05, rate=0.3)
    parts = composed(part, make_context(network), PGD(steps=steps) if steps else None)
    train(parts, network, optimizer_of(network), make_batch, make_step, micro_batches=micro_batches)
    u = None

    def scalar(net, images, batch, survived, update):
        nonlocal u
        losses = [cross_entropy(net(x[None]).logits, y[None]) for x, y in zip(images, batch.label, strict=True)]
        g = [math.exp(loss.item() / 0.05) for loss in losses]
        u = sum(g) / 8 if u is None or level == "batch" else 0.7 * u + 0.3 * sum(g) / 8
        return sum(weight / (8 * u) * loss for weight, loss in zip(g, losses, strict=True))

    plain_loop(plain, make_batch, scalar, steps)
    check_equal(network, plain)
    assert not torch.equal(network.head.weight, make_network().head.weight)
    if level == "compositional":
        assert part.log_tracker.item() == pytest.approx(math.log(u), abs=1e-9), "one move for each update"
    assert parts.report()["reweighting"] == {"first_active_epoch": 0, "active_step_share": 1.0}


@pytest.mark.parametrize("case", ["exp8", "ties", "const", "heavy", "huge", "one", "neg"])
def test_level_batch_has_the_weights_of_the_reference(step, case):
    losses = torch.from_numpy(ARRAYS[f"{case}/loss"])
    for radius in ("0.01", "1", "100"):
        expected = torch.from_numpy(ARRAYS[f"{case}/r={radius}/w"])
        for keys in ({"level": "batch"}, {"level": "compositional", "rate": 1.0}):
            part = KLDRO(radius=float(radius), **keys)
            torch.testing.assert_close(weights_of(part, losses, step()), expected, rtol=1e-9, atol=1e-14)
            single = weights_of(part, losses.float(), step(1))
            assert single.dtype == torch.float32
            torch.testing.assert_close(single.sum().item(), 1.0, rtol=1e-6, atol=0)


def test_resumed_in_the_middle_it_is_the_same(make_network, make_batch, make_step, make_context):
    def start(seed=0):
        network = make_network(seed)
        parts = composed(KLDRO(radius=0.1, target_ess=0.6), make_context(network))
        return parts, network, optimizer_of(network)

    whole, first, second = start(), start(), start(seed=1)
    train(*whole, make_batch, make_step)
    train(*first, make_batch, make_step, range(5))
    for there, here in zip(second, first, strict=True):
        there.load_state_dict(copy.deepcopy(here.state_dict()))
    train(*second, make_batch, make_step, range(5, 10))
    for a, b in zip(whole[:2], second[:2], strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert whole[0].end_epoch() == second[0].end_epoch() and whole[0].report() == second[0].report()


def test_the_tracker_moves_in_commit_alone(step):
    part = KLDRO(rate=0.5)
    first = weights_of(part, LOSSES, step(0), commit=False)
    assert not part.started and part.log_tracker == 0
    assert torch.equal(weights_of(part, LOSSES, step(0), commit=False), first)
    part.commit(Update({}, None), step(1))  # of another update: what was computed is forgotten
    assert not part.started
    weights_of(part, LOSSES, step(2))
    assert part.started and part.log_tracker.dtype == torch.float64
    assert part.log_tracker.item() == pytest.approx(torch.logsumexp(LOSSES, 0).item() - math.log(4), abs=1e-14)
    later = step(3)
    later.pass_number = 1
    before = copy.deepcopy(part.state_dict())
    weights_of(part, LOSSES + 1, later, commit=False)
    assert part._pending is None and all(torch.equal(v, before[k]) for k, v in part.state_dict().items())


def test_a_second_pass_of_sam_is_not_counted(make_network, make_batch, make_step, make_context):
    network, batch, part = make_network(), make_batch(range(8)), KLDRO()
    parts = Parts(CrossEntropy(), reweighting=part, gradient=SAM())
    parts.setup(make_context(network))
    loss_B = cross_entropy(network(batch.image).logits, batch.label, reduction="none").detach()
    result = run_step(parts, batch, make_step(network))
    parts.commit(result.whole(), make_step(network))
    assert part.log_tracker.item() == pytest.approx(loss_B.logsumexp(0).item() - math.log(8), abs=1e-12)
    torch.testing.assert_close(result.coefficients[0]["cross_entropy"], kl_dro_weights(loss_B, 1.0))


@pytest.mark.parametrize("level", ["batch", "compositional"])
def test_losses_that_are_not_finite_leave_no_trace(step, level):
    part = KLDRO(level=level)
    bad = torch.tensor([1.0, math.nan, 2.0, 0.5], dtype=torch.float64)
    weights_of(part, bad, step(0))
    assert not part.started, "the first batch does not start it"
    weights_of(part, LOSSES, step(1))
    before = part.log_tracker.clone()
    for update, value in enumerate((math.nan, math.inf, -math.inf), start=2):
        bad[1] = value
        weights_of(part, bad, step(update))
    assert part.started and torch.equal(part.log_tracker, before)
    with pytest.warns(UserWarning, match="KL-DRO left out the losses of 4 updates, which were not finite"):
        part.end_epoch()
    assert not part.skipped


def test_before_its_start_it_is_the_plain_mean(make_network, make_batch, make_step, make_context):
    nets = make_network(), make_network()
    part = KLDRO(start_epoch=3, radius=0.1)
    parts = composed(part, make_context(nets[0])), composed(None, make_context(nets[1]))
    optimizers = [optimizer_of(network) for network in nets]
    for one, network, optimizer in zip(parts, nets, optimizers, strict=True):
        train(one, network, optimizer, make_batch, make_step, range(6))
    check_equal(*nets, atol=0)
    assert not part.started and not part.acted() and part.end_epoch() == {}
    train(parts[0], nets[0], optimizers[0], make_batch, make_step, range(6, 10))
    assert part.started and part.acted()
    assert part.report() == {"first_active_epoch": 3, "active_step_share": 0.4}


def test_the_cap_cuts_and_gives_nothing_to_others(step):
    free, capped = (weights_of(KLDRO(level="batch", radius=0.5, max_weight=cap), LOSSES, step()) for cap in (None, 2.0))
    assert free.max() > 0.5 and capped.max() == 0.5
    assert torch.equal(capped[free < 0.5], free[free < 0.5])


@pytest.mark.parametrize("level", ["batch", "compositional"])
def test_a_share_in_place_of_a_radius(step, level):
    part, generator = KLDRO(level=level, target_ess=0.4), torch.Generator().manual_seed(0)
    tracked = None
    for update in range(5):
        losses = torch.rand(16, generator=generator, dtype=torch.float64) * 3 ** (update % 3)
        found = weights_of(part, losses, step(update))
        r = part.last_radius.item()
        assert effective_sample_size(found / found.sum()).item() == pytest.approx(0.4, abs=1e-9)
        torch.testing.assert_close(found / found.sum(), kl_dro_weights(losses, r), rtol=1e-9, atol=0)
        if level == "compositional":  # r U goes on, whatever r is
            now = (losses / r).exp().mean().item()
            u = now if tracked is None else 0.9 * math.exp(tracked / r) + 0.1 * now
            tracked = r * math.log(u)
            assert r * part.log_tracker.item() == pytest.approx(tracked, rel=1e-9)
            assert found.sum().item() == pytest.approx(now / u, rel=1e-9)
    columns = part.end_epoch()
    assert columns["effective_sample_share"] == pytest.approx(0.4, abs=1e-9) and columns["radius"] == r
    assert ("log_tracker" in columns) == (level == "compositional")


def test_what_an_epoch_says(step):
    part, expected = KLDRO(rate=0.2, radius=0.7), []
    for update in range(3):
        found = weights_of(part, LOSSES * (1 + update), step(update))
        expected.append((effective_sample_size(found / found.sum()).item(), found.sum().item()))
    share, total = np.mean(expected, 0)
    columns = part.end_epoch()
    assert columns == pytest.approx(
        {"effective_sample_share": share, "coefficient_sum": total, "log_tracker": part.log_tracker.item()}, abs=1e-14
    )
    assert part.end_epoch() == {"log_tracker": part.log_tracker.item()}, "the sums begin again"


def test_uniform_coefficients_are_no_act(step):
    part = KLDRO(level="batch")
    weights_of(part, torch.full((5,), 0.7), step())
    weights_of(part, torch.tensor([3.0]), step(1))
    assert not part.acted()
    assert part({"loss": torch.zeros(0)}, {}, None, step(2)) == {}, "no sample has no coefficient"


class Two(Loss):
    views = ("clean", "main")

    def forward(self, outputs, batch, step):
        return {
            "natural": cross_entropy(outputs["clean"].logits, batch.label, reduction="none"),
            "robust": 2 * cross_entropy(outputs["main"].logits, batch.label, reduction="none"),
            "batch": outputs["main"].logits.square().mean(),
        }


@pytest.mark.parametrize("term", [None, "robust"])
def test_one_term_decides_for_all(make_network, make_batch, make_step, make_context, term):
    network, batch = make_network(), make_batch(range(8))
    parts = composed(KLDRO(level="batch", term=term), make_context(network), PGD(steps=2), Two())
    result = run_step(parts, batch, make_step(network))
    losses, found = result.losses[0], result.coefficients[0]
    decides = losses["robust"] if term else losses["robust"] + losses["natural"]
    assert set(found) == {"natural", "robust"}
    for value in found.values():
        torch.testing.assert_close(value, (decides - decides.logsumexp(0)).exp(), rtol=1e-12, atol=0)
    for name in found:
        torch.testing.assert_close(result.terms[name], found[name] @ losses[name])


def test_a_term_that_is_none(make_network, make_batch, make_step):
    parts = Parts(CrossEntropy(), reweighting=KLDRO(term="cross_entrpy"))
    with pytest.raises(ValueError, match="reweighting.term=cross_entrpy is not known; did you mean cross_entropy"):
        run_step(parts, make_batch(range(8)), make_step(make_network()))


def test_a_start_behind_the_end(make_context, make_network):
    with pytest.raises(ValueError, match=r"KLDRO can never act: start_epoch=5 \(0-based\) lies behind the 5 epochs"):
        KLDRO(start_epoch=5).setup(make_context(make_network()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"radius": 0.0}, "radius=0.0 is out of range; allowed: radius > 0"),
        ({"rate": 1.1}, "rate=1.1 is out of range; allowed: 0 < rate <= 1"),
        ({"target_ess": 1.0}, "target_ess=1.0 is out of range; allowed: 0 < target_ess < 1"),
        ({"max_weight": 0.5}, "max_weight=0.5 is out of range; allowed: max_weight >= 1"),
    ],
)
def test_values_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        KLDRO(**keys)


def test_it_works_in_a_plain_loop_without_parts(step):
    part = KLDRO(radius=0.5)
    batch = Batch(torch.zeros(4, 3, 2, 2), torch.arange(4), torch.arange(4))
    found = part({"ce": LOSSES}, {"main": Output()}, batch, step())["ce"]
    torch.testing.assert_close(found, kl_dro_weights(LOSSES, 0.5))
