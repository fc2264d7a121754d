"""A checkpoint's writer is killed at every point: one generation is always whole."""

import os

import pytest
from checkpoint_faults import MARKS, POINTS, clean, die, in_child, killed, names, newest, save

from recipes.checkpoints import sidecar

pytestmark = MARKS


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """A killed process loses nothing that it wrote, so that a thousand waits for the disk would show nothing here; what
    is flushed, and when, test_checkpoint_background.py looks at."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


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
