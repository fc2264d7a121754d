"""State of the parts: written in commit only, whole in a checkpoint, its own in a copy; a resumed run is the same."""

import copy

import torch
from bench import EPOCHS, EVERY, PARTS, SIZE, Bench, canonical, each, equal, same

from kernels.batch import Step
from lightning_modules.norm_statistics import BufferCopy
from lightning_modules.part import Regularizer
from lightning_modules.step import run_step


def frozen(part):
    """A copy of all that a state_dict holds: tensors, and what get_extra_state gives."""
    return copy.deepcopy(dict(part.state_dict()))


def told(bench):
    """All that the parts say, read in the order of a run: the row of the epoch, the report, who never acted."""
    return bench.parts.end_epoch(), bench.parts.report(), bench.parts.idle()


@EVERY
def test_a_resumed_run_equals_the_uninterrupted_one(make_network, kind, name):
    whole = Bench(make_network, [(kind, name)]).run()
    first = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    fresh = Bench(make_network, [(kind, name)], seed=1)
    for what in ("network", "parts", "optimizer"):
        state = copy.deepcopy(getattr(first, what).state_dict())
        getattr(fresh, what).load_state_dict(state)
    fresh.run(range(EPOCHS // 2, EPOCHS))
    assert equal(fresh.tensors(), whole.tensors())
    assert [list(terms) for terms in fresh.history] == [list(terms) for terms in whole.history[EPOCHS:]]
    assert fresh.parts.report() == whole.parts.report() and fresh.parts.idle() == whole.parts.idle()


@each(PARTS)
def test_a_part_writes_state_only_in_commit(make_network, kind, name):
    """An update that is computed and left out leaves no trace, neither in the state nor in what follows."""
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS - 1))
    twin, epoch = copy.deepcopy(bench), EPOCHS - 1
    before = frozen(bench.parts), frozen(bench.network.head)
    step = Step(epoch, 2 * epoch, seed=0, network=bench.network, forward=bench.network, batch_size=SIZE)
    statistics = BufferCopy(bench.network.buffers())  # which the guard puts back
    statistics.save()
    run_step(bench.parts, canonical(range(SIZE), epoch), step, micro_batches=2)
    statistics.restore()
    assert same((frozen(bench.parts), frozen(bench.network.head)), before)
    for one in (bench, twin):
        one.step(canonical(range(SIZE, 2 * SIZE), epoch), epoch, 2 * epoch + 1)
    assert same(bench.tensors(), twin.tensors()) and same(told(bench), told(twin))


@EVERY
def test_all_state_travels_in_a_checkpoint(make_network, tmp_path, kind, name):
    """Saved inside an epoch in which the part acts, and loaded by fresh parts: they go on and report the same."""
    whole, epoch = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2)), EPOCHS // 2
    whole.step(canonical(range(SIZE), epoch), epoch, 2 * epoch)
    saved = {what: getattr(whole, what).state_dict() for what in ("network", "parts", "optimizer")}
    torch.save(saved, tmp_path / "state.pt")
    fresh = Bench(make_network, [(kind, name)], seed=1)
    for what, state in torch.load(tmp_path / "state.pt", weights_only=True).items():
        getattr(fresh, what).load_state_dict(state)
    for bench in (whole, fresh):
        bench.history = [bench.step(canonical(range(SIZE, 2 * SIZE), epoch), epoch, 2 * epoch + 1).terms]
    assert same(told(fresh), told(whole))
    for bench in (whole, fresh):
        bench.run(range(epoch + 1, EPOCHS))
    assert same(fresh.history, whole.history) and same(fresh.tensors(), whole.tensors())
    assert same(told(fresh), told(whole))


def test_the_two_contracts_above_can_fail(make_network):
    """A part that counts in its forward, and one that keeps state beside the state_dict, are caught."""

    class Counts(Regularizer):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.beside = 0

        def forward(self, outputs, batch, step):
            self.calls += 1
            return 0 * outputs["main"].class_scores.sum(1)

        def commit(self, result, step):
            self.beside += 1

        def report(self):
            return {"updates": self.beside}

    bench, other = Bench(make_network), Bench(make_network)
    for one in (bench, other):
        one.parts.regularizers["counts"] = Counts()
        one.parts._writers.append(one.parts.regularizers["counts"])
    before = frozen(bench.parts)
    bench.step(canonical(range(SIZE)), 0, 0)
    assert not same(frozen(bench.parts), before)
    other.parts.load_state_dict(bench.parts.state_dict())
    assert same(frozen(other.parts), frozen(bench.parts)) and not same(told(other), told(bench))


@EVERY
def test_a_deepcopy_lives_its_own_life(make_network, kind, name):
    bench = Bench(make_network, [(kind, name)]).run(range(EPOCHS // 2))
    twin, before = copy.deepcopy(bench), [tensor.clone() for tensor in bench.tensors()]
    twin.run(range(EPOCHS // 2, EPOCHS))
    assert equal(bench.tensors(), before) and not equal(bench.weights(), twin.weights())
    bench.run(range(EPOCHS // 2, EPOCHS))
    assert equal(bench.tensors(), twin.tensors())
