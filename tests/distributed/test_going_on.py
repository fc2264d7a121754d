"""A run of two processes that was interrupted and goes on equals the one that was not, bit for bit."""

import json
import os
import signal

import pytest
from processes import SAF, TINY, answer, but, command, together

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.problems import ConfigError
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault
#: Batch norm, dropout, a moving average, SAF, and a last batch of unequal shares.
WORDS = [
    "recipe=grocery_saf",
    *but(TINY, "backbone=test_efficientnet", "data.limit_train=23"),
    *SAF,
    "head.dropout_prob=0.2",
    "task.ema_decay=0.9",
    "data.drop_last=false",
    "evaluator=[]",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``last`` of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    ended = together(command, [*WORDS, f"output={folder}", "name=run"], folder=folder)
    assert [process.code for process in ended] == [0, 0], ended[0].text
    return last(folder)


@pytest.fixture
def stopped(two, tmp_path):
    """A run stopped inside the first epoch."""
    ended = two(command, [*WORDS, f"output={tmp_path}", "name=run", "stop_after=2"])
    assert [process.code for process in ended] == [75, 75], ended[0].text
    assert last(tmp_path)["position"] == [0, 2]
    return tmp_path / "grocery_saf" / "run"


def last(folder):
    return CheckpointStore(folder / "grocery_saf" / "run" / "checkpoints").newest("last")[0]


def signalled(rank, directory, place, update):
    """Goes on, and SIGTERM arrives at the second process alone."""
    run = recipes.resume_run(directory, ["stop_after=null"])
    original = getattr(run.task, place)

    def arriving(*args):
        if rank == 1 and run.task.update == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    setattr(run.task, place, arriving)
    return answer(run)


def test_stops_leave_no_trace(whole, stopped, two, tmp_path):
    """Stopped by stop_after, by SIGTERM in mid-epoch and by SIGTERM in validation, which is then repeated.

    What arrives after the agreement of a step is agreed upon in the next one.
    """
    for place, update, position in (("measure_training", 4, [1, 2]), ("validation_step", 6, [1, 3])):
        ended = two(signalled, stopped, place, update)
        assert [process.code for process in ended] == [143, 143], ended[0].text
        saved = f"stopped by SIGTERM; saved after update {3 * position[0] + position[1]} "
        assert all(saved in process.text for process in ended)
        status = json.loads((stopped / "status.json").read_text())
        assert (status["state"], status["reason"], status["exit_code"]) == ("interrupted", "SIGTERM", 143)
        assert last(tmp_path)["position"] == position
    ended = two(command, [f"resume={stopped}", "stop_after=null"])
    assert [process.code for process in ended] == [0, 0], ended[0].text
    assert not (found := differing(whole, last(tmp_path))), found[:5]
    again = two(command, [f"resume={stopped}"])
    assert [process.code for process in again] == [0, 0] and "is finished" in again[0].text


def test_another_number_of_processes_is_refused(stopped, two):
    message = "the checkpoint is of 2 process(es), and there are 1 now"
    with pytest.raises(ConfigError) as refused:
        recipes.resume_run(stopped, ["trainer.devices=1", "trainer.strategy=auto"]).run()
    assert message in str(refused.value)
    ended = together(command, [f"resume={stopped}", "trainer.devices=3"], folder=stopped.parent, world=3)
    assert [process.code for process in ended] == [2, 2, 2]
    assert "the checkpoint is of 2 process(es), and there are 3 now" in ended[0].text
    assert "process 0 ended the run before it began" in ended[2].text and "there are 3 now" in ended[2].text
