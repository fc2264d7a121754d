"""The finite guard through lightning.Trainer: what is refused before the update, and what each policy leaves behind."""

import copy
import math
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.finite.check import NonFiniteError, check_finite
from lightning_modules.finite.guard import FiniteGuard
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.norm_statistics import BufferCopy
from lightning_modules.optimization import create_optimizer, create_schedule
from lightning_modules.part import Regularizer
from lightning_modules.parts import Parts
from lightning_modules.regularizers.saf import SAF
from lightning_modules.step import run_step
from lightning_modules.tasks.classification import Classification
from recipes.processes.trainer import create_trainer

pytestmark = pytest.mark.fault
EPOCHS, STEPS = 3, 5


@pytest.fixture
def batches(make_batch):
    return [make_batch(list(range(8 * i, 8 * i + 8)), seed=i) for i in range(STEPS)]


@pytest.fixture
def make_task(make_context):
    def make(network, regularizers=None, kind=Classification, **keys):
        return kind(
            network,
            Parts(CrossEntropy(), regularizers),
            lambda net, owned: create_optimizer(net, owned, name="momentum", lr=0.2, momentum=0.8, weight_decay=1e-2),
            lambda optimizer, total: create_schedule(optimizer, total, name="cosine", warmup_fraction=0.2),
            make_context(network, max_epochs=EPOCHS, steps_per_epoch=STEPS),
            **keys,
        )

    return make


def fit(task, batches, epochs=EPOCHS):
    trainer = create_trainer(max_epochs=epochs, accelerator="cpu", devices=1, precision="64-true")
    trainer.fit(task, DataLoader(batches, batch_size=None))


class Breaks(Regularizer):
    """A term that spoils chosen updates: ``how`` makes its value from the logits."""

    def __init__(self, how, *updates):
        super().__init__()
        self.how, self.updates = how, updates

    def forward(self, outputs, batch, step):
        logits_BC = outputs["main"].class_scores
        return self.how(logits_BC, batch) if step.update in self.updates else 0 * logits_BC.sum(1)


def nan_term(logits_BC, batch):
    return logits_BC.sum(1) * torch.where(batch.index % 8 == 5, math.nan, 0.0)


def inf_gradient(logits_BC, batch):
    """0 in the forward, infinite slope in the backward."""
    return (logits_BC - logits_BC.detach()).abs().sum(1).sqrt()


def nan_image(batches, update):
    batches[update % STEPS].image[2, 0, 0, 0] = math.nan


def after_each_batch(task, call):
    """Let ``call()`` see the task when a batch is done, in or out."""
    own = task.on_train_batch_end

    def done(*arguments):
        own(*arguments)
        call()

    task.on_train_batch_end = done


def everything(task):
    """Weights, buffers, average, state of the parts and momentum."""
    momenta = [state["momentum_buffer"] for state in task.optimizers().state_dict()["state"].values()]
    return [*task.state_dict().values(), *momenta]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class LeavesOut(Classification):
    """The run in which some batches are simply not there: schedule and position move on, nothing else does."""

    missing: tuple[int, ...] = ()

    def training_step(self, batch, batch_idx):
        if self.update in self.missing:
            self.schedule.step_update(self.update)
            self.update += 1
        else:
            super().training_step(batch, batch_idx)


def test_the_check_is_exact(make_network, make_batch, make_step):
    network = make_network()
    result = run_step(Parts(CrossEntropy()), make_batch(list(range(8))), make_step(network))
    assert check_finite(result, []).ok and not check_finite(result, []).stop
    assert check_finite(result, [torch.tensor(1.0)], stop=True).stop, "one process: a request passes through"
    assert check_finite(result, [torch.tensor(3e38)] * 2).ok, "finite numbers whose sum is not"
    for bad in (math.nan, math.inf, -math.inf):
        assert not check_finite(result, [torch.tensor(1.0), torch.tensor(bad)]).ok
    result.terms["cross_entropy"] = torch.tensor(math.inf)
    result.terms["other"] = torch.tensor(-math.inf)
    assert not check_finite(result, []).ok


