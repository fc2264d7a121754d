"""Loader processes that fail: what the user is told."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.order.loader import LoaderDied, make_loader
from datamodules.order.order import Keys, StoredOrder
from datamodules.reading.unreadable import UnreadableImage
from datamodules.sources.folder import Folder
from kernels.batch import Batch

pytestmark = pytest.mark.fault


class Faulty(Dataset[Batch]):
    """Delivers one batch, then does what it is told."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __getitems__(self, keys: Keys) -> Batch:
        index: Tensor = torch.from_numpy(keys.index).clone()
        if 3 in index:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "hangs":
                time.sleep(60)
            raise RuntimeError("something else")
        return Batch(torch.zeros(len(index), 3, 2, 2), index, index)


def run(fault: str) -> list[Batch]:
    loader = make_loader(Faulty(fault), StoredOrder(torch.arange(8), 2), num_workers=1, timeout_s=1)
    return list(loader)


def test_killed() -> None:
    with pytest.raises(RuntimeError, match=r"loader process died \(.*\); .*lack of memory: use fewer data.num_workers"):
        run("killed")


@pytest.mark.slow
def test_hangs() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"within data.worker_timeout_s=1 seconds; it hangs"):
        run("hangs")
    assert time.monotonic() - start < 12  # the process that hangs is given 5 s to end, then 2 s more


def test_other_errors_come_through() -> None:
    with pytest.raises(RuntimeError, match="(?s)Original Traceback.*something else"):
        run("raises")


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / part / "a" / f"{i}.png")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"")
    data = Folder(0, root=str(tmp_path), image_size=8, batch_size=2, num_workers=1, val_fraction=0.0)
    data.setup()
    with pytest.raises(
        ValueError, match=r"^cannot read image .*a/2.png \(index 2\).*replace the file or remove it"
    ) as caught:
        list(data.train_dataloader())
    assert type(caught.value) is UnreadableImage and "in _attempt" in caught.value.__notes__[0]


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_more)
    with pytest.raises(
        LoaderDied, match=r"the 1 loader processes cannot be started \(Resource temporarily .*\): use fewer"
    ):
        run("")


@pytest.mark.parametrize("persistent", [False, True])
def test_the_other_processes_end_at_once_and_can_be_started_again(persistent: bool) -> None:
    source = Faulty("raises")
    loader = make_loader(source, StoredOrder(torch.arange(8), 2), 2, persistent)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="something else"):
            list(loader)
    assert time.monotonic() - start < 4 and not multiprocessing.active_children()


def test_timeout_is_a_key(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"worker_timeout_s=0 is out of range; allowed: 1 <= worker_timeout_s <= 31536000 \(int\)"
    ):
        Folder(0, root=str(tmp_path), worker_timeout_s=0)
    order = StoredOrder(torch.arange(2), 2)
    assert make_loader(Faulty(""), order, 1).timeout == 600 and make_loader(Faulty(""), order, 0).timeout == 0
