"""Whatever goes wrong ends in one message, an exit code and the run directory, and never in a traceback."""

import errno
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from tiny import TINY, but

import recipes
from kernels.raise_site import raised_here
from recipes.cli import evaluate, train
from recipes.configuration.boundary import VARIABLE, begun, contain, exit_code, explanation, refusing, report
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.processes.stop import Stopped, seconds
from recipes.running.directory import is_finished, read_status

WORDS = [*TINY, "recipe=grocery_baseline", "backbone=test_efficientnet", "data.limit_train=24", "trainer.max_epochs=1"]


def raised(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failing(error):
    def program():
        raise error

    return program


def test_only_our_own_raise_statements_explain_themselves():
    assert raised_here(raised(seconds, "soon")), "a raise of ours"
    assert raised_here(Stopped("x", "SIGTERM", 143)), "a class of ours, wherever it is raised"
    assert not raised_here(raised(recipes.build, "grocery_baseline", [1])), "re's error, below a function of ours"
    assert not raised_here(raised(int, "x")) and not raised_here(ValueError("never raised"))
    assert not raised_here(raised(json.loads, "{"))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError(["a"]), 2, "error: a"),
        (ConfigError(["a", "b"]), 2, "2 problems:\n- a\n- b"),
        (Stopped("stopped by SIGTERM; saved", "SIGTERM", 143), 143, "stopped by SIGTERM; saved"),
        (raised(seconds, "soon"), 2, "error: max_time=soon is no duration.*"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            2,
            "error: No space left on device: 'a/b'; free some.*",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000),
            2,
            r"error: .{300,400}5002 characters.; choose.*",
        ),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), 2, "error: Resource temp.*fewer data.num_workers.*"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            2,
            "error: Error while serializing: I/O error: No space left on device .*; free some space, or choose.*",
        ),
        (SafetensorError("other"), 1, "error: SafetensorError: other.*none of this library.*"),
        (RuntimeError("can't start new thread"), 2, "error: can't start new thread; there may be no more processes.*"),
        (
            RuntimeError("unable to mmap: Too many open files (24)"),
            2,
            "error: unable .*; raise the limit with ulimit -n.*",
        ),
        (MemoryError(), 2, r"error: out of memory: .*\(MemoryError\)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"),
            2,
            "error: out of memory: take a smaller net.*",
        ),
        (
            KeyError("position"),
            1,
            r"error: KeyError: 'position' ..*test_boundary.py:\d+..*none of this.* with --traceback",
        ),
        (AssertionError(), 1, "error: AssertionError: AssertionError .*none of this library.*"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; nothing was being trained"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_message_and_an_exit_code(capsys, error, code, message):
    assert contain(failing(error)) == code
    captured = capsys.readouterr()
    assert captured.out == "" and re.fullmatch(message, captured.err.rstrip("\n"), re.DOTALL), captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("error", [KeyError("position"), AssertionError("x y"), ValueError("position")])
def test_what_does_not_explain_itself_in_our_code_is_an_internal_error(capsys, error):
    names = {"error": error}
    exec(compile("def program():\n    raise error", str(ROOT / "recipes" / "place.py"), "exec"), names)  # noqa: S102
    assert contain(names["program"]) == 1
    said = capsys.readouterr().err
    assert re.match(
        rf"internal error: {type(error).__name__}: .* .recipes/place.py:2.. This is unexpected, and a", said
    )


def test_once_a_run_has_begun_the_code_is_1_and_the_directory_is_named(tmp_path):
    for error in (raised(seconds, "soon"), OSError(errno.ENOSPC, "No space left on device"), KeyError("x")):
        with pytest.raises(type(error)), begun(tmp_path):
            raise error
        assert exit_code(error) == 1 and report(error).endswith(f"\nrun directory: {tmp_path}")
    error = ConfigError(["the checkpoint is of another run"])
    with pytest.raises(ConfigError), begun(None):
        raise error
    assert exit_code(error) == 2 and "run directory" not in report(error)


def test_what_explains_itself_becomes_a_problem_of_the_configuration():
    with pytest.raises(ConfigError, match="max_time=soon is no duration"), refusing():
        seconds("soon")
    with pytest.raises(ValueError, match="invalid literal") as caught, refusing():
        int("x")
    assert not isinstance(caught.value, ConfigError) and explanation(caught.value) is None


def test_the_traceback_is_shown_when_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert train(["sed=1"]) == 2 and "Traceback" not in capsys.readouterr().err
    assert train(["sed=1", "--traceback"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)") and "\nerror: sed is not a key" in shown
    assert VARIABLE not in os.environ, "the next program of this process shows none"
    monkeypatch.setenv(VARIABLE, "1")
    assert train(["sed=1"]) == 2 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_time=99999999999h"], "max_time=99999999999h is more than 3650 days; leave it out"),
        ([f"seed={'9' * 5000}"], "cannot read 'seed=999.*: a number of 5,000 digits"),
        (
            [f"output={'x' * 5000}"],
            r"cannot make the run directory x+\.\.\. \(\d+ characters\): File name too long; choose",
        ),
        (["schedule.min_lr=-1"], "schedule.min_lr=-1"),
        (
            ["optimizer=adamp", "optimizer.kwargs={betas: [2, 3]}"],
            r"kwargs.betas=\[2, 3\]: timm's optimizer adamp refuses",
        ),
        (["optimizer.name=adahessian", "optimizer.momentum=null"], "timm's optimizer adahessian refuses this"),
        (["backbone.kwargs={drop_path_rate: x}"], "timm model test_efficientnet does not take"),
        (["task.micro_batches=9"], r"task.micro_batches=9 cuts a batch of 8 image\(s\) into more pieces than it has"),
        (["data.limit_train=26", "data.drop_last=false", "task.micro_batches=4"], r"cuts a batch of 2 image\(s\)"),
        (["data.limit_train=25", "data.drop_last=false"], "a batch of 1 image.* leaves batch norm a single sample"),
        (
            ["backbone.in_channels=1", "data=grocery"],
            r"images of this data have 3 channel\(s\); set backbone.in_channels=3",
        ),
        (["backbone=vit_tiny_patch16_224"], r"images of 48x48 pixels .*; set backbone.kwargs.img_size=48"),
        (["name=a\udcffb"], "name: 'a.*b' is not valid Unicode"),
        (["resume=" + "z" * 5000], "File name too long"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_it_is_refused_before_there_is_a_run_directory(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(but([] if words[0].startswith("resume") else WORDS, *words)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["true", "3", "text", "[1]"])
def test_a_value_where_a_recipe_needs_parts(value, tmp_path, capsys, monkeypatch):
    """In every group; recipes of one's own are files, which a command line's checks never saw."""
    from recipes.configuration.catalogue import groups
    from recipes.running.resume import read_config

    monkeypatch.chdir(tmp_path)
    run = recipes.build(overrides=[*WORDS, f"output={tmp_path}"])
    from recipes.configuration.compose import to_yaml

    assert len(groups()) >= 18
    for group in groups():
        text = to_yaml({**run.config, group: None}).replace(f"{group}: null", f"{group}: {value}")
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"{group}=.* has the wrong type"):
            read_config(tmp_path)


def test_building_that_runs_out_of_memory(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.building.initialization.build_network", lambda *args: torch.empty(2**60))
    assert train([*WORDS, f"output={tmp_path}"]) == 2
    assert "error: out of memory: take a smaller net" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_data_are_looked_at_before_a_network_is_built(capsys, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr("recipes.building.initialization.build_network", lambda *args: built.append(1))
    monkeypatch.setattr("recipes.building.subject.network_of", lambda *args: built.append(1))
    for recipe in ("imagenet_saf", "cifar_saf"):
        assert train([f"recipe={recipe}", f"data.root={tmp_path / 'none'}", "trainer.accelerator=cpu"]) == 2
        assert "none" in capsys.readouterr().err
    assert evaluate(["backbone=resnet18", "data=folder", f"data.root={tmp_path / 'none'}", "evaluator=retrieval"]) == 2
    assert "no folder" in capsys.readouterr().err and not built


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for part in ("train", "test"):
        for number in range(12):
            folder = root / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(folder / f"{number}.png")
    return root


def of(root, tmp_path, *words):
    folder = ["data=folder", f"data.root={root}", "data.image_size=16", "data.batch_size=4", "data.val_fraction=0.2"]
    unlimited = ["data.limit_train=null", "data.limit_test=null"]
    return but(WORDS, *folder, *unlimited, f"output={tmp_path}", "name=a", *words)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_message(photos, tmp_path, capsys, workers):
    odd = photos / "train" / "a" / "odd.png"
    odd.write_bytes(b"\x89PNG")
    try:
        code = train(of(photos, tmp_path, f"data.num_workers={workers}"))
    finally:
        odd.unlink()
    error = capsys.readouterr().err
    assert code == 1 and re.search(
        r"^error: cannot read image .*odd.png \(index \d+\): .*; replace the file or", error, re.M
    )
    assert f"run directory: {tmp_path / 'grocery_baseline' / 'a'}" in error and "Traceback" not in error
    assert error.count("odd.png") <= 2 and "a loader process" not in error
    kept = (tmp_path / "grocery_baseline" / "a" / "traceback.txt").read_text()
    assert "UnreadableImage" in kept and ("In a loader process" in kept) == (workers > 0)


def test_loader_processes_that_cannot_be_started(photos, tmp_path, capsys, monkeypatch):
    def no_more():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr("os.fork", no_more)
        code = train(of(photos, tmp_path, "data.num_workers=2"))
    error = capsys.readouterr().err
    assert code == 1 and "the 2 loader processes cannot be started (Resource temporarily unavailable)" in error


def test_an_evaluator_that_fails_costs_no_result_of_training(tmp_path, capsys, monkeypatch):
    words = [*WORDS, f"output={tmp_path}", "name=a", "evaluator=[classification,utilization]"]

    def broken(*args):
        raise IndexError("k out of range")

    with monkeypatch.context() as patch:
        patch.setattr("lightning_modules.evaluators.utilization.Utilization.begin", broken)
        assert train(words) == 1
    directory = tmp_path / "grocery_baseline" / "a"
    error = capsys.readouterr().err
    assert "error: IndexError: k out of range" in error and f"is in {directory / 'traceback.txt'}" in error
    results = json.loads((directory / "results.json").read_text())
    assert results["evaluation_failed"] == {"utilization": "IndexError: k out of range"}
    assert results["test"]["images"] == 8 and results["epochs"] == 1 and read_status(directory)["state"] == "failed"
    assert train(words) == 0, "the same command evaluates again"
    assert "evaluation_failed" not in json.loads((directory / "results.json").read_text())


@pytest.mark.parametrize("left", [None, "{", "[]"])
def test_a_finished_run_without_its_results_is_evaluated_again(left, tmp_path):
    words = [*WORDS, f"output={tmp_path}", "name=a"]
    assert train(words) == 0
    directory = tmp_path / "grocery_baseline" / "a"
    first = json.loads((directory / "results.json").read_text())
    (directory / "results.json").unlink()
    if left is not None:
        (directory / "results.json").write_text(left)
    assert not is_finished(directory)
    assert train([f"resume={directory}"]) == 0
    again = json.loads((directory / "results.json").read_text())
    assert again["test"] == first["test"] and is_finished(directory)


def test_an_evaluator_that_fails_costs_no_result_of_the_others(tmp_path, capsys, monkeypatch):
    assert train([*WORDS, f"output={tmp_path}", "name=a"]) == 0
    directory = tmp_path / "grocery_baseline" / "a"

    def broken(*args):
        raise ValueError("nothing to compare with")

    monkeypatch.setattr("lightning_modules.evaluators.utilization.Utilization.begin", broken)
    words = [f"checkpoint={directory}", "evaluator=[classification,utilization]", f"output={tmp_path / 'evaluated'}"]
    assert evaluate(words) == 1
    assert "nothing to compare with" in capsys.readouterr().err
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert results["classification"]["images"] == 8
    assert results["evaluation_failed"] == {"utilization": "nothing to compare with"}
    assert (tmp_path / "evaluated" / "report.html").is_file()