@pytest.mark.parametrize("how", [nan_term, inf_gradient])
@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_raise_comes_before_the_update(make_network, make_task, batches, how, clip_norm):
    def make(*updates):
        regularizers = {"term": Breaks(how, *updates), "saf": SAF(lag=1, start_epoch=0)}
        return make_task(make_network(), regularizers, ema_decay=0.5, clip_norm=clip_norm)

    task, good, states = make(7), make(), []
    after_each_batch(good, lambda: states.append(copy.deepcopy(everything(good))))
    fit(good, batches, epochs=2)
    what = "term" if how is nan_term else "gradient norm"
    with pytest.raises(NonFiniteError, match=f"the .*{what} is not finite in epoch 1, update 7; this update was not"):
        fit(task, batches)
    assert task.update == 7 and equal(everything(task), states[6])


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_skip_equals_a_run_without_the_batches(make_network, make_task, batches, batch_norm, clip_norm):
    def make(kind, **keys):
        regularizers = {"saf": SAF(lag=1, start_epoch=0), "term": Breaks(nan_term, 4)}
        network = make_network(batch_norm=batch_norm)
        return make_task(network, regularizers, kind, ema_decay=0.5, clip_norm=clip_norm, micro_batches=2, **keys)

    plain, ours = make(LeavesOut), make(Classification, nonfinite="skip")
    plain.missing = (3, 4, 8, 13)
    fit(plain, batches)
    rows = []
    after_each_batch(ours, lambda: rows.append(ours.guard.state()["in_row"]))
    nan_image(batches, 3)  # in every epoch: updates 3, 8 and 13
    with pytest.warns(UserWarning, match=r"term is not .*update 4; .*The batch is left out \(2 in a row, 2 in all\)"):
        fit(ours, batches)
    assert equal(everything(ours), everything(plain)) and ours.update == plain.update == EPOCHS * STEPS
    assert all(value.isfinite().all() for value in ours.network.state_dict().values())
    assert rows == [0, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert ours.guard.report() == {"nonfinite_skipped": 4} and plain.guard.report() == {}
    assert ours.epoch_metrics["nonfinite_skipped"] == 1 and "nonfinite_skipped" not in plain.epoch_metrics
    ratio = STEPS / (STEPS - 1)  # the mean is over the updates that happened
    assert ours.epoch_metrics["train/loss"] == pytest.approx(ratio * plain.epoch_metrics["train/loss"], rel=1e-12)
    assert ours.epoch_metrics["train/accuracy"] == plain.epoch_metrics["train/accuracy"]


def test_one_bad_image_would_poison_batch_norm_for_good(make_network, make_batch):
    """What skip protects from: the forward alone writes the running statistics."""
    network, batch = make_network(batch_norm=True), make_batch(list(range(8)))
    kept = BufferCopy(network.buffers())
    before = copy.deepcopy(network.state_dict())
    kept.save()
    batch.image[3] = math.nan
    network(batch.image)
    assert network.backbone.norm.running_mean.isnan().any() and network.backbone.norm.num_batches_tracked == 1
    kept.restore()
    assert equal([*network.state_dict().values()], [*before.values()])


@pytest.mark.parametrize("limit", [None, 1])
def test_too_many_in_a_row_end_the_run(make_network, make_task, batches, limit):
    allowed = limit or 3
    term = Breaks(nan_term, 0, *range(2, 2 + allowed + 1))
    task = make_task(make_network(batch_norm=True), {"term": term}, nonfinite="skip", max_nonfinite=limit)
    message = rf"update {2 + allowed}; .*{allowed} batches in a row were left out before \(task.max_nonfinite\)"
    states = []
    after_each_batch(task, lambda: states.append(copy.deepcopy(everything(task))))
    with pytest.raises(NonFiniteError, match=message), pytest.warns(UserWarning, match="is left out"):
        fit(task, batches)
    assert equal(everything(task), states[1]), "the state of the last good update, norm statistics included"


def test_an_epoch_without_any_update_has_no_loss(make_network, make_task, batches):
    task = make_task(make_network(), {"term": Breaks(nan_term, *range(STEPS))}, nonfinite="skip", max_nonfinite=STEPS)
    with pytest.warns(UserWarning, match="is left out"):
        fit(task, batches, epochs=1)
    assert math.isnan(task.epoch_metrics["train/loss"]) and task.epoch_metrics["nonfinite_skipped"] == STEPS
    assert "train/cross_entropy" not in task.epoch_metrics


class Store:
    """A checkpoint in memory, taken when update ``at`` is done; counts how often it was loaded."""

    def __init__(self, task, *at):
        self.task, self.saved, self.loads = task, None, 0
        after_each_batch(task, lambda: self.save() if task.update in at else None)

    def save(self):
        optimizer = self.task.optimizers(use_pl_optimizer=False)
        self.saved = copy.deepcopy((self.task.state_dict(), optimizer.state_dict(), self.task.update))

    def load(self):
        if self.saved is None:
            return None
        modules, optimizer, update = copy.deepcopy(self.saved)
        self.task.load_state_dict(modules)
        self.task.optimizers(use_pl_optimizer=False).load_state_dict(optimizer)
        self.task.guard.load(FiniteGuard().state())  # as a checkpoint of that time would
        self.task.update, self.loads = update, self.loads + 1
        return update


class GoesBack(LeavesOut):
    """The run that loads its store at some updates, by hand."""

    store: Store

    def training_step(self, batch, batch_idx):
        if self.update in self.missing:
            update = self.update
            self.store.load()
            self.update = update
        super().training_step(batch, batch_idx)


def test_rollback_goes_on_from_the_checkpoint_with_the_next_batch(make_network, make_task, batches):
    def make(kind, **keys):
        regularizers = {"saf": SAF(lag=1, start_epoch=0), "term": Breaks(nan_term, 4, 7)}
        return make_task(make_network(batch_norm=True), regularizers, kind, ema_decay=0.5, **keys)

    plain, ours = make(GoesBack), make(Classification, nonfinite="rollback")
    plain.missing, plain.store = (4, 7), Store(plain, 2)
    fit(plain, batches)
    store = Store(ours, 2)
    ours.restore_good = store.load
    with pytest.warns(UserWarning, match="update 7; .*Training goes on from the checkpoint of update 2"):
        fit(ours, batches)
    assert store.loads == 2 and ours.update == EPOCHS * STEPS
    assert equal(everything(ours), everything(plain))
    assert ours.guard.report() == {"nonfinite_rollbacks": 2} and ours.epoch_metrics["nonfinite_rollbacks"] == 0


def test_rollbacks_to_one_checkpoint_are_counted(make_network, make_task, batches):
    def make(*at):
        term = Breaks(nan_term, 3, 5, 7, 11)
        task = make_task(make_network(), {"term": term}, nonfinite="rollback", max_nonfinite=2)
        task.restore_good = Store(task, *at).load
        return task

    message = r"update 7; .*already went back to the checkpoint of update 1 2 times before \(task.max_nonfinite\)"
    with pytest.raises(NonFiniteError, match=message), pytest.warns(UserWarning, match="checkpoint of update 1"):
        fit(make(1), batches)
    with pytest.warns(UserWarning, match="checkpoint of update 6"):
        fit(make(1, 6), batches)  # a newer checkpoint in between: training got somewhere


def test_rollback_without_a_checkpoint_says_so(make_network, make_task, batches):
    for restore in (None, lambda: None):
        task = make_task(make_network(), {"term": Breaks(nan_term, 1)}, nonfinite="rollback")
        task.restore_good = restore
        with pytest.raises(NonFiniteError, match="update 1; .*rollback finds no good checkpoint yet to go back to"):
            fit(task, batches)

    def fails():
        raise OSError("disk gone")

    task = make_task(make_network(), {"term": Breaks(nan_term, 1)}, nonfinite="rollback")
    task.restore_good = fails
    with pytest.raises(NonFiniteError, match="term .*update 1; .*to a good checkpoint failed: disk gone") as caught:
        fit(task, batches)
    assert isinstance(caught.value.__cause__, OSError)


def test_settings(make_network, make_task):
    with pytest.raises(ValueError, match="nonfinite='ignore' is not known; allowed: raise, skip, rollback"):
        make_task(make_network(), nonfinite="ignore")
    with pytest.raises(ValueError, match="max_nonfinite=5 has no effect with nonfinite=raise"):
        make_task(make_network(), max_nonfinite=5)
    for policy in ("skip", "rollback"):
        with pytest.raises(ValueError, match=r"max_nonfinite=0 is out of range; allowed: max_nonfinite >= 1 \(int\)"):
            make_task(make_network(), nonfinite=policy, max_nonfinite=0)


def test_counts_survive_as_plain_data():
    guard, fresh = FiniteGuard("skip"), FiniteGuard("skip")
    guard.load({"in_row": 2, "in_epoch": 3, "total": 9, "restored_from": 4, "advanced": 1})
    assert all(type(value) is int for value in guard.state().values())
    fresh.load(guard.state())
    assert fresh.state() == guard.state() and fresh.lost_in_epoch == 3
    assert fresh.end_epoch() == {"nonfinite_skipped": 3} and fresh.end_epoch() == {"nonfinite_skipped": 0}
    assert fresh.report() == {"nonfinite_skipped": 9} and FiniteGuard().end_epoch() == FiniteGuard().report() == {}


def test_a_good_run_keeps_silent(make_network, make_task, batches):
    plain, ours = make_task(make_network(batch_norm=True)), make_task(make_network(batch_norm=True), nonfinite="skip")
    fit(plain, batches)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not finite|left out)")
        fit(ours, batches)
    assert equal(everything(plain), everything(ours)) and ours.guard.report() == {"nonfinite_skipped": 0}
