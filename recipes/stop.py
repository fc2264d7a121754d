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


class StopRequest:
    """Listens to signals. While training it only takes note, and the step in progress is finished; outside it raises.

    A second signal ends the process at once; what was saved before stays valid.

    Args:
        max_seconds: wall-time budget from ``listening`` on; None for none.
        last_act: called before a second signal ends the process.
    """

    def __init__(self, max_seconds: float | None = None, last_act: Callable[[], None] = lambda: None) -> None:
        self.max_seconds, self.last_act = max_seconds, last_act
        self.reason: str | None = None
        self.exit_code = 0
        self.training = False
        self._when = 0.0

    def request(self, reason: str, exit_code: int) -> None:
        """Ask for a stop after the update in progress."""
        self.reason, self.exit_code, self._when = reason, exit_code, time.monotonic()

    def raise_if_requested(self, saved: str) -> None:
        """End the run here.

        Raises:
            Stopped: a stop was requested; ``saved`` says what became of the work.
        """
        if self.reason is not None:
            raise Stopped(f"stopped by {self.reason}; {saved}", self.reason, self.exit_code)

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
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def listen(self) -> None:
        """Take the signals over, also from Lightning, which answers SIGTERM without saving."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        reason, exit_code = SIGNALS[signal.Signals(number)]
        if self.reason is None:
            self.request(reason, exit_code)
            if not self.training:
                self.raise_if_requested("nothing was being trained")
        elif number == signal.SIGINT or (number == signal.SIGTERM and time.monotonic() - self._when > ONE_REQUEST_S):
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
    return total
