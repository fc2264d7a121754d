"""Signals and the wall-time budget: the step is finished and saved, the exit code says why, the run goes on later."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from tiny import SAF, TINY, but

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.cli import train as command_line
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.processes.stop import Stopped, StopRequest, seconds
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault

WORDS = [*TINY, *SAF, "recipe=grocery_saf", "backbone=test_vit", "data.limit_train=24", "trainer.max_epochs=3"]


def build(folder, *words):
    return recipes.build(overrides=[*WORDS, f"output={folder}", "name=run", *words])


def last(folder):
    return CheckpointStore(folder / "grocery_saf" / "run" / "checkpoints").newest("last")[0]


def status(folder):
    return json.loads((folder / "grocery_saf" / "run" / "status.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build(folder).run()
    return last(folder)


def send(number):
    os.kill(os.getpid(), number)


def interrupt(run, phase, number):
    """Let the signal arrive at this point of the run."""
    task = run.task
    place, name, when = {
        "first batch": (task, "measure_training", lambda: task.update == 1),
        "mid-epoch": (task, "measure_training", lambda: task.update == 5),
        "last batch": (task, "measure_training", lambda: task.update == 6),
        "validation": (task, "validation_step", lambda: task.update == 6),
        "last validation": (task, "validation_step", lambda: task.update == 9),
        "between epochs": (task.parts, "end_epoch", lambda: task.update == 3),
        "evaluation": (run.data, "test_dataloader", lambda: True),
    }[phase]
    original = getattr(place, name)

    def arriving(*args):
        if when():
            send(number)
        return original(*args)

    setattr(place, name, arriving)


PHASES = ["first batch", "mid-epoch", "last batch", "validation", "last validation", "between epochs", "evaluation"]


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_at_any_time(phase, whole, tmp_path):
    run = build(tmp_path)
    interrupt(run, phase, signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped:
        run.run()
    assert stopped.value.exit_code == 143
    found = status(tmp_path)
    assert (found["state"], found["reason"], found["exit_code"]) == ("interrupted", "SIGTERM", 143)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are given back"
    results = recipes.resume_run(tmp_path / "grocery_saf" / "run").run()
    assert results["updates"] == 9 and results["test"] and status(tmp_path)["state"] == "finished"
    assert not differing(whole, last(tmp_path))


@pytest.mark.parametrize(
    ("number", "reason", "code"),
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGUSR1, "SIGUSR1", 75), (signal.SIGALRM, "max_time", 75)],
)
def test_each_signal_has_its_exit_code(number, reason, code, tmp_path):
    run = build(tmp_path)
    interrupt(run, "mid-epoch", number)
    with pytest.raises(Stopped, match=f"stopped by {reason}; saved after update 5 .2 batches into epoch 1") as stopped:
        run.run()
    assert stopped.value.exit_code == code and last(tmp_path)["position"] == [1, 2]


def test_the_budget_ends_the_run(tmp_path, capsys):
    words = but(WORDS, f"output={tmp_path}", "name=run", "trainer.max_epochs=100000", "max_time=1.5s")
    assert command_line(words) == 75
    assert "stopped by max_time; saved after update" in capsys.readouterr().err
    assert status(tmp_path)["reason"] == "max_time" and last(tmp_path)["update"] > 0


def test_a_second_signal_ends_at_once(tmp_path):
    """In a process of its own: the second Ctrl-C comes while the step of the first is in progress."""
    code = f"""
    import os, signal, sys
    sys.path.insert(0, {str(ROOT)!r})
    from recipes.processes.stop import StopRequest
    stop = StopRequest(last_act=lambda: print("children killed", flush=True))
    with stop.listening():
        stop.training = True
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.reason, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("still here", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (130, ["SIGINT", "children", "killed"])


def test_two_sigterms_of_one_request(monkeypatch):
    """A launcher and its scheduler may both send one; a later one is a new request."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = StopRequest()
    with stop.listening():
        stop.training = True
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.reason == "SIGTERM" and not ended
        monkeypatch.setattr("recipes.processes.stop.ONE_REQUEST_S", 0.0)
        time.sleep(0.01)
        send(signal.SIGTERM)
    assert ended == [143]


def test_other_handlers_are_left_alone(tmp_path):
    """Among them torch's for SIGCHLD, which notices a loader process that died."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    run = build(tmp_path, "stop_after=2", "data.num_workers=1")
    with pytest.raises(Stopped):
        run.run()
    after = {number: signal.getsignal(number) for number in signal.valid_signals()}
    changed = {number for number in before if before[number] != after[number]}
    assert changed <= {signal.SIGCHLD} and after[signal.SIGCHLD] != signal.SIG_DFL


def test_a_loader_that_the_signal_ended_as_well(tmp_path, whole):
    """Schedulers signal every process of a job: a worker that dies of it does not cost the last updates."""
    run = build(tmp_path, "data.num_workers=1")
    source = run.data.source

    def killed(part):
        made = source(part)
        if part == "train":
            read = type(made).__getitems__
            made.__class__ = type(
                "Killed", (type(made),), {"__getitems__": lambda self, keys: die(read(self, keys), keys)}
            )
        return made

    def die(batch, keys):
        if keys.epoch == 1 and os.getpid() != parent:
            os.kill(parent, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    parent = os.getpid()
    run.data.source = killed
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        run.run()
    assert status(tmp_path)["exit_code"] == 143
    recipes.resume_run(tmp_path / "grocery_saf" / "run").run()
    assert not differing(whole, last(tmp_path))


def test_a_signal_to_the_whole_group_costs_no_update(tmp_path):
    """Loader processes go on for a moment, so that the main one can finish its step and save."""
    run = build(tmp_path, "data.num_workers=2")
    measure = run.task.measure_training

    def signalled(*args):
        if run.task.update == 5:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.3)  # in the middle of the update
            send(signal.SIGTERM)
            time.sleep(0.3)
        return measure(*args)

    run.task.measure_training = signalled
    with pytest.raises(Stopped, match="saved after update 5 "):
        run.run()
    assert last(tmp_path)["position"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), (90, 90), ("1.5s", 1.5), ("30m", 1800), ("11h30m", 41400), ("1d", 86400), (None, None)],
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "5 parsecs"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="max_time"):
        seconds(text)
    with pytest.raises(ConfigError, match="max_time"):
        recipes.build(overrides=[*WORDS, f"max_time={text}"])
