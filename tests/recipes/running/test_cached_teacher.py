"""A run with kept outputs of its teacher equals the run that computes it, bit for bit, however it came to its end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from resuming import last
from tiny import TINY, but

import recipes
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

EPOCHS, V = 5, 2
WORDS = [
    *TINY,
    "backbone=conv4",
    "backbone.kwargs.channels=[4,8]",
    "data.limit_train=24",
    f"data.augmentations={V}",
    f"trainer.max_epochs={EPOCHS}",
    "evaluator=[]",
    "+regularizer=kd",
]
UNTAUGHT = "teaching.check=false"  # a few updates leave a teacher at chance level


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(output):
    words = but([word for word in WORDS if "kd" not in word], "trainer.max_epochs=1", "seed=7", "name=teacher")
    run = recipes.build("grocery_baseline", [*words, f"output={output}"])
    run.run()
    return run.directory


@pytest.fixture
def build(output, teacher, tmp_path):
    def make(name, how, *words):
        folder = [f"teaching.folder={tmp_path / 'kept'}"] if how == "cached" else []
        common = [*WORDS, f"teacher={teacher}", f"teaching={how}", UNTAUGHT, *folder, f"output={output}"]
        return recipes.build("grocery_baseline", but(common, f"name={name}", *words))

    return make


@pytest.fixture(scope="module")
def live(output, teacher):
    """Checkpoints of runs whose teacher is computed, by their words."""
    done = {}

    def of(*words):
        if words not in done:
            name = f"live{len(done)}"
            common = [*WORDS, f"teacher={teacher}", "teaching=live", UNTAUGHT, f"output={output}", f"name={name}"]
            recipes.build("grocery_baseline", but(common, *words)).run()
            done[words] = last(output, "grocery_baseline", name)
        return done[words]

    return of


def equal(output, name, theirs):
    lines = differing(theirs, last(output, "grocery_baseline", name))
    assert not (found := [line for line in lines if "config" not in line]), found[:5]


def forwards(run):
    """Sizes of the training batches that the teacher computes."""
    seen = []
    network, measured = run.task.parts.networks["teacher"].network, len(run.data.val_index)
    network.register_forward_hook(lambda module, given, gave: seen.append(len(given[0])))
    network.register_forward_hook(lambda module, given, gave: seen.remove(measured) if measured in seen else None)
    return seen


def rows(folder):
    (path,) = folder.glob("*.rows")
    return path


def test_it_equals_the_live_run_and_computes_each_image_once(build, live, output, tmp_path):
    run = build("cached", "cached")
    seen = forwards(run)
    run.run()
    equal(output, "cached", live())
    assert seen == [8] * (3 * V + 1), "two epochs that fill, and one batch that is read and checked"
    text = (run.directory / "networks.txt").read_text()
    assert f"teacher: 40 logits of 24 images in 2 augmentations are kept in {tmp_path / 'kept'} (0.0 MB)" in text
    again = build("again", "cached", "trainer.max_epochs=1")
    seen = forwards(again)
    again.run()
    assert seen == [8], "a later run reads all of it"


@pytest.mark.slow
@pytest.mark.parametrize("words", [("data.num_workers=1",), ("task.micro_batches=2",), ("gradient=sam",)])
def test_it_equals_the_live_run_with(build, live, output, words):
    build(f"with_{words[0].split('.')[-1]}", "cached", *words).run()
    equal(output, f"with_{words[0].split('.')[-1]}", live(*words))


def test_images_without_augmentation_have_one_row(build, live, output, tmp_path):
    words = ("data.augment=null", "data.augmentations=null", "trainer.max_epochs=2")
    run = build("plain", "cached", *words)
    seen = forwards(run)
    run.run()
    assert len(seen) == 3 + 1 and rows(tmp_path / "kept").stat().st_size == 4096 * 2 + 24 * 160
    other = build("plain_live", "live", *words)
    other.run()
    equal(output, "plain", last(output, "grocery_baseline", "plain_live"))


@pytest.mark.parametrize("stop_after", [4, 8])
def test_a_run_that_goes_on_fills_the_rest(build, live, output, stop_after):
    run = build(f"stopped{stop_after}", "cached", f"stop_after={stop_after}")
    with pytest.raises(Stopped):
        run.run()
    recipes.resume_run(run.directory, ["stop_after=null"]).run()
    equal(output, f"stopped{stop_after}", live())


def test_the_folder_may_move_when_a_run_goes_on(build, live, output, tmp_path):
    run = build("moved", "cached", "stop_after=4")
    with pytest.raises(Stopped):
        run.run()
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    recipes.resume_run(run.directory, ["stop_after=null", f"teaching.folder={tmp_path / 'elsewhere'}"]).run()
    assert not (tmp_path / "kept").exists()
    equal(output, "moved", live())


@pytest.mark.slow
def test_a_killed_run_goes_on(output, teacher, live, tmp_path):
    words = [*WORDS, f"teacher={teacher}", "teaching=cached", UNTAUGHT, f"teaching.folder={tmp_path / 'kept'}"]
    command = [sys.executable, "train.py", "recipe=grocery_baseline", *words, f"output={output}", "name=killed"]
    process = subprocess.Popen([*command, "save_every=1"], stdout=subprocess.DEVNULL)
    checkpoints = output / "grocery_baseline" / "killed" / "checkpoints"
    while not list(checkpoints.glob("last*.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    recipes.resume_run(output / "grocery_baseline" / "killed").run()
    equal(output, "killed", live())


def test_damaged_rows_are_computed_again(build, live, output, tmp_path):
    build("whole", "cached", "trainer.max_epochs=2").run()
    path = rows(tmp_path / "kept")
    with open(path, "r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(b"x" * 16)
    with pytest.warns(UserWarning, match="has damaged rows, which are computed again"):
        build("damaged", "cached").run()
    equal(output, "damaged", live())


def test_rows_of_another_teacher_are_refused(build, output, tmp_path):
    """Whole rows that are not what their name says, as after a change in the code of a module."""
    build("right", "cached", "trainer.max_epochs=2").run()
    path = rows(tmp_path / "kept")
    teacher = build("x", "cached").task.parts.networks["teacher"]
    record, size = teacher.record, path.stat().st_size
    from lightning_modules.teaching.row_file import RowFile

    header = path.read_bytes()[:4096].split(b"\n")[1]
    facts = {key: value for key, value in json.loads(header).items() if key not in ("rows", "width")}
    file = RowFile(path, facts, 48, record.width)
    assert file.size == size
    _, found = file.read(torch.arange(48).numpy())
    file.write(torch.arange(48).numpy(), found[::-1].copy())
    with pytest.raises(ValueError, match=r"\.rows: the row of sample \d+, augmentation \d, is .* remove the file"):
        build("wrong", "cached").run()


REFUSED = {
    "never again": ("data.augmentations=null", "data.augmentations=null.* would let every row be used once"),
    "mixing": ("mixing=mixup", "mixing at the input shows the teacher mixtures of images that never come again"),
    "attack": ("attack=pgd", "the attack makes another image of a sample in every update, and teacher/main shows it"),
    "visits": ("data.samples_per_class=2", "data.samples_per_class visits a sample any number of times"),
    "float64": ("trainer.precision=64-true", "in float64 .* the teacher gives more digits than the rows"),
    "second": ("regularizer.kd.teacher=teacher/second", "teacher/second is another image than that whose index"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused(build, case):
    word, message = REFUSED[case]
    with pytest.raises(ConfigError, match=f"these parts cannot work together:\n- teaching=cached: .*{message}"):
        build("x", "cached", word)


def test_a_folder_that_is_a_file(build, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(ConfigError, match="teaching.folder=.*kept is a file; give a folder"):
        build("x", "cached")


def test_the_clean_image_is_kept_under_an_attack(build, tmp_path):
    words = ["attack=pgd", "attack.steps=1", "regularizer.kd.teacher=teacher/clean", "trainer.max_epochs=3"]
    run = build("clean", "cached", *words)
    seen = forwards(run)
    run.run()
    assert len(seen) == 3 * V + 1


def test_nothing_is_written_before_the_run(build, tmp_path):
    build("x", "cached")
    assert not (tmp_path / "kept").exists()
