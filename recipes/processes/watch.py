"""Notices in seconds that a process of a run has ended, whatever the others are waiting for meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

POLL_S = 0.5
GRACE_S = 5.0  # what the main thread is given to notice by itself, which ends the run in better order
_NOTE = "failure"


@dataclass(frozen=True, slots=True)
class Failure:
    """Which process failed first, and how; rank None where that is not known."""

    rank: int | None
    text: str


class Watched:
    """Another process of this machine.

    Args:
        pid: its id.
        ended: says how it ended and None while it lives, where this process is its parent.
    """

    def __init__(self, pid: int, ended: Callable[[], int | None] | None = None) -> None:
        self.pid, self._ended, self._handle = pid, ended, -1
        with suppress(AttributeError, OSError):  # not on Linux, or it is gone already
            self._handle = os.pidfd_open(pid)

    def gone(self) -> str | None:
        """How it ended; None while it lives. One that nobody waits for counts as ended."""
        if self._ended is not None:
            code = self._ended()
            return None if code is None else _ending(code)
        if self._handle >= 0:
            poll = select.poll()
            poll.register(self._handle, select.POLLIN)
            return "is gone: killed, or ended by an error of its own" if poll.poll(0) else None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "is gone: killed, or ended by an error of its own"
        except OSError:
            return None
        return None


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Heard:
    """A context that hears signals while the main thread waits outside of Python, where no handler can run."""

    def __init__(self) -> None:
        self._lock, self._open = threading.Lock(), False  # a closed number may soon be that of another file

    def __enter__(self) -> Heard:
        self._ends, self._open = os.pipe(), True
        for end in self._ends:
            os.set_blocking(end, False)
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.set_wakeup_fd(self._before)
        with self._lock:
            self._open = False
            for end in self._ends:
                os.close(end)

    def numbers(self) -> list[int]:
        """Those that arrived since the last call; none outside the context."""
        with self._lock, suppress(BlockingIOError):
            return list(os.read(self._ends[0], 64)) if self._open else []
        return []


class Watch:
    """A thread that looks at the other processes twice a second, and ends this one where it cannot do so itself.

    Failures travel as a note in the store by which the processes met, so that other machines hear of them. A process
    that waits in a collective of the GPU would not notice before its timeout.

    Args:
        give_up: called in the thread when the main thread has not noticed a failure within the grace time.
        also: looked at every time; a failure of another kind, or None.
    """

    def __init__(self, give_up: Callable[[Failure], Any], also: Callable[[], Failure | None]) -> None:
        self.give_up, self.also = give_up, also
        self.others: dict[int, Watched] = {}
        self._store: PrefixStore | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def connect(self) -> None:
        """To the store, on a connection of its own: others may be blocked for long."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        self._store = PrefixStore(f"run{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def stop(self) -> None:
        self._over.set()

    def post(self, failure: Failure) -> None:
        """Tell the other processes, unless one was first."""
        if self._store is not None:
            with suppress(Exception):  # the process that keeps the store may be the one that died
                self._store.compare_set(_NOTE, "", json.dumps([failure.rank, failure.text]))

    def failure(self, wait_s: float = 0.0) -> Failure | None:
        """The first failure anyone knows of, waiting for news of it if need be."""
        until = time.monotonic() + wait_s
        while (found := self._look()) is None and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def _look(self) -> Failure | None:
        """A note says more than a process that is gone, and may be of one that was first."""
        ends = ((rank, other.pid, other.gone()) for rank, other in self.others.items())
        ended = next((Failure(rank, f"pid {pid} {how}") for rank, pid, how in ends if how), None)
        if ended is not None and ended.rank == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
            return ended  # and the store with it
        if noted := self._noted():
            return noted
        if ended is not None:
            self.post(ended)
        return ended

    def _noted(self) -> Failure | None:
        if self._store is None:
            return None
        try:
            return Failure(*json.loads(self._store.get(_NOTE))) if self._store.check([_NOTE]) else None
        except Exception:  # the process that keeps the store is gone
            self._store = None
            return None

    def _run(self) -> None:
        while not self._over.wait(POLL_S):
            if not (self.failure() or self.also()) or self._over.wait(GRACE_S):
                continue
            if failure := self.failure() or self.also():
                self.give_up(failure)
