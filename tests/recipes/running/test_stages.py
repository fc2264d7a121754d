"""A recipe of stages is what its stages are one after another, wherever it was stopped; a finished stage stays."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resuming import outcome
from tiny import TINY, but

import recipes
from recipes.building import staged
from recipes.building.assembled import assembled
from recipes.checkpoints.load import CheckpointStore
from recipes.cli import train as command_line
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.configuration.stages import compose_run
from recipes.processes.stop import Stopped
from recipes.running import self_check
from recipes.running.directory import read_status
from recipes.running.keeper import Keeper
from recipes.running.resume import read_config
from recipes.running.run import Run
from recipes.running.self_check import differing
from recipes.running.sweep import sweep

RECIPE = "grocery_probe_finetune"
STAGES = ("embed", "probe", "finetune")
WORDS = [
    *but(TINY, "data.val_fraction=0.2", "data.batch_size=20", "data.limit_test=80"),
    "data.limit_train=80",
    "backbone.kwargs.channels=[4,8]",
    "trainer.max_epochs=2",
    "stages.embed.data.samples_per_class=2",
]


def train(folder, name, *words):
    """Train until it ends or stops; why it stopped."""
    return ended(recipes.build(RECIPE, [*WORDS, f"output={folder}", f"name={name}", *words]))


def ended(run):
    torch.manual_seed(99)
    try:
        run.run()
    except Stopped as stopped:
        return stopped
    return None


def stamps(place):
    """What changes where any file of a folder is written again; whoever looks at a run takes its lock."""
    files = [path for path in place.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def assert_equal_runs(a, b):
    for stage in STAGES:
        for name in ("last", "best"):
            first, second = (CheckpointStore(run / stage / "checkpoints").newest(name)[0] for run in (a, b))
            for content, run in ((first, a), (second, b)):  # where the stage before lies
                if "init" in content:
                    assert content["init"].pop("reference").startswith(str(run))
            assert not (found := differing(first, second)), (stage, name, found[:5])
        rows = [outcome(run.parent, run.name, stage)[1] for run in (a, b)]
        assert rows[0] == rows[1] and rows[0], stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    assert train(folder, "whole") is None
    return folder / RECIPE / "whole"


def test_what_it_leaves(whole):
    assert {path.name for path in whole.iterdir()} == {
        *STAGES, "config.yaml", "status.json", "results.json", "command.txt", ".lock",
    }  # fmt: skip
    results = json.loads((whole / "results.json").read_text())
    assert list(results["stages"]) == [*STAGES] and results["recipe"] == RECIPE
    assert results["test"] == results["stages"]["finetune"]["test"] and "accuracy" in results["test"]
    assert "recall@1" in results["stages"]["embed"]["test"]
    assert read_status(whole)["state"] == "finished"


def best(stage):
    return CheckpointStore(stage / "checkpoints").newest("best")[0]["network"]


def test_each_stage_begins_with_the_best_of_the_one_before(whole, tmp_path):
    embed, probe = best(whole / "embed"), best(whole / "probe")
    body = [key for key in probe if key.startswith("backbone.")]
    assert len(body) > 4 and all(torch.equal(embed[key], probe[key]) for key in body), "frozen, batch norm included"
    run = tmp_path / "moved"
    shutil.copytree(whole / "probe", run / "probe")
    shutil.copy(whole / "config.yaml", run)
    stage = read_config(run)["stages"]["finetune"]
    assert stage["init"] == "probe" and stage["backbone"]["pretrained"] is False
    network = assembled(stage, resume=run / "finetune").task.network.state_dict()
    assert all(torch.equal(network[key], value) for key, value in probe.items()), "the head as well"


@pytest.mark.parametrize(("stage", "update"), [("embed", 1), ("probe", 3), ("probe", 6), ("finetune", 4)])
def test_a_stop_in_any_stage_leaves_no_trace(whole, stage, update, tmp_path):
    stopped = train(tmp_path, "broken", f"stages.{stage}.stop_after={update}")
    assert stopped is not None and stopped.exit_code == 75
    run = tmp_path / RECIPE / "broken"
    status = read_status(run)
    assert (status["state"], status["stage"], status["exit_code"]) == ("interrupted", stage, 75)
    finished = {name: stamps(run / name) for name in STAGES[: STAGES.index(stage)]}
    assert ended(recipes.resume_run(run)) is None
    assert finished == {name: stamps(run / name) for name in finished}
    assert_equal_runs(whole, run)


OWNERS = {"Keeper": Keeper, "Run": Run, "staged": staged}


def die(folder, stage, where):
    """Train, and be killed where a method is called in a stage."""
    name, method = where.split(".")
    owner = OWNERS[name]
    original = getattr(owner, method)

    def last_call(*args, **keys):
        here = keys["resume"].name if "resume" in keys else Path(os.environ.get(staged.VARIABLE, "")).name
        if here == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keys)

    setattr(owner, method, last_call)
    train(folder, "killed")


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("embed", "Keeper.validating"),
        ("probe", "staged.assemble"),  # between the stages
        ("probe", "Run._describe"),  # before it is a run directory
        ("finetune", "Keeper.epoch_done"),
        ("finetune", "Run._evaluate"),
    ],
)
def test_a_kill_leaves_no_trace(whole, stage, where, tmp_path):
    child = multiprocessing.get_context("forkserver").Process(target=die, args=(tmp_path, stage, where))
    child.start()
    child.join(180)
    assert child.exitcode == -signal.SIGKILL
    run = tmp_path / RECIPE / "killed"
    assert read_status(run)["stage"] == stage
    finished = {name: stamps(run / name) for name in STAGES[: STAGES.index(stage)]}
    assert train(tmp_path, "killed") is None, "the same command again goes on"
    assert finished == {name: stamps(run / name) for name in finished}
    assert_equal_runs(whole, run)


def test_at_the_command_line(whole, tmp_path):
    command = [sys.executable, "train.py", f"recipe={RECIPE}", *WORDS, f"output={tmp_path}", "name=asked"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / RECIPE / "asked"
    while read_status(run / "probe").get("state") != "running" and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 143, said
    assert "stopped by SIGTERM" in said and f"all stages: python train.py resume={run}" in said
    assert (read_status(run)["state"], read_status(run)["stage"]) == ("interrupted", "probe")
    again = subprocess.run([sys.executable, "train.py", f"resume={run}"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "stage embed (1 of 3) is finished" in again.stdout, again.stderr
    assert_equal_runs(whole, run)


def test_a_finished_run_is_left_alone(whole, capsys):
    before = stamps(whole)
    assert command_line([f"resume={whole}"]) == 0
    assert f"{whole} is finished" in capsys.readouterr().out and stamps(whole) == before
    words = [f"recipe={RECIPE}", *WORDS, f"output={whole.parents[1]}", "name=whole"]
    assert sweep("train.py", words) == 0
    assert "finished before" in capsys.readouterr().out and stamps(whole) == before


def test_a_stage_is_an_ordinary_run(whole, tmp_path):
    from recipes.evaluate import evaluate_checkpoint

    node = compose_run(["recipe=grocery_baseline"])["evaluator"]
    found = evaluate_checkpoint(evaluator=node, checkpoint=str(whole / "probe"), output=str(tmp_path / "out"))
    results = json.loads((whole / "results.json").read_text())
    assert found["classification"]["accuracy"] == pytest.approx(results["stages"]["probe"]["test"]["accuracy"])
    assert recipes.resume_run(whole / "probe").run()["test"] == results["stages"]["probe"]["test"]


class Sleeper:
    """A stage that lasts 0.8 s and can be stopped."""

    def __init__(self, begun, resume, **config):
        self.begun, self.place = begun, resume

    def run(self, stop):
        self.begun.append(self.place.name)
        time.sleep(0.8)
        return {}


class Asked:
    """A stage behind which a stop is asked for, by a signal whose error is lost in a callback of the collector."""

    def __init__(self, begun, resume, **config):
        self.begun, self.place = begun, resume

    def run(self, stop):
        self.begun.append(self.place.name)
        stop.request("SIGTERM", 143)


def test_a_stop_that_nobody_heard_ends_behind_the_stage(monkeypatch, tmp_path):
    run, begun = staged.StagedRun(compose_run([f"recipe={RECIPE}", *WORDS, f"output={tmp_path}", "name=deaf"])), []
    monkeypatch.setattr(staged, "assemble", lambda **config: Asked(begun, **config))
    assert ended(run).exit_code == 143 and len(begun) == 1


def test_max_time_is_that_of_all_stages(monkeypatch, tmp_path):
    words = [f"recipe={RECIPE}", *WORDS, f"output={tmp_path}", "name=short", "max_time=1"]
    run, begun = staged.StagedRun(compose_run(words)), []
    monkeypatch.setattr(staged, "assemble", lambda **config: Sleeper(begun, **config))
    stopped = ended(run)
    assert (stopped.reason, stopped.exit_code) == ("max_time", 75), "each alone would have been in time"
    assert read_status(run.directory)["stage"] == begun[-1]


def test_processes_from_outside_are_refused(monkeypatch):
    from lightning.pytorch.plugins.environments import LightningEnvironment

    monkeypatch.setattr(LightningEnvironment, "creates_processes_externally", True)
    words = [*WORDS, "trainer.devices=2", "trainer.strategy=ddp"]
    with pytest.raises(ConfigError, match="are started by itself .trainer.devices=N., not by torchrun or srun"):
        recipes.build(RECIPE, words)


def test_every_stage_can_be_checked(monkeypatch, capsys):
    def run_here(command, output):
        return command_line([word for word in command[2:] if not word.startswith("--allow")])

    monkeypatch.setattr(self_check, "run_child", run_here)
    assert self_check.self_check([f"recipe={RECIPE}", *but(WORDS, "trainer.max_epochs=3")]) == 0
    assert capsys.readouterr().out.count("equal bit for bit") == 3


def test_a_run_of_stages_is_no_reference_and_says_which_are(whole, capsys):
    from recipes.cli import evaluate

    assert evaluate([f"checkpoint={whole}"]) == 2
    error = capsys.readouterr().err
    assert (
        "is a run of stages, each with its own network; give one of them: " in error and f"{whole / 'probe'}" in error
    )
