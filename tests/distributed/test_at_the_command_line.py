"""``python train.py trainer=ddp``: the first process starts the other, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import SAF, TINY, but, together

from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.signature import ROOT
from recipes.running.directory import read_status

pytestmark = pytest.mark.fault


def nothing(rank):
    return 0


def child_of(pid):
    """The process of ``train.py`` that another one started; None before it did."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"train.py" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
        except (OSError, ValueError):
            continue
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_second_process_is_killed(tmp_path):
    words = ["recipe=grocery_saf", *SAF, *but(TINY, "trainer.devices=2", "trainer.max_epochs=100000"), "name=run"]
    command = [sys.executable, str(ROOT / "train.py"), *words, f"output={tmp_path}"]
    keys = {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | keys)
    second, run = None, tmp_path / "grocery_saf" / "run"
    try:
        together(nothing, folder=tmp_path, world=1)  # the server of the other tests imports meanwhile
        until = time.monotonic() + 60
        while not list((run / "checkpoints").glob("last*")) and first.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        second = child_of(first.pid)
        assert second is not None, first.communicate(timeout=1)[1]
        os.kill(second, signal.SIGKILL)
        text = first.communicate(timeout=30)[1]
    finally:
        first.kill()
        if second is not None and Path(f"/proc/{second}").exists():
            os.kill(second, signal.SIGKILL)
            pytest.fail("the second process is left behind")
    assert first.returncode == 1
    assert f"error: process 1 of 2 failed and ended this one: pid {second} was ended by SIGKILL" in text
    assert read_status(run)["state"] == "failed" and CheckpointStore(run / "checkpoints").newest("last")
