"""Checkpoints under faults: kills at every point, a full disk, damaged files. One generation is always whole."""

import errno
import io
import itertools
import os
import resource
import signal
import tempfile
import threading
import warnings

import pytest
import torch

from recipes import checkpoint_store, sidecar
from recipes.checkpoint import CheckpointStore, load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.fault, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]

POINTS = ["first byte", "middle", "flush", "rename 0", "rename 1", "rename 2", "rename 3", "folder"]


def content(update):
    return {"update": update, "network": {"weight": torch.full((2000,), float(update))}}


def save(folder, update, name="last"):
    store = CheckpointStore(folder)
    store.save(name, content(update))
    store.wait()


def newest(folder, update=None, name="last"):
    """The update of the newest generation that is intact, with what was said of others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = CheckpointStore(folder).newest(name, update)
    if found is not None:
        assert torch.equal(found[0]["network"]["weight"], content(found[0]["update"])["network"]["weight"])
    return found and found[0]["update"], [str(warning.message) for warning in caught]


def clean(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CheckpointStore(folder).clean()
    assert not list(folder.glob(".*"))
    return [str(warning.message) for warning in caught]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_child(function):
    """Run in a forked process; what it returns or raises as text, or None where it was killed."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return None if status else text


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(io.FileIO):
    """A file whose process dies after so many bytes."""

    left = 0

    def write(self, data):
        data = bytes(data)
        if len(data) >= self.left:
            super().write(data[: self.left])
            die()
        self.left -= len(data)
        return super().write(data)


def arm(point):
    """Let this process die at a point of the next save."""
    if point in ("first byte", "middle"):
        Dying.left = 1 if point == "first byte" else 5000

        def opened(path, mode="r", **keys):
            return io.BufferedWriter(Dying(path, "w")) if mode == "wb" else open(path, mode, **keys)

        checkpoint_store.open = opened
    elif point == "flush":
        sidecar.os.fsync = die
    elif point.startswith("rename"):
        replace, counter = os.replace, itertools.count()
        number = int(point[-1])
        sidecar.os.replace = lambda *paths: die() if next(counter) == number else replace(*paths)
    else:
        sidecar.os.open = die  # the folder is opened to be flushed, after the first rename


def killed(folder, point, update):
    """Whether a process that saves ``update`` died at this point; it may have had no such point."""

    def act():
        arm(point)
        save(folder, update)
        return "alive"

    return in_child(act) != "alive"


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_leaves_a_whole_generation(tmp_path, point):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert killed(tmp_path, point, 3)
    found, said = newest(tmp_path)
    assert found == 2 and not said, "two generations were whole, and the newer one of them still is"
    begun = clean(tmp_path)
    assert all("is removed: it was being written when the process ended" in line for line in begun)
    assert any(".last.ckpt.part is removed" in line for line in begun), "the new one is ignored with a warning"
    assert newest(tmp_path) == (2, [])
    save(tmp_path, 4)
    assert newest(tmp_path) == (4, []) and newest(tmp_path, update=2) == (2, [])
    files = ("last.ckpt", "last.ckpt.sha256", "last.previous.ckpt", "last.previous.ckpt.sha256")
    assert names(tmp_path) == sorted(files)


def test_a_kill_after_the_last_rename_loses_nothing(tmp_path):
    save(tmp_path, 1)

    def act():
        replace = os.replace

        def renaming(source, target):
            replace(source, target)
            if os.path.basename(target) == "last.ckpt":
                die()

        sidecar.os.replace = renaming
        save(tmp_path, 2)

    assert in_child(act) is None
    assert newest(tmp_path) == (2, []) and newest(tmp_path, update=1) == (1, []) and clean(tmp_path) == []


@pytest.mark.parametrize("first", POINTS[3:])
def test_kills_in_a_row(tmp_path, first):
    """After a first kill, a second one at any point: what was whole stays whole, with and without a clean start."""
    for second in POINTS[2:]:
        folder = tmp_path / second
        folder.mkdir()
        save(folder, 1)
        save(folder, 2)
        killed(folder, first, 3)
        if second in ("flush", "rename 0"):
            clean(folder)
        killed(folder, second, 4)  # with a generation missing there are two renames, and a later kill never comes
        found, _ = newest(folder)
        assert found in (2, 4), second
        save(folder, 5)
        assert newest(folder) == (5, []) and newest(folder, update=found) == (found, []), second


