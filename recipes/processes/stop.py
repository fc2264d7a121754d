"""Requests to stop: signals and the wall-time budget. The step is finished and saved, then the process ends."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: {signal: (name in messages, exit code)}. SIGUSR1 is what schedulers send before the time is up; 75 is EX_TEMPFAIL,
#: "try again": the code of a run that wants to be continued.
AGAIN = 75
SIGNALS = {
    signal.SIGTERM: ("SIGTERM", 143),
    signal.SIGINT: ("SIGINT", 130),
    signal.SIGUSR1: ("SIGUSR1", AGAIN),
    signal.SIGALRM: ("max_time", AGAIN),
}
LONGEST_S = 3650 * 86400
ONE_REQUEST_S = 1.0  # a launcher and its scheduler may both send SIGTERM: within this time they mean one request


class Stopped(RuntimeError):
    """The run ended early because it was asked to; everything is saved.

    Attributes:
        reason: SIGTERM, SIGINT, SIGUSR1, max_time or stop_after.
        exit_code: of the process.
    """

    def __init__(self, message: str, reason: str, exit_code: int) -> None:
        super().__init__(message)
        self.reason, self.exit_code = reason, exit_code


class _Now(BaseException):
    """A signal outside training. No ``Exception``: nothing on the way may take it for an error of its own."""

    def __init__(self, stopped: Stopped) -> None:
        self.stopped = stopped


class StopRequest:
    """Listens to signals. While training it only takes note, and the step in progress is finished; outside it raises.

    The same signal again (SIGINT, or SIGTERM more than a second later) ends the process at once; what was saved before
    stays valid.

    Args:
        max_seconds: wall-time budget from ``listening`` on; None for none.
        last_act: called before the process ends at once.
    """

    def __init__(self, max_seconds: float | None = None, last_act: Callable[[], None] = lambda: None) -> None:
        self.max_seconds, self.last_act = max_seconds, last_act
        self.reason: str | None = None
        self.exit_code = 0
        self.training = False
        self._seen: dict[int, float] = {}
        self.may_break: Callable[[], bool] = lambda: True  # whether an error may be raised where the process is
        self._of_children: Any = None

    def request(self, reason: str, exit_code: int) -> None:
        """Ask for a stop after the update in progress."""
        self.reason, self.exit_code = reason, exit_code

    def raise_if_requested(self, saved: str) -> None:
        """End the run here.

        Raises:
            Stopped: a stop was requested; ``saved`` says what became of the work.
        """
        if self.reason is not None:
            raise self._stopped(saved)

    def _stopped(self, saved: str) -> Stopped:
        assert self.reason is not None
        return Stopped(f"stopped by {self.reason}; {saved}", self.reason, self.exit_code)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        if self.max_seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self.max_seconds)
        try:
            with self.as_stopped():
                yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            if self._of_children is not None:
                signal.signal(signal.SIGCHLD, self._of_children)

    @contextmanager
    def serving(self, last_act: Callable[[], None]) -> Iterator[None]:
        """One run after another may be stopped through this: inside it is this one's turn.

        Args:
            last_act: called before the process ends at once.
        """
        self.last_act = last_act
        try:
            yield
        finally:
            self.last_act = lambda: None
            if self.reason is None:  # otherwise loader processes may still be ending
                self.may_break = lambda: True

    @contextmanager
    def as_stopped(self) -> Iterator[None]:
        """A signal that ended the block becomes ``Stopped`` behind it, and no sooner."""
        try:
            yield
        except _Now as now:
            raise now.stopped from None

    def listen(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def children_may_end(self) -> None:
        """Nobody waits for them any more."""
        self.may_break = lambda: False

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        if callable(self._of_children) and self.may_break():
            self._of_children(number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        reason, exit_code = SIGNALS[signal.Signals(number)]
        now, first = time.monotonic(), self._seen.get(number)
        self._seen.setdefault(number, now)
        if self.reason is None:
            self.request(reason, exit_code)
            # Loader processes may have had the signal too. Torch raises where one has ended, which must not break into
            # an update; between two of them it ends the wait for a batch that will not come.
            self._of_children = signal.signal(signal.SIGCHLD, self._child_ended)
            if not self.training:
                raise _Now(self._stopped("nothing was being trained"))
        elif first is not None and (
            number == signal.SIGINT or (number == signal.SIGTERM and now - first > ONE_REQUEST_S)
        ):
            self.last_act()
            os._exit(exit_code)


def seconds(text: Any) -> float | None:
    """A duration: a number of seconds, or ``90s``, ``30m``, ``11h30m``, ``1d``; None stays None.

    Raises:
        ValueError: anything else, or nothing above zero.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(text).strip())
    if not found or not any(found.groups()):
        raise ValueError(f"max_time={text} is no duration; write seconds, or such as 90s, 30m, 11h30m, 1d")
    days, hours, minutes, rest = (float(value or 0) for value in found.groups())
    total = 86400 * days + 3600 * hours + 60 * minutes + rest
    if total <= 0:
        raise ValueError(f"max_time={text} must be longer than nothing")
    if total > LONGEST_S:  # the system's timer ends somewhere behind that
        raise ValueError(f"max_time={str(text)[:40]} is more than {LONGEST_S // 86400} days; leave it out for no limit")
    return total
