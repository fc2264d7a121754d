"""A run that was interrupted and went on equals the one that was not: weights, state, order of samples, metrics."""

import pytest
from resuming import finish, go_on, last, outcome
from tiny import SAF, TINY

import recipes
from recipes.configuration.problems import ConfigError
from recipes.running.resume import FREE, differences
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault

#: Three epochs of five updates on the embedded photographs, with dropout, batch norm and a last batch left out.
WORDS = [
    *TINY,
    "backbone=test_efficientnet",
    "head.dropout_prob=0.2",
    "data.limit_train=44",
    "trainer.max_epochs=3",
    "evaluator=[]",
]
MESA = ["regularizer=mesa", "regularizer.mesa.start_epoch=0", "mixing=mixup", "task.ema_decay=0.9"]
CASES = {"grocery_saf": SAF, "grocery_mesa": MESA}
UPDATES = 15


def train(recipe, folder, name, *words):
    """Train until it stops; None, or why it stopped."""
    return finish(recipes.build(recipe, [*WORDS, *words, f"output={folder}", f"name={name}"]))


@pytest.fixture(scope="module", params=list(CASES))
def whole(request, tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(request.param, folder, "whole", *CASES[request.param]) is None
    return request.param, folder, outcome(folder, request.param, "whole")


def check_equal(whole, folder, name):
    recipe, _, (content, rows) = whole
    again, again_rows = outcome(folder, recipe, name)
    assert again["update"] == UPDATES and again["position"] == [3, 0]
    assert not (found := differing(content, again)), found[:5]
    assert again_rows == rows and len(rows) == 3


@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_a_stop_at_any_update_leaves_no_trace(whole, update, tmp_path):
    recipe = whole[0]
    stopped = train(recipe, tmp_path, "broken", *CASES[recipe], f"stop_after={update}")
    assert stopped.exit_code == 75 and stopped.reason == "stop_after"
    assert go_on(tmp_path, recipe, "broken", "stop_after=null") is None
    check_equal(whole, tmp_path, "broken")


def test_many_stops_one_after_another(whole, tmp_path):
    recipe = whole[0]
    assert train(recipe, tmp_path, "chain", *CASES[recipe], "stop_after=2")
    for update in (3, 5, 6, 10, 14):
        stopped = go_on(tmp_path, recipe, "chain", f"stop_after={update}")
        assert f"saved after update {update} " in str(stopped)
    assert go_on(tmp_path, recipe, "chain", "stop_after=null") is None
    check_equal(whole, tmp_path, "chain")


def test_workers_do_not_matter(whole, tmp_path):
    """A break after every single update; two loader processes in two sessions of three."""
    recipe = whole[0]
    assert train(recipe, tmp_path, "steps", *CASES[recipe], "stop_after=1", "data.num_workers=2")
    for update in range(2, UPDATES + 1):
        assert go_on(tmp_path, recipe, "steps", f"stop_after={update}", f"data.num_workers={2 * (update % 3 > 0)}")
    assert go_on(tmp_path, recipe, "steps", "stop_after=null") is None
    check_equal(whole, tmp_path, "steps")


def test_save_every_leaves_checkpoints_inside_an_epoch(tmp_path):
    """The run is cut off without a word after update 8; the newest checkpoint is that of update 6."""
    run = recipes.build("grocery_saf", [*WORDS, *SAF, f"output={tmp_path}", "name=cut", "save_every=3"])

    def cut():
        if run.task.update == 8:
            raise RuntimeError("power failure")

    run.task.guard.before = cut
    with pytest.raises(RuntimeError, match="power failure"):
        run.run()
    content = last(tmp_path, "grocery_saf", "cut")
    assert content["update"] == 6 and content["position"] == [1, 1]
    assert go_on(tmp_path, "grocery_saf", "cut") is None
    assert train("grocery_saf", tmp_path, "whole", *SAF) is None
    assert not differing(last(tmp_path, "grocery_saf", "whole"), last(tmp_path, "grocery_saf", "cut"))


@pytest.fixture
def broken(tmp_path):
    assert train("grocery_saf", tmp_path, "broken", *SAF, "stop_after=3")
    return tmp_path / "grocery_saf" / "broken"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.batch_size=4", "data.batch_size is 8 in the run and 4 now"),
        ("seed=7", "seed is 0 in the run and 7 now"),
        ("recipe=cifar_saf", "recipe is 'grocery_saf' in the run and 'cifar_saf' now"),
        ("optimizer.lr=1.0", r"optimizer.lr is 0.05 in the run and 1.0 now"),
        ("backbone=resnet50", r"backbone.* now"),
        ("data.nonsense=4", "'data.nonsense=4' cannot be applied"),
        ("trainer.devices=2", "the checkpoint is of 1 process.*, and there are 2 now"),
    ],
)
def test_another_run_is_refused(broken, word, message):
    with pytest.raises(ConfigError, match=message):
        recipes.resume_run(broken, [word]).run()
    assert go_on(broken.parent.parent, "grocery_saf", "broken", "stop_after=4"), "the refusal left the run as it was"


def test_other_data_are_refused(broken):
    run = recipes.resume_run(broken)
    run.data.train_labels[3] += 1
    with pytest.raises(ConfigError, match="the data have changed"):
        run.run()


def test_free_keys_change_no_number():
    assert differences({"data": {"root": "a"}, "max_time": None}, {"data": {"root": "b"}, "max_time": "3s"}) == []
    groups = ("data", "trainer", "callback", "output", "name", "teacher", "teaching")
    assert all(key.split(".")[0] in groups or "_" in key for key in FREE)


def test_no_run_there(tmp_path):
    with pytest.raises(ConfigError, match="is no run directory"):
        recipes.resume_run(tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_over(broken, tmp_path):
    for path in (broken / "checkpoints").iterdir():
        path.unlink()
    assert go_on(tmp_path, "grocery_saf", "broken", "stop_after=null") is None
    assert train("grocery_saf", tmp_path, "whole", *SAF) is None
    assert not differing(last(tmp_path, "grocery_saf", "whole"), last(tmp_path, "grocery_saf", "broken"))


def test_a_finished_run_is_left_alone(broken, capsys):
    folder = broken.parent.parent
    assert go_on(folder, "grocery_saf", "broken", "stop_after=null") is None
    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*.ckpt")}
    assert recipes.resume_run(broken).run()["updates"] == UPDATES
    assert "is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in broken.rglob("*.ckpt")}
