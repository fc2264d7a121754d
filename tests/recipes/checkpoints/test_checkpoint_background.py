"""The part of a save that runs beside training: when it waits, who ends it, and in which order it writes."""

import os
import tempfile
import threading

import pytest
from checkpoint_faults import MARKS, content, in_child, names, newest, save

from recipes.checkpoints import sidecar
from recipes.checkpoints.load import CheckpointStore, save_checkpoint

pytestmark = MARKS


@pytest.fixture
def gate(monkeypatch):
    """Holds the background part of every save until it is set."""
    event, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(sidecar.os, "fsync", lambda number: event.wait(20) and fsync(number))
    yield event
    event.set()


def test_a_save_returns_early_with_what_it_was_given(tmp_path, gate):
    store, given = CheckpointStore(tmp_path), content(1)
    store.save("last", given)
    given["network"]["weight"].zero_()  # training goes on
    given["update"] = 99
    store.save("best", content(7))  # another name does not wait for it
    assert not (tmp_path / "last.ckpt").exists() and (tmp_path / ".last.ckpt.part").exists()
    gate.set()
    assert store.newest("last")[0]["update"] == 1, "newest waits, so that it finds what was saved"
    assert newest(tmp_path) == (1, []) and newest(tmp_path, name="best") == (7, [])


def test_a_second_save_of_a_name_waits_for_the_first(tmp_path, gate):
    store = CheckpointStore(tmp_path)
    store.save("last", content(1))
    threading.Timer(0.1, gate.set).start()
    store.save("last", content(2))
    assert gate.is_set() and (tmp_path / "last.ckpt").exists()
    store.wait()
    assert newest(tmp_path) == (2, []) and newest(tmp_path, update=1) == (1, [])


def test_a_process_that_ends_finishes_its_save(tmp_path):
    """As the interpreter does at its end: first it joins the threads."""

    def act():
        fsync = os.fsync
        sidecar.os.fsync = lambda number: threading.Event().wait(0.05) or fsync(number)
        CheckpointStore(tmp_path).save("last", content(1))
        assert not (tmp_path / "last.ckpt").exists()
        threading._shutdown()
        return names(tmp_path)

    assert in_child(act) == str(["last.ckpt", "last.ckpt.sha256"])


def test_a_worker_forked_in_between_ends_by_itself_and_changes_nothing(tmp_path, gate):
    store = CheckpointStore(tmp_path)
    store.save("last", content(1))
    assert in_child(lambda: threading._shutdown() or "ended") == "ended"
    gate.set()
    store.wait()
    assert newest(tmp_path) == (1, [])


def test_the_temporary_folder_of_the_system_is_not_used(tmp_path, monkeypatch):
    """A file there could lie on another file system, and a move from there would be a copy."""

    def used(*_, **__):
        raise AssertionError("the temporary folder of the system is used")

    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("gettempdir", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"):
        monkeypatch.setattr(tempfile, name, used)
    replace, places = os.replace, []
    monkeypatch.setattr(sidecar.os, "replace", lambda *paths: places.extend(paths) or replace(*paths))
    save(tmp_path, 1)
    save_checkpoint(tmp_path / "last.ckpt", content(2))
    assert len(places) == 12 and {path.parent for path in places} == {tmp_path}
    assert newest(tmp_path) == (2, [])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")
def test_every_file_is_on_disk_before_the_first_rename_and_every_rename_before_the_next(tmp_path, monkeypatch):
    save(tmp_path, 1)
    steps, replace, fsync = [], os.replace, os.fsync

    def flushed(number):
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    monkeypatch.setattr(sidecar.os, "fsync", flushed)
    monkeypatch.setattr(sidecar.os, "replace", lambda a, b: steps.append((a.name, b.name)) or replace(a, b))
    save(tmp_path, 2)
    last, previous, folder = ".last.ckpt", ".last.previous.ckpt", tmp_path.name
    assert steps == [
        *(f"{last}.part", f"{last}.sha256.part", f"{previous}.sha256.part"),
        *((f"{previous}.sha256.part", "last.previous.ckpt.sha256"), folder),
        *(("last.ckpt", "last.previous.ckpt"), folder),
        *((f"{last}.sha256.part", "last.ckpt.sha256"), folder),
        *((f"{last}.part", "last.ckpt"), folder),
    ]
