"""One process fails: the others end within 30 s, say whose fault it was, and what was saved is valid."""

import json
import os
import signal
import threading
import time

import pytest
from processes import SAF, TINY, answer, command

from recipes.checkpoints.load import CheckpointStore

pytestmark = pytest.mark.fault
LIMIT_S = 30
FAULTY_UPDATE = 5


def build(folder, *words):
    import recipes

    return recipes.build("grocery_saf", [*TINY, *SAF, f"output={folder}", "name=run", *words])


def status(folder):
    return json.loads((folder / "grocery_saf" / "run" / "status.json").read_text())


def last(folder):
    return CheckpointStore(folder / "grocery_saf" / "run" / "checkpoints").newest("last")[0]


def faulty(rank, folder, fault):
    """A run in which ``fault(rank)`` happens in update 5, in the second epoch."""
    run = build(folder)
    measure, task = run.task.measure_training, run.task

    def measured(*args):
        if task.update == FAULTY_UPDATE:
            fault(rank)
        return measure(*args)

    task.measure_training = measured
    return answer(run)


def raises(rank):
    if rank == 1:
        raise ValueError("photo_17.jpg cannot be read")


def is_killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def is_killed_while_the_other_hangs(rank):
    from recipes.processes import watch

    if rank == 0:
        watch.GRACE_S = 1.0
        time.sleep(60)
    is_killed(rank)


def first_is_killed(rank):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def ended(two, tmp_path):
    def run(fault):
        first, second = two(faulty, tmp_path, fault, limit_s=LIMIT_S)
        assert last(tmp_path)["update"] == 3, "the checkpoint of the epoch before"
        return first, second

    return run


def test_one_raises(ended, two, tmp_path):
    first, second = ended(raises)
    assert (first.code, second.code) == (1, 1)
    assert "process 1 of 2 failed and ended this one: ValueError: photo_17.jpg cannot be read" in first.text
    assert "ValueError: photo_17.jpg cannot be read" in second.text
    assert status(tmp_path)["state"] == "failed" and "process 1 of 2 failed" in status(tmp_path)["error"]
    again = two(command, [f"resume={tmp_path / 'grocery_saf' / 'run'}"])
    assert [process.code for process in again] == [0, 0] and status(tmp_path)["state"] == "finished"


def test_one_is_killed(ended, tmp_path):
    first, second = ended(is_killed)
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert "process 1 of 2 failed" in first.text and "is gone: killed" in first.text
    assert status(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_one_is_killed_while_the_other_cannot_notice(ended, tmp_path):
    """As where a collective of the GPU waits: the watch ends the process."""
    first, second = ended(is_killed_while_the_other_hangs)
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert "process 1 of 2 failed" in first.text and "process 1 of 2 failed" in status(tmp_path)["error"]


def test_the_first_is_killed(ended):
    first, second = ended(first_is_killed)
    assert (first.code, second.code) == (-signal.SIGKILL, 1)
    assert "process 0 of 2 failed" in second.text


def never_meets(rank, folder):
    """The second process is not there, and the first is asked to stop while it waits for it."""
    from recipes.processes import watch

    if rank == 1:
        return 0
    watch.GRACE_S = 0.5
    run = build(folder)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return answer(run)


@pytest.mark.slow
def test_a_stop_before_the_processes_have_met(two, tmp_path):
    first, _ = two(never_meets, tmp_path, limit_s=LIMIT_S)
    assert first.code == 143 and "stopped by SIGTERM before all processes had met" in first.text
    assert status(tmp_path)["state"] == "interrupted"
