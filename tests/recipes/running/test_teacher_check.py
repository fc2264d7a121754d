"""A teacher is measured before it teaches, and one that knows nothing of the data is refused."""

import json
import shutil

import pytest
from PIL import Image
from tiny import but

import recipes
from recipes.checkpoints.load import load_checkpoint, save_checkpoint
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Images that any network learns to tell apart in a few updates."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 16), ("val", 6), ("test", 2)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                shade = tuple(max(value - 5 * i, 5 * i) for value in colour)
                Image.new("RGB", (16, 16), shade).save(root / part / name / f"{i}.png")
    return [
        "data=folder",
        f"data.root={root}",
        "data.image_size=16",
        "data.resize_size=null",
        "data.augment=null",
        "data.batch_size=12",
        "backbone=conv4",
        "backbone.kwargs.channels=[8,8]",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "callback=[]",
        "evaluator=[]",
        f"output={tmp_path_factory.mktemp('runs')}",
    ]


@pytest.fixture(scope="module")
def teacher(words):
    run = recipes.build("grocery_baseline", but(words, "trainer.max_epochs=15", "name=teacher", "optimizer.lr=0.05"))
    assert run.run()["val"]["accuracy"] > 0.9
    return run.directory


@pytest.fixture(scope="module")
def shuffled(teacher, tmp_path_factory):
    """The same teacher, whose outputs stand in another order than its class names."""
    content = load_checkpoint(teacher)
    content.pop("format_version")
    for key in ("head.weight", "head.bias"):
        content["network"][key] = content["network"][key].roll(1, 0)
    path = tmp_path_factory.mktemp("shuffled") / "shuffled.ckpt"
    save_checkpoint(path, content)
    return path


def distill(words, teacher, name, *more):
    return recipes.build("grocery_baseline", but(words, "+regularizer=kd", f"teacher={teacher}", f"name={name}", *more))


def test_the_accuracy_is_told_first_and_kept(words, teacher, capsys):
    run = distill(words, teacher, "good")
    capsys.readouterr()
    results = run.run()
    lines = capsys.readouterr().out.splitlines()
    assert any("teacher: 100.00% on the validation part (18 images)" in line for line in lines)
    assert results["teacher"] == {"accuracy": 1.0, "images": 18, "chance": pytest.approx(1 / 3)}
    assert json.loads((run.directory / "results.json").read_text())["teacher"] == results["teacher"]


def test_it_is_told_before_anything_is_learnt(words, teacher, monkeypatch):
    run, seen = distill(words, teacher, "first"), []
    network = run.task.parts.networks["teacher"].network
    network.register_forward_hook(lambda module, given, gave: seen.append((len(given[0]), run.task.update)))
    run.run()
    assert seen[0] == (18, 0) and seen[1:] == [(12, update) for update in range(4)]


def test_after_a_resume_the_measure_is_that_of_the_start(words, teacher, capsys):
    run = distill(words, teacher, "resumed", "trainer.max_epochs=2", "stop_after=5")
    with pytest.raises(Stopped):
        run.run()
    capsys.readouterr()
    results = recipes.resume_run(run.directory, ["stop_after=null"]).run()
    assert "on the validation part (18 images)" not in capsys.readouterr().out, "it is measured once"
    assert results["teacher"]["accuracy"] == 1.0


def test_a_teacher_at_chance_level_is_refused(words, shuffled):
    run = distill(words, shuffled, "bad")
    message = (
        "teacher: it answers 0 of 18 validation images right, and guessing gives 6: .*its classes stand in "
        "another order than those of the data.* teaching.check=false .*to learn from it all the same"
    )
    with pytest.raises(ConfigError, match=message):
        run.run()
    status = json.loads((run.directory / "status.json").read_text())
    assert status["state"] == "failed" and "it answers 0 of 18 validation images right" in status["error"]
    assert not list((run.directory / "checkpoints").glob("*.ckpt")) and not (run.directory / "results.json").exists()


def test_it_may_teach_all_the_same(words, shuffled):
    run = distill(words, shuffled, "allowed", "teaching=live", "teaching.check=false")
    assert run.run()["teacher"]["accuracy"] == 0.0


def test_without_validation_images_it_is_not_measured(words, teacher, capsys, tmp_path):
    root = next(word for word in words if word.startswith("data.root=")).partition("=")[2]
    for part in ("train", "test"):
        shutil.copytree(f"{root}/{part}", tmp_path / part)
    run = distill(words, teacher, "unmeasured", f"data.root={tmp_path}", "data.val_fraction=0")
    assert "teacher" not in run.run()
    assert "teacher: not measured, since no validation images of its classes are held out" in capsys.readouterr().out
