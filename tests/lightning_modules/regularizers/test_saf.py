"""SAF: the store, the schedule, and the shipped part against a plain loop written from the paper's page."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.regularizers.saf import SAF
from lightning_modules.step import run_step

CLASSES, TRAIN = 3, 40


def visit(saf: SAF, epoch: int, index: torch.Tensor, logits: torch.Tensor) -> torch.Tensor | None:
    """One forward and commit of the part alone."""
    batch = Batch(image=torch.zeros(len(index), 3, 2, 2), label=index % CLASSES, index=index)
    step = Step(epoch=epoch, update=0, seed=0, network=torch.nn.Identity(), forward=None, batch_size=len(index))
    outputs = {"main": Output(logits=logits)}
    term = saf(outputs, batch, step)
    saf.commit(Update(outputs, batch), step)
    return term


@pytest.fixture
def context(make_context, make_network):
    return make_context(make_network(), max_epochs=8)


def epochs(seed: int, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randperm(TRAIN, generator=generator), torch.randn(TRAIN, CLASSES, generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_reference_is_exactly_lag_epochs_old_for_any_order_and_batch_size(context, lag, batch_size):
    saf = SAF(weight=1.0, temperature=2.0, lag=lag, start_epoch=0)
    saf.setup(context)
    history = epochs(0)
    for epoch, (order, logits) in enumerate(history):
        for index in order.split(batch_size):
            term = visit(saf, epoch, index, logits[index])
            if epoch < max(lag, 1):
                assert term is None
                continue
            past = history[epoch - lag][1][index].half().float()
            expected = 4.0 * kl_div(
                (logits[index] / 2).log_softmax(1), (past / 2).log_softmax(1), reduction="none", log_target=True
            ).sum(1)
            torch.testing.assert_close(term, expected, rtol=1e-5, atol=1e-6)
    assert saf.store.dtype == torch.float16 and saf.store.shape == (lag, TRAIN, CLASSES)


def test_schedule_is_strict_at_both_ends(context):
    saf = SAF(lag=1, start_epoch=2, end_epoch=5)
    saf.setup(context)
    assert [epoch for epoch in range(8) if saf.active(epoch)] == [3, 4]
    share = SAF(lag=1, start_epoch=0.5)
    share.setup(context)
    assert [epoch for epoch in range(8) if share.active(epoch)] == [5, 6, 7]


def test_stale_rows_count_as_zero_and_the_mean_is_over_the_whole_batch(context):
    saf = SAF(weight=0.3, temperature=5.0, lag=1, start_epoch=0)
    saf.setup(context)
    seen, logits = torch.arange(4), torch.randn(8, CLASSES)
    visit(saf, 0, seen, logits[:4])
    term = visit(saf, 1, torch.arange(8), logits + torch.randn(8, CLASSES))
    assert bool((term[:4] > 0).all()) and bool((term[4:] == 0).all())
    assert saf.end_epoch()["fresh_share"] == pytest.approx(0.5)
    visit(saf, 2, torch.arange(4, 8), logits[4:])  # rows 0-3 skip an epoch
    assert bool((visit(saf, 3, seen, logits[:4]) == 0).all())


def test_second_visit_in_an_epoch_is_read_before_written_and_then_stale(context):
    saf = SAF(lag=1, start_epoch=0)
    saf.setup(context)
    first, second, third = torch.randn(3, 1, CLASSES).unbind()
    index = torch.tensor([5])
    visit(saf, 0, index, first)
    assert float(visit(saf, 1, index, second)) > 0
    assert float(visit(saf, 1, index, third)) == 0
    torch.testing.assert_close(saf.store[0, 5], third[0].half())


def test_weight_zero_is_bit_identical_and_costs_nothing(make_network, make_batch, make_step, make_context):
    batch = make_batch(list(range(8)))
    gradients = []
    for regularizers in ({}, {"saf": SAF(weight=0.0, start_epoch=0, lag=1)}):
        network = make_network()
        parts = Parts(CrossEntropy(), regularizers)
        parts.setup(make_context(network))
        for epoch in range(3):
            run_step(parts, batch, make_step(network, epoch))
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert regularizers["saf"].acted(), "switched off on purpose is not an error"


def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context):
    network, plain = make_network(), make_network()
    parts = Parts(CrossEntropy(label_smoothing=0.1), {"saf": SAF(weight=0.3, temperature=5.0, lag=2, start_epoch=1)})
    parts.setup(make_context(network))
    optimizer = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)
    reference = torch.optim.SGD(plain.parameters(), 0.5, momentum=0.9)
    memory: dict[tuple[int, int], torch.Tensor] = {}
    for update in range(10):
        epoch, half = divmod(update, 2)
        batch = make_batch(list(range(8 * half, 8 * half + 8)), seed=update)
        optimizer.zero_grad()
        step = make_step(network, epoch, update)
        whole = run_step(parts, batch, step, micro_batches=2).whole()
        optimizer.step()
        parts.commit(whole, step)

        reference.zero_grad()
        logits = plain(batch.image).logits
        loss = cross_entropy(logits, batch.label, label_smoothing=0.1)
        if epoch > 1:
            for row, i in enumerate(batch.index.tolist()):
                p = (memory[epoch - 2, i].double() / 5).softmax(0)
                loss = loss + 0.3 * 25 / 8 * (p * (p.log() - (logits[row] / 5).log_softmax(0))).sum()
        loss.backward()
        reference.step()
        for row, i in enumerate(batch.index.tolist()):
            memory[epoch, i] = logits[row].detach().half()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    report = parts.report()["saf"]
    assert report == {"first_active_epoch": 2, "active_step_share": 0.6}


def test_state_round_trip_and_deepcopy(context):
    saf = SAF(lag=2, start_epoch=0)
    saf.setup(context)
    history = epochs(1)
    for epoch in range(3):
        visit(saf, epoch, history[epoch][0], history[epoch][1])
    twin, fresh = copy.deepcopy(saf), SAF(lag=2, start_epoch=0)
    fresh.setup(context)
    fresh.load_state_dict(saf.state_dict())
    index, logits = history[3]
    expected = visit(saf, 3, index, logits)
    assert torch.equal(visit(twin, 3, index, logits), expected) and torch.equal(
        visit(fresh, 3, index, logits), expected
    )
    assert fresh.end_epoch() == saf.end_epoch() and fresh.report() == saf.report()


def test_extreme_logits_are_stored_finite(context):
    saf = SAF(lag=1, start_epoch=0)
    saf.setup(context)
    index = torch.tensor([0])
    visit(saf, 0, index, torch.tensor([[1e6, -1e6, 0.0]]))
    term = visit(saf, 1, index, torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16))
    assert term.dtype == torch.float32 and bool(term.isfinite().all())


def test_refusals(context):
    with pytest.raises(
        ValueError, match=r"SAF can never act in 8 epochs: .* first epoch would be 8 .* trainer.max_epochs above 8"
    ):
        SAF(start_epoch=7).setup(context)
    with pytest.raises(
        ValueError, match=r"start_epoch=1.5 is out of range; allowed: .* >= -1 \(int\) or 0 < start_epoch < 1"
    ):
        SAF(start_epoch=1.5).setup(context)
    with pytest.raises(ValueError, match="lag=0 is out of range; allowed: lag >= 1"):
        SAF(lag=0)
    with pytest.raises(ValueError, match="weight=.* is out of range; allowed: weight >= 0"):
        SAF(weight=-1.0)
    with pytest.raises(ValueError, match="saf cannot be combined with mixing: the past logits"):
        Parts(CrossEntropy(), {"saf": SAF()}, mixing=Mixup())
