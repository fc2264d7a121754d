"""Writes of a checkpoint that fail: a full disk and other errors say what happened, and cost no earlier generation."""

import errno
import io
import itertools
import os
import resource
import threading

import pytest
import torch
from checkpoint_faults import MARKS, content, in_child, names, newest, save

from recipes.checkpoints import sidecar
from recipes.checkpoints import store as checkpoint_store
from recipes.checkpoints.load import CheckpointStore

pytestmark = MARKS
SPACE = (
    r"could not write .*last.ckpt: .*No space left on device.* \(it needs [\d,]+ bytes, [\d,]+ are free\); "
    "an earlier checkpoint there is intact"
)


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before, store = names(tmp_path), CheckpointStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "open", lambda path, mode: io.BufferedWriter(Full(path, "w")), raising=False)
        with pytest.raises(OSError, match=SPACE) as caught:
            store.save("last", content(2))
    assert "needs 8,000 bytes" in str(caught.value)
    assert names(tmp_path) == before and newest(tmp_path) == (1, [])
    store.save("last", content(3))
    store.wait()
    assert newest(tmp_path) == (3, [])


def test_a_full_disk_at_the_first_checkpoint_promises_none(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "open", lambda path, mode: io.BufferedWriter(Full(path, "w")), raising=False)
    with pytest.raises(OSError, match=r"No space left on device.* are free\); there is no earlier checkpoint$"):
        CheckpointStore(tmp_path).save("last", content(1))


@pytest.mark.parametrize("when", ["save", "wait"])
@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_in_the_background(tmp_path, monkeypatch, when, call):
    """At each of the flushes: of the file, of two sha256, of the folder after the first and the second rename."""
    save(tmp_path, 1)
    store, fsync, counter = CheckpointStore(tmp_path), os.fsync, itertools.count()

    def full(number):
        if next(counter) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(sidecar.os, "fsync", full)
        store.save("last", content(2))
        with pytest.raises(OSError, match=SPACE):
            store.save("last", content(3)) if when == "save" else store.wait()
    assert newest(tmp_path) == (1, []) and not list(tmp_path.glob(".*"))
    store.wait()  # an error is raised once
    store.save("last", content(4))
    store.wait()
    assert newest(tmp_path) == (4, []) and newest(tmp_path, update=1) == (1, [])


def test_a_limit_on_the_size_of_files(tmp_path):
    """The system's own refusal in the middle of a write."""
    save(tmp_path, 1)

    def act():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        store = CheckpointStore(tmp_path)
        store.save("last", {"network": [torch.zeros(100_000) for _ in range(3)]})

    text = in_child(act)
    assert "OSError: could not write" in text and "File too large (it needs 1,200,000 bytes, " in text
    assert newest(tmp_path) == (1, []) and not list(tmp_path.glob(".*"))


def test_an_error_that_is_not_about_space(tmp_path, monkeypatch):
    save(tmp_path, 1)
    store = CheckpointStore(tmp_path)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(sidecar.os, "replace", refused)
        store.save("last", content(2))
        seen = r"could not write .*last.ckpt: \[Errno 13\] Permission denied; an earlier checkpoint there is intact"
        with pytest.raises(OSError, match=seen):
            store.wait()
    assert newest(tmp_path) == (1, []) and not list(tmp_path.glob(".*"))


def test_an_error_of_torch_is_not_blamed_on_what_was_being_handled(tmp_path, monkeypatch):
    def failing(*_):
        raise RuntimeError("PytorchStreamWriter failed")

    monkeypatch.setattr(checkpoint_store.torch, "save", failing)
    try:
        raise OSError(errno.EIO, "of a loader")
    except OSError:
        with pytest.raises(OSError, match=r"last.ckpt: PytorchStreamWriter failed \(it needs 8,000 bytes, "):
            CheckpointStore(tmp_path).save("last", content(1))
    assert names(tmp_path) == []


def test_an_interrupt_while_writing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_store.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CheckpointStore(tmp_path).save("last", content(1))
    assert names(tmp_path) == []


def test_waiting_ends_when_all_is_done_even_where_one_write_failed(tmp_path, monkeypatch):
    store, fsync, counter = CheckpointStore(tmp_path), os.fsync, itertools.count()

    def flush(number):
        if next(counter) == 0:
            raise OSError(errno.EIO, "Input/output error")
        threading.Event().wait(0.02)
        fsync(number)

    monkeypatch.setattr(sidecar.os, "fsync", flush)
    store.save("last", content(1))
    store.save("best", content(2))
    with pytest.raises(OSError, match=r"could not write .*last.ckpt: \[Errno 5\] Input/output error"):
        store.wait()
    assert names(tmp_path) == ["best.ckpt", "best.ckpt.sha256"]