def test_a_kill_at_the_first_save_of_all(tmp_path):
    for point in ("first byte", "middle", "flush", "rename 0", "rename 1"):
        assert killed(tmp_path, point, 1)
        assert newest(tmp_path) == (None, []) and clean(tmp_path)
    save(tmp_path, 2)
    assert newest(tmp_path) == (2, [])


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        data[len(data) // 2] ^= 4
    path.write_bytes({"truncated": data[:-20], "empty": b"", "garbage": b"\x93garbage" * 99, "flipped bit": data}[how])


DAMAGES = ["truncated", "empty", "garbage", "flipped bit"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_gives_way_to_the_one_before(tmp_path, how):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "last.ckpt", how)
    found, said = newest(tmp_path)
    assert found == 1 and len(said) == 1
    assert said[0] == f"{tmp_path / 'last.ckpt'} is ignored: it does not match its sha256 (last.ckpt.sha256)"
    assert newest(tmp_path, update=2)[0] is None
    seen = r"last.ckpt is damaged: .* not match last.ckpt.sha256; .*last.previous.ckpt beside it is intact"
    with pytest.raises(ValueError, match=seen):
        load_checkpoint(tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.previous.ckpt")["update"] == 1
    for point in POINTS[:5]:  # and the damaged one never takes the place of the good one, whatever happens
        assert killed(tmp_path, point, 3)
        assert newest(tmp_path)[0] == 1
    save(tmp_path, 4)
    assert newest(tmp_path) == (4, []) and newest(tmp_path, update=1) == (1, [])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_previous_one(tmp_path, how):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "last.previous.ckpt", how)
    assert newest(tmp_path) == (2, [])
    with pytest.raises(ValueError, match=r"last.previous.ckpt is damaged: .*; .*/last.ckpt beside it is intact"):
        load_checkpoint(tmp_path / "last.previous.ckpt")
    damage(tmp_path / "last.ckpt", how)
    found, said = newest(tmp_path)
    assert found is None and len(said) == 2
    with pytest.raises(ValueError, match="no other generation beside it is intact"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_files_without_a_usable_sha256(tmp_path):
    """A run is never continued from one; evaluation and export take one that lies alone."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "last.ckpt.sha256").unlink()
    found, said = newest(tmp_path)
    assert found == 1 and "last.ckpt is ignored: it has no sha256 beside it (last.ckpt.sha256), so nothing" in said[0]
    assert load_checkpoint(tmp_path / "last.ckpt")["update"] == 2
    save(tmp_path, 3)
    assert newest(tmp_path, update=1) == (1, []), "the unknown file was replaced, the good one before it was not"
    for text in ("", "no digest\n", "0" * 64 + "  last.ckpt\n", "\xff\x00"):
        (tmp_path / "last.ckpt.sha256").write_text(text, encoding="latin-1")
        assert newest(tmp_path)[0] == 1
        with pytest.raises(ValueError, match="last.ckpt is damaged"):
            load_checkpoint(tmp_path / "last.ckpt")


def test_a_file_that_is_whole_but_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    torch.save({"weights": 1}, tmp_path / "last.ckpt")
    sidecar.write_digest(tmp_path / "last.ckpt.sha256", sidecar.synced_digest(tmp_path / "last.ckpt"), tmp_path / "x")
    found, said = newest(tmp_path)
    assert found == 1 and "last.ckpt is ignored: " in said[0] and "is no checkpoint of this library" in said[0]


@pytest.mark.parametrize("how", [*DAMAGES, "missing"])
def test_the_best_checkpoint_of_a_run_directory(tmp_path, how):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save(folder, 1, "best")
    save(folder, 2, "best")
    assert load_checkpoint(tmp_path)["update"] == 2
    (folder / "best.ckpt").unlink() if how == "missing" else damage(folder / "best.ckpt", how)
    reason = "there is no checkpoint" if how == "missing" else r".*best.ckpt is damaged: its bytes do not match"
    with pytest.warns(UserWarning, match=rf"best.previous.ckpt is read, the best .* before the last one: {reason}"):
        assert load_checkpoint(tmp_path)["update"] == 1
    damage(folder / "best.previous.ckpt", "truncated")
    with pytest.raises(FileNotFoundError if how == "missing" else ValueError, match="best.ckpt"):
        load_checkpoint(tmp_path)


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SPACE = (
    r"could not write .*last.ckpt: .*No space left on device.* \(it needs [\d,]+ bytes, [\d,]+ are free\); "
    "an earlier checkpoint there is intact"
)


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


def test_two_stores_in_a_row_do_not_take_the_file_of_the_other_for_theirs(tmp_path):
    first = CheckpointStore(tmp_path)
    first.save("last", content(1))
    first.wait()
    save_checkpoint(tmp_path / "last.ckpt", content(2))
    first.save("last", content(3))
    first.wait()
    assert newest(tmp_path) == (3, []) and newest(tmp_path, update=2) == (2, [])


def test_a_file_that_another_store_wrote_is_checked_before_it_becomes_the_previous_one(tmp_path):
    first = CheckpointStore(tmp_path)
    first.save("last", content(1))
    first.wait()
    save_checkpoint(tmp_path / "last.ckpt", content(2))
    damage(tmp_path / "last.ckpt", "flipped bit")
    first.save("last", content(3))
    first.wait()
    assert newest(tmp_path) == (3, []) and newest(tmp_path, update=1) == (1, [])


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
