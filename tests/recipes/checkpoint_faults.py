"""Checkpoints under faults: what is saved and found again, and processes that are killed on the way."""

import io
import itertools
import os
import signal
import warnings

import pytest
import torch

from recipes.checkpoints import sidecar
from recipes.checkpoints import store as checkpoint_store
from recipes.checkpoints.load import CheckpointStore

#: Children are forked beside the threads that write, on purpose.
MARKS = [pytest.mark.fault, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]
POINTS = ["first byte", "middle", "flush", "rename 0", "rename 1", "rename 2", "rename 3", "folder"]
DAMAGES = ["truncated", "empty", "garbage", "flipped bit"]


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


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        data[len(data) // 2] ^= 4
    path.write_bytes({"truncated": data[:-20], "empty": b"", "garbage": b"\x93garbage" * 99, "flipped bit": data}[how])
