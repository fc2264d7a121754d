"""Starts a process and shares its fate: signals reach it, and nobody leaves before it has saved."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import IO, Any


class ChildStopped(RuntimeError):
    """The child ended because it was asked to.

    Attributes:
        exit_code: that of the child, and of this process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_child(command: Sequence[str], output: IO[bytes] | None = None) -> int:
    """Run a command to its end; its exit code.

    Ctrl-C comes to the child by itself, as to every process of the terminal; SIGTERM and SIGUSR1 are handed on.

    Args:
        command: program and words.
        output: where its output goes; None for this process's own.

    Raises:
        ChildStopped: this process was asked to stop; the child has ended.
    """
    asked: list[int] = []
    process = subprocess.Popen(command, stdout=output, stderr=output)

    def hand_on(number: int, frame: Any) -> None:
        asked.append(number)
        if number != signal.SIGINT:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise ChildStopped(f"stopped by {signal.Signals(asked[0]).name}; what was running has ended", code or 1)
    return code
