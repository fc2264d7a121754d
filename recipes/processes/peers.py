"""The processes of a run: they meet before training, and the end of one is the end of all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from lightning_modules.distributed import gather_objects
from recipes.configuration.boundary import exit_code
from recipes.processes.stop import SIGNALS, Stopped, StopRequest
from recipes.processes.strategy import DDP, Launcher
from recipes.processes.watch import Failure, Heard, Watch, Watched

NEWS_S = 3.0  # how long the death of a process may take to become visible after its connections broke
LEAVE_S = 10.0  # for processes that were started here to end by themselves
_LAUNCH_KEYS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


class ProcessFailed(RuntimeError):
    """Another process of this run failed, or ended it before it began.

    Attributes:
        exit_code: of this process.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Peers:
    """The other processes of a run; with one process every method does nothing.

    A context: the first process ends the others where it ends without having met them, and leaves none behind.

    Args:
        trainer: of the run.
        stop: requests to stop.
        give_up: called with a state, ``failed`` or ``interrupted``, and a message before this process ends at once
            because it cannot do so in good order.
    """

    def __init__(self, trainer: Trainer, stop: StopRequest, give_up: Callable[[str, str], Any]) -> None:
        self.strategy, self.world, self.stop, self._give_up = trainer.strategy, trainer.world_size, stop, give_up
        self.several = isinstance(self.strategy, DDP) and self.world > 1
        self.rank = trainer.global_rank if self.several else 0
        self.failed, self._met, self._parted = False, False, False
        self._first: tuple[str, int] | None = None
        self._watch = Watch(self._end_at_once, self._unheard_stop)
        if not self.several:
            return
        environment = self.strategy.cluster_environment  # type: ignore[attr-defined]
        self._external = environment.creates_processes_externally
        self._keys = {key: os.environ.get(key) for key in _LAUNCH_KEYS}
        self._parent = os.getppid()
        if isinstance(environment, LightningEnvironment) and environment.local_rank() > 0:
            self._watch.others[self.rank - environment.local_rank()] = Watched(self._parent)

    def lead(self) -> None:
        """The first process, when the run can begin: start the others where nobody has, and let them go."""
        if self.several:
            self._meet({"go": True})

    def follow(self) -> bool:
        """Every process but the first: wait for that; whether the run begins.

        Raises:
            ProcessFailed: the first one cannot begin; with its exit code.
        """
        if not self.several:
            return True
        word = self._meet(None)
        if not word.get("go") and word["code"]:
            raise ProcessFailed(f"process 0 ended the run before it began: {word['text']}", word["code"])
        return bool(word.get("go"))

    def _meet(self, word: dict[str, Any] | None) -> dict[str, Any]:
        launcher = self.strategy.launcher
        assert isinstance(launcher, Launcher)
        self.stop.training = True  # signals are noted only; this takes seconds
        if not self._external:
            launcher.start()
            for number, process in enumerate(launcher.procs, start=1):
                self._watch.others[self.rank + number] = Watched(process.pid, process.poll)
        with Heard() as self._heard:
            self._watch.start()
            self.strategy.setup_environment()
        self._watch.connect()
        places = gather_objects((socket.gethostname(), os.getpid()))
        for rank, (host, pid) in enumerate(places):
            if host == socket.gethostname() and rank != self.rank and pid not in [p.pid for p in launcher.procs]:
                self._watch.others[rank] = Watched(pid)
        self._met = True
        word = self.strategy.broadcast(word)
        assert word is not None
        if not word.get("go"):
            torch.distributed.barrier()  # the first keeps the store: it leaves when everyone has heard
        return word

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Errors inside are told to the other processes; one that comes from another's end names that instead.

        Raises:
            ProcessFailed: the connection broke because another process failed.
        """
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            if not self.several:
                raise
            self.failed = True
            if not _broken_connection(error):
                self._watch.post(Failure(self.rank, f"{type(error).__name__}: {error}".splitlines()[0]))
                raise
            failure = self._watch.failure(NEWS_S)
            raise ProcessFailed(self._sentence(failure or Failure(None, str(error).splitlines()[0]))) from error

    def part(self) -> None:
        """After training: every process is on its own again."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            self._parted = True
            self._watch.stop()
            torch.distributed.destroy_process_group()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.several:
            return
        if self.rank == 0 and self._external and not self._met and not isinstance(error, Stopped):
            self._dismiss(error)
        if isinstance(error, Stopped) and self._met and not self._parted:
            with suppress(RuntimeError):  # a launcher ends the rest when one ends: the first has still to write
                torch.distributed.barrier()
        self._watch.stop()
        self._leave_none()

    def _dismiss(self, error: BaseException | None) -> None:
        code = 0 if error is None else exit_code(error)
        self._meet({"text": str(error), "code": code})

    def _leave_none(self) -> None:
        launcher = self.strategy.launcher
        for process in getattr(launcher, "procs", []):
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not self._external:  # a run that comes after this one in the same process starts its own
            for key, value in self._keys.items():
                os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)

    def _sentence(self, failure: Failure) -> str:
        who = "another process" if failure.rank is None else f"process {failure.rank} of {self.world}"
        return (
            f"{who} failed and ended this one: {failure.text}. What was saved is valid, and resume=RUN goes on from it"
        )

    def _unheard_stop(self) -> Failure | None:
        """Requests that the main thread cannot answer; and the end of the one who started this process."""
        if not self._met and (asked := self._asked()):
            return Failure(self.rank, f"stopped by {asked[0]} before all processes had met")
        if TorchElasticEnvironment.detect() and os.getppid() != self._parent and self.stop.reason is None:
            os.kill(os.getpid(), signal.SIGTERM)  # torchrun is gone: save and end
        return None

    def _asked(self) -> tuple[str, int] | None:
        """Why and with which exit code this process was asked to stop, whether or not a handler could run."""
        for number in self._heard.numbers():
            if number in SIGNALS and self._first is None:
                self._first = SIGNALS[signal.Signals(number)]
        return self._first or (None if self.stop.reason is None else (self.stop.reason, self.stop.exit_code))

    def _end_at_once(self, failure: Failure) -> None:
        asked = None if self._met else self._asked()
        stopped = asked is not None
        message = failure.text if stopped else self._sentence(failure)
        print(message if stopped else f"error: {message}", file=sys.stderr, flush=True)
        with suppress(Exception):
            self._give_up("interrupted" if stopped else "failed", message)
        if self.strategy.launcher is not None:
            self.strategy.launcher.kill(signal.SIGKILL)
        os._exit(asked[1] if asked else 1)


def _broken_connection(error: BaseException) -> bool:
    """Whether the error is that of a collective whose other side is gone."""
    text = str(error)
    if isinstance(error, torch.distributed.DistError):
        return True
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
