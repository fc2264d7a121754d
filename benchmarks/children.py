"""Command lines in forked children of a process that has imported everything: what each ends with, in seconds."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from recipes.configuration.source import ROOMS, ROOT

CODES = (0, 1, 2, 75)  # what a program that nobody signals may end with
MOST_BYTES = 16 * 2**30  # of a child's address space: an extreme number may ask for all there is


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        words: what it was given.
        code: its exit code; None where it ran out of time and was killed.
        text: its output.
        seconds: it took.
    """

    words: list[str]
    code: int | None
    text: str
    seconds: float

    @property
    def fault(self) -> str:
        """Which of the promises was broken; empty for none."""
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.text:
            return "traceback"
        if "internal error" in self.text:
            return "internal error"
        if self.code not in CODES:
            return "exit code"
        return (
            "" if self.code == 0 or "error: " in self.text or "problems:" in self.text or self.code == 75 else "silence"
        )


def preload() -> None:
    """Import all of this library, and compute nothing: a child then starts without imports, and no lock is held."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def run_child(program: Callable[[list[str]], int], words: list[str], log: Path, limit_s: float) -> Ended:
    """Fork, run ``program(words)``, and wait."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(program, words, log)
    start, code = time.monotonic(), None
    while code is None and time.monotonic() < start + limit_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.01)
    if code is None:
        os.kill(pid, signal.SIGUSR2)  # where it hangs goes to its log
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Ended(words, code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)


def _child(program: Callable[[list[str]], int], words: list[str], log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    sys.argv = ["a program", *words]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.register(signal.SIGUSR2)
    code = 99
    try:
        code = program(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def summary(ended: list[Ended]) -> dict[str, int]:
    """Counts of exit codes and of faults."""
    counts = Counter(f"exit code {one.code}" for one in ended) | Counter(one.fault for one in ended if one.fault)
    return dict(sorted(counts.items()))
