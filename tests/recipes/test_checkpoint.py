"""Checkpoints: read in safe mode only, every damage explained, and written whole or not at all."""

import os
import pickle
import random

import pytest
import torch

from recipes import checkpoint
from recipes.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint

CONTENT = {"network": {"weight": torch.arange(64.0)}, "config": "seed: 0\n", "metrics": {"val/loss": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, CONTENT)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(saved):
    content = load_checkpoint(saved)
    assert content.pop("format_version") == FORMAT_VERSION
    assert torch.equal(content["network"].pop("weight"), CONTENT["network"]["weight"])
    assert content == CONTENT | {"network": {}}
    assert names(saved.parent) == ["last.ckpt"]


def test_a_run_directory_means_its_best_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*checkpoints/best.ckpt; give a file such as"):
        load_checkpoint(tmp_path)
    for name in ("best", "last"):
        save_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt", {"name": name})
    assert load_checkpoint(str(tmp_path))["name"] == "best"


@pytest.mark.parametrize("name", ["nothing.ckpt", "folder"])
def test_missing(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=f"there is no checkpoint .*{name}; give a file such as runs/RECIPE"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_cut_short(saved, share):
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read as a checkpoint of this library \(.+\)"):
        load_checkpoint(saved)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_of_any_kind_has_one_message(tmp_path):
    source, path = random.Random(0), tmp_path / "x.ckpt"
    starts = (b"", b"\x80\x02", b"PK\x03\x04", b"{", b"# yaml\n")
    for start in starts:
        for length in (1, 2, 5, 40, 400):
            for _ in range(8):
                path.write_bytes(start + source.randbytes(length))
                with pytest.raises(ValueError, match=r"x.ckpt (cannot be read as a|is no) checkpoint of this library"):
                    load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [1, 2], torch.zeros(3), {}], ids=lambda kind: type(kind).__name__
)
def test_files_of_others(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"is no checkpoint of this library; weights .* backbone.pretrained=FILE"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, "1", None, 2.5])
def test_a_format_from_the_future(tmp_path, version):
    torch.save({"format_version": version}, tmp_path / "new.ckpt")
    with pytest.raises(ValueError, match=rf"has format {version!r}, this one reads up to {FORMAT_VERSION}; update"):
        load_checkpoint(tmp_path / "new.ckpt")


class Payload:
    """Makes a file on being unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, writer):
    path, trap = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"format_version": FORMAT_VERSION, "network": Payload(trap)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="evil.ckpt cannot be read as a checkpoint of this library"):
        load_checkpoint(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())  # noqa: S301
    assert trap.exists(), "the trap itself does not work, and the test proves nothing"


def fail(error):
    def failing(*arguments, **keys):
        raise error

    return failing


@pytest.mark.parametrize(
    ("where", "error", "seen"),
    [
        ("torch.save", OSError(28, "No space left on device"), r"could not write .*last.ckpt: .*No space .* intact"),
        ("torch.save", RuntimeError("PytorchStreamWriter failed"), r"could not write .*last.ckpt: Pytorch.* intact"),
        ("os.fsync", OSError(5, "Input/output error"), r"could not write .*last.ckpt: .*Input/output error; an"),
        ("os.replace", PermissionError(13, "Permission denied"), r"could not write .*Permission denied"),
        ("torch.save", KeyboardInterrupt(), None),
    ],
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch, where, error, seen):
    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(f"recipes.checkpoint.{where}", fail(error))
        with pytest.raises(OSError if seen else KeyboardInterrupt, match=seen):
            save_checkpoint(saved, {"network": {"weight": torch.ones(3)}})
    assert saved.read_bytes() == before and names(saved.parent) == ["last.ckpt"]


def test_the_file_is_complete_on_disk_before_it_takes_its_name(saved, monkeypatch):
    """Order of write, flush to disk and rename; at the rename the new file is already readable."""
    steps, replace, fsync = [], os.replace, os.fsync

    def renaming(source, target):
        steps.append(("rename", torch.load(source, weights_only=True)["step"], load_checkpoint(target)["config"]))
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", lambda number: steps.append("sync") or fsync(number))
    monkeypatch.setattr(checkpoint.os, "replace", renaming)
    save_checkpoint(saved, {"step": 7})
    assert steps == ["sync", ("rename", 7, "seed: 0\n")] and load_checkpoint(saved)["step"] == 7
