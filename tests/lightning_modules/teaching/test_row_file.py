"""Rows on disk: what is read is what was written, whatever ended a process or happened to the file."""

import copy
import errno
import multiprocessing
import os
import signal
import warnings

import numpy as np
import pytest

from lightning_modules.teaching import row_file
from lightning_modules.teaching.row_file import HEADER, RowFile

ROWS, WIDTH = 50, 12
FACTS = {"key": "abc"}


def content(rows, seed=0):
    """Bytes ``[B, WIDTH]`` that belong to these rows."""
    every = np.random.default_rng(seed).integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)
    return every[rows]


@pytest.fixture
def made(tmp_path):
    return RowFile(tmp_path / "kept" / "abc.rows", FACTS, ROWS, WIDTH)


def numbers(*rows):
    return np.array(rows, dtype=np.int64)


def test_what_is_read_is_what_was_written(made):
    there, _ = made.read(numbers(1, 2))
    assert not there.any() and made.filled() == 0
    made.write(numbers(7, 2), content([7, 2]))
    there, found = made.read(numbers(2, 3, 7))
    assert there.tolist() == [True, False, True] and (found[there] == content([2, 7])).all() and made.filled() == 2
    again = RowFile(made.path, FACTS, ROWS, WIDTH)
    assert again.read(numbers(7))[0].all() and (again.read(numbers(7))[1] == content([7])).all()


def test_a_row_of_zeros_is_a_row(made):
    made.write(numbers(0), np.zeros((1, WIDTH), np.uint8))
    assert made.read(numbers(0, 1))[0].tolist() == [True, False]


def test_nothing_is_on_disk_before_it_is_looked_at(made):
    assert not made.path.parent.exists()
    made.read(numbers(0))
    assert made.path.stat().st_size == made.size
    assert made.path.stat().st_blocks * 512 >= made.size, "the space is reserved"
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["abc.lock", "abc.rows"]


def test_a_copy_opens_the_file_itself(made):
    made.write(numbers(4), content([4]))
    twin = copy.deepcopy(made)
    twin.write(numbers(5), content([5]))
    assert made.read(numbers(4, 5))[0].all() and twin.read(numbers(4, 5))[0].all()


def test_rows_are_on_the_disk_before_they_are_marked(made, monkeypatch):
    made.read(numbers(0))
    events, pwrite = [], os.pwrite
    monkeypatch.setattr(row_file, "_synchronize", lambda descriptor: events.append("flush"))

    def noted(descriptor, data, place):
        events.append("row" if len(data) == WIDTH else "mark")
        return pwrite(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", noted)
    made.write(numbers(1, 2), content([1, 2]))
    assert events == ["row", "row", "flush", "mark", "mark"]


def test_a_full_disk_marks_nothing(made, monkeypatch):
    made.write(numbers(1), content([1]))

    def full(descriptor, data, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"kept in .*abc.rows \(0.0 MB\): No space left on device; free"):
            made.write(numbers(2), content([2]))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda descriptor, data, place: len(data) - 1)
        with pytest.raises(OSError, match="No space left on device"):
            made.write(numbers(2), content([2]))
    assert made.read(numbers(1, 2))[0].tolist() == [True, False]


def test_no_space_for_the_whole_file_is_told_before_training_and_leaves_nothing(made, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device; free some space, choose another teaching.folder, or"):
        made.read(numbers(0))
    assert [path.name for path in made.path.parent.iterdir()] == ["abc.lock"]


def test_a_file_system_that_reserves_nothing_will_do(made, monkeypatch):
    def unknown(descriptor, start, size):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    made.write(numbers(1), content([1]))
    assert made.read(numbers(1))[0].all() and made.path.stat().st_size == made.size


def test_a_damaged_row_is_not_there(made):
    made.write(numbers(3, 4), content([3, 4]))
    with open(made.path, "r+b") as file:
        file.seek(made.size - (ROWS - 3) * WIDTH)
        file.write(bytes([content([3])[0, 0] ^ 1]))
    with pytest.warns(UserWarning, match="abc.rows has damaged rows, which are computed again"):
        there, _ = made.read(numbers(3, 4))
    assert there.tolist() == [False, True]
    made.write(numbers(3), content([3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.read(numbers(3, 4))[0].all()


def spoil(path, how):
    data = path.read_bytes()
    path.write_bytes({"shorter": data[:-1], "longer": data + b"x", "foreign": b"x" * len(data), "empty": b""}[how])


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("shorter", r"it has \d+ bytes instead of \d+"),
        ("longer", r"it has \d+ bytes instead of \d+"),
        ("foreign", "it holds no rows of a teacher"),
        ("empty", "it holds no rows of a teacher"),
    ],
)
def test_a_damaged_file_is_made_anew(made, how, why):
    made.write(numbers(3), content([3]))
    spoil(made.path, how)
    again = RowFile(made.path, FACTS, ROWS, WIDTH)
    with pytest.warns(UserWarning, match=f"abc.rows is made anew, and its rows are computed again: {why}"):
        assert not again.read(numbers(3))[0].any()
    again.write(numbers(3), content([3]))
    assert RowFile(made.path, FACTS, ROWS, WIDTH).read(numbers(3))[0].all()


@pytest.mark.parametrize("other", [({"key": "other"}, ROWS, WIDTH), (FACTS, ROWS, WIDTH + 1), (FACTS, ROWS + 1, WIDTH)])
def test_rows_of_something_else_are_not_taken(made, other):
    made.write(numbers(3), content([3]))
    with pytest.warns(UserWarning, match="is made anew, .* its header is of other rows, or damaged"):
        assert not RowFile(made.path, *other).read(numbers(3))[0].any()


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(OSError, match="cannot be kept in .*abc.rows .*: (File exists|Not a directory); free"):
        RowFile(tmp_path / "kept" / "abc.rows", FACTS, ROWS, WIDTH).read(numbers(0))


def test_facts_that_do_not_fit_into_the_header(tmp_path):
    with pytest.raises(ValueError, match=f"the header of .* has .* bytes, and {HEADER} fit"):
        RowFile(tmp_path / "abc.rows", {"key": "x" * HEADER}, ROWS, WIDTH)


def fill(path, first, started, times):
    """A process that writes every second row, again and again."""
    made, rows = RowFile(path, FACTS, ROWS, WIDTH), np.arange(first, ROWS, 2)
    for _ in range(times):
        for row in rows:
            made.write(numbers(row), content([row]))
        started.set()


def processes(path, times):
    started = [multiprocessing.Event() for _ in range(2)]
    both = [multiprocessing.Process(target=fill, args=(path, i, started[i], times)) for i in range(2)]
    for process in both:
        process.start()
    return both, started


def test_two_processes_fill_one_file(made):
    both, _ = processes(made.path, 3)
    for process in both:
        process.join()
    there, found = made.read(np.arange(ROWS))
    assert there.all() and (found == content(np.arange(ROWS))).all()


def test_a_killed_process_leaves_valid_rows(made):
    both, started = processes(made.path, 10**6)
    assert started[0].wait(60) and started[1].wait(60)
    for process in both:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one row may have been in the middle of being written again
        there, found = made.read(np.arange(ROWS))
    assert there.sum() >= ROWS - 2 and (found[there] == content(np.arange(ROWS))[there]).all()
    made.write(np.arange(ROWS), content(np.arange(ROWS)))
    assert made.filled() == ROWS
