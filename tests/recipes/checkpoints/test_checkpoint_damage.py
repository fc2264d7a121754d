"""Damaged checkpoints: noticed by their sha256, and given way to a generation that is intact."""

import pytest
import torch
from checkpoint_faults import DAMAGES, MARKS, POINTS, content, damage, killed, newest, save

from recipes.checkpoints import sidecar
from recipes.checkpoints.load import CheckpointStore, load_checkpoint, save_checkpoint

pytestmark = MARKS


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
