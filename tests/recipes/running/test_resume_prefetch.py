"""Going on where the loader processes fetch more ahead than an epoch has: as if nobody had stopped.

Epochs of two updates, or one; two loader processes fetch four batches ahead, five fetch ten.
"""

import os
import signal
import subprocess
import sys

import pytest
from resuming import finish, go_on, last, outcome
from tiny import TINY, but

import recipes
from recipes.configuration.signature import ROOT
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault

WORDS = [
    *TINY,
    "backbone=conv4",
    "backbone.kwargs.channels=[4,4]",
    "trainer.max_epochs=2",
    "data.limit_train=16",
    "evaluator=[]",
]
BALANCED = ["data.samples_per_class=2", "data.val_fraction=0.04", "head.dim=4"]
CASES = {
    "shuffled": ("grocery_baseline", []),
    "balanced": ("grocery_multi_similarity", BALANCED),
    "one batch": ("grocery_baseline", ["data.batch_size=16"]),
    "some validations": ("grocery_baseline", ["trainer.check_val_every_n_epoch=2"]),
}
ALL = [(case, workers) for case in CASES for workers in (0, 2, 5)]


def loaders(*quick):
    """Every case with every number of loader processes; all but the quick ones are marked slow."""
    rest = [pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in quick]
    return pytest.mark.parametrize(("case", "workers"), [*quick, *rest])


class Runs:
    """One case: the run that nobody interrupted, without loader processes, and others to compare with it."""

    def __init__(self, case, folder):
        self.recipe, self.words = CASES[case]
        self.folder = folder
        assert finish(self.build(folder, 0, "whole")) is None
        self.whole = outcome(folder, self.recipe, "whole")
        self.updates = self.whole[0]["update"]

    def build(self, folder, workers, name="broken", *words):
        kept = [f"output={folder}", f"name={name}", f"data.num_workers={workers}"]
        return recipes.build(self.recipe, but(WORDS, *self.words, *kept, *words))

    def go_on(self, folder, *words):
        return go_on(folder, self.recipe, "broken", *words)

    def check(self, folder):
        again, rows = outcome(folder, self.recipe, "broken")
        assert again["update"] == self.updates and again["position"] == [2, 0]
        assert not (found := differing(self.whole[0], again)), found[:5]
        assert rows == self.whole[1] and len(rows) == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def find(case):
        if case not in made:
            made[case] = Runs(case, tmp_path_factory.mktemp("whole"))
        return made[case]

    return find


def at_validation(run, update, act):
    """Let something happen when the first batch of the validation after this update was measured."""
    measure = run.task.validation_step

    def measuring(*args):
        if run.task.update == update:
            act()
        return measure(*args)

    run.task.validation_step = measuring
    return run


@loaders(("shuffled", 2))
def test_a_stop_at_any_update_leaves_no_trace(case, workers, runs, tmp_path):
    every = runs(case)
    for update in range(1, every.updates + 1):
        folder = tmp_path / str(update)
        assert finish(every.build(folder, workers, "broken", f"stop_after={update}")).exit_code == 75
        assert every.go_on(folder, "stop_after=null") is None
        every.check(folder)


@loaders(("balanced", 5))
def test_a_stop_after_every_update_and_in_every_validation(case, workers, runs, tmp_path):
    every = runs(case)
    assert finish(every.build(tmp_path, workers, "broken", "stop_after=1"))
    for update in range(1, every.updates + 1):
        run = recipes.resume_run(tmp_path / every.recipe / "broken", [f"stop_after={update + 1}"])
        stopped = finish(at_validation(run, update, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        if stopped is not None and stopped.reason == "SIGTERM":
            stopped = every.go_on(tmp_path, f"stop_after={update + 1}")
        assert (stopped is None) == (update == every.updates)
    every.check(tmp_path)


@loaders(("shuffled", 2), ("balanced", 5))
def test_cut_off_in_the_first_validation(case, workers, runs, tmp_path):
    """The newest checkpoint is that of ``save_every``, at the last update of an epoch."""
    every = runs(case)
    update = 4 if case == "some validations" else every.updates // 2
    with pytest.raises(RuntimeError, match="power failure"):
        at_validation(every.build(tmp_path, workers, "broken", f"save_every={update}"), update, power_failure).run()
    assert last(tmp_path, every.recipe, "broken")["update"] == update
    assert every.go_on(tmp_path) is None
    every.check(tmp_path)


def power_failure():
    raise RuntimeError("power failure")


def test_whoever_takes_batches_of_the_training_loader_ends_the_run(runs, tmp_path):
    """Its last batch would move the position under the run's feet."""
    every = runs("shuffled")
    run = every.build(tmp_path, 0)
    with pytest.raises(RuntimeError, match="gave batch 0 of epoch 2 where batch 0 of epoch 1 is due"):
        at_validation(run, 2, lambda: list(run.data.train_dataloader())).run()
    assert every.go_on(tmp_path) is None
    every.check(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [2, 100])
@pytest.mark.parametrize(("case", "workers"), [("shuffled", 2), ("balanced", 5)])
def test_killed_in_every_validation(case, workers, save_every, runs, tmp_path):
    every = runs(case)
    words = but(WORDS, *every.words, f"output={tmp_path}", "name=broken")
    words += [f"data.num_workers={workers}", f"save_every={save_every}"]
    for update in (2, 4):  # the same command again: it goes on, or starts over
        code = f"import test_resume_prefetch as me; me.train_until_killed({every.recipe!r}, {words!r}, {update})"
        folders = (ROOT, ROOT / "tests" / "recipes", ROOT / "tests" / "recipes" / "running")
        paths = os.pathsep.join(map(str, folders))
        child = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=False)
        assert child.returncode == -signal.SIGKILL
    assert finish(recipes.build(every.recipe, words)) is None
    every.check(tmp_path)


def train_until_killed(recipe, words, update):
    """In a process of its own."""
    at_validation(recipes.build(recipe, words), update, lambda: os.kill(os.getpid(), signal.SIGKILL)).run()
