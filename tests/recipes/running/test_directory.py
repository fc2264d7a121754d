"""Run directories: nothing is overwritten, an unfinished run goes on, two processes never share one."""

import errno
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from tiny import TINY

import recipes
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.processes.lock import Lock, Locked
from recipes.processes.stop import Stopped
from recipes.running.directory import open_directory, read_status, write_status

pytestmark = pytest.mark.fault

WORDS = [*TINY, "backbone=test_vit", "data.limit_train=16", "trainer.max_epochs=2"]


def build(folder, *words):
    return recipes.build("grocery_baseline", [*WORDS, f"output={folder}", *words])


def test_an_unfinished_run_of_the_same_name_goes_on(tmp_path, capsys):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=1").run()
    run = build(tmp_path, "name=a")
    assert run.run()["updates"] == 4 and run.directory == tmp_path / "grocery_baseline" / "a"
    assert "going on from" in capsys.readouterr().out


def test_a_finished_run_gets_a_suffix(tmp_path):
    first, second = build(tmp_path, "name=a"), build(tmp_path, "name=a", "seed=1")
    first.run()
    before = {path: path.read_bytes() for path in first.directory.rglob("*") if path.is_file()}
    second.run()
    assert second.directory.name == "a_2"
    assert before == {path: path.read_bytes() for path in first.directory.rglob("*") if path.is_file()}


def test_an_unfinished_run_of_another_configuration_is_not_touched(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=1").run()
    with pytest.raises(ConfigError, match="unfinished run of another configuration.*seed is 0 in the run and 5 now"):
        build(tmp_path, "name=a", "seed=5").run()


def test_runs_without_a_name_never_share(tmp_path, monkeypatch):
    """Not even where the clock stands still, or is set back."""
    monkeypatch.setattr("time.strftime", lambda *_: "2026-01-01_00-00-00")
    made = [open_directory(str(tmp_path), "r", None, 0, {})[0].name for _ in range(3)]
    assert made == ["2026-01-01_00-00-00_seed0", "2026-01-01_00-00-00_seed0_2", "2026-01-01_00-00-00_seed0_3"]


def test_a_directory_of_a_run_that_never_began_is_taken(tmp_path):
    """Its process was killed before it said what run it was."""
    folder = tmp_path / "grocery_baseline" / "a"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "environment.json").write_text("{}")
    assert build(tmp_path, "name=a").run()["updates"] == 4
    assert (folder / "report.html").is_file() and (folder / "config.yaml").is_file()


def test_checkpoints_that_cannot_be_read_are_not_written_over(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=3").run()
    kept = tmp_path / "grocery_baseline" / "a" / "checkpoints"
    for path in kept.glob("*.sha256"):
        path.unlink()
    before = {path: path.read_bytes() for path in kept.iterdir()}
    for words in ({"name": "a"}, {"resume": kept.parent}):
        run = recipes.resume_run(kept.parent) if "resume" in words else build(tmp_path, "name=a")
        with pytest.warns(UserWarning, match="has no sha256"), pytest.raises(ConfigError, match="is not started over"):
            run.run()
    assert before == {path: path.read_bytes() for path in kept.iterdir()}


def test_a_resumed_run_forgets_where_the_session_before_stopped(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=1").run()
    assert recipes.resume_run(tmp_path / "grocery_baseline" / "a").run()["updates"] == 4


def hold(folder):
    """A process that holds the lock of a folder, and its pid."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
    code += "from recipes.processes.lock import Lock\n"
    code += f"Lock(Path({str(folder)!r})).take()\nprint('held', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_directory_in_use_is_refused_until_its_process_dies(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=1").run()
    folder = tmp_path / "grocery_baseline" / "a"
    process = hold(folder)
    try:
        with pytest.raises(ConfigError, match="at work right now"):
            build(tmp_path, "name=a").run()
        with pytest.raises(ConfigError, match=rf"in use by process {process.pid} on .* since 20"):
            recipes.resume_run(folder).run()
    finally:
        process.kill()
        process.wait()
    assert json.loads((folder / ".lock").read_text())["pid"] == process.pid, "it left its lock behind"
    assert recipes.resume_run(folder, ["stop_after=null"]).run()["updates"] == 4


def test_a_directory_that_cannot_be_locked_is_refused(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, "name=a", "stop_after=1").run()
    (tmp_path / "grocery_baseline" / "a" / ".lock").unlink()
    (tmp_path / "grocery_baseline" / "a" / ".lock").mkdir()
    with pytest.raises(ConfigError, match="cannot run in .*/a: "):
        recipes.resume_run(tmp_path / "grocery_baseline" / "a").run()


def test_a_lock_that_says_nothing_or_lies_is_taken_over(tmp_path):
    for text in ("", "{", '{"pid": 1, "host": "elsewhere"}', "[]"):
        (tmp_path / ".lock").write_text(text)
        lock = Lock(tmp_path)
        assert not lock.live()
        lock.take()
        with pytest.raises(Locked, match="in use by this process"):
            Lock(tmp_path).take()
        assert lock.live()
        lock.release()


def test_the_lock_is_not_inherited_by_loader_processes(tmp_path):
    lock = Lock(tmp_path)
    lock.take()
    pid = os.fork()
    if pid == 0:
        signal_never_comes = os.pipe()[0]
        os.read(signal_never_comes, 1)
        os._exit(0)
    lock.release()
    try:
        other = hold(tmp_path)
        other.kill()
        other.wait()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_status_of_a_failed_run(tmp_path):
    run = build(tmp_path, "name=a")

    def broken(*args):
        raise ZeroDivisionError("no reason")

    run.task.measure_training = broken
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert read_status(run.directory)["error"] == "ZeroDivisionError: no reason"
    assert build(tmp_path, "name=a").run()["updates"] == 4, "it can be run again under its name"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the run directory .*; choose another output="):
        build(tmp_path / "file").run()


def test_status_that_cannot_be_read_means_unfinished(tmp_path):
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == {}
    write_status(tmp_path, "finished", note=1)
    assert read_status(tmp_path)["note"] == 1


def test_a_log_that_fails_costs_one_warning(tmp_path, monkeypatch):
    def full(*args, **keys):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert build(tmp_path).run()["epochs"] == 2
    assert [str(w.message) for w in caught if "TensorBoard" in str(w.message)] == [
        "TensorBoard's log ends here: [Errno 28] No space left on device; metrics.csv has every epoch"
    ]


def test_out_of_memory_says_what_to_do(tmp_path):
    run = build(tmp_path, "name=a")
    original = run.task.measure_training

    def hungry(*args):
        if run.task.update == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(*args)

    run.task.measure_training = hungry
    with pytest.raises(RuntimeError, match=r"out of memory .*data.batch_size=8.*peak.*micro_batches.*20.00 GiB"):
        run.run()
    assert recipes.resume_run(run.directory).run()["updates"] == 4


def test_host_memory_runs_out(tmp_path):
    run = build(tmp_path)
    run.task.measure_training = lambda *args: {"accuracy": torch.empty(2**60)}
    with pytest.raises(RuntimeError, match="out of memory .*data.batch_size=8"):
        run.run()
