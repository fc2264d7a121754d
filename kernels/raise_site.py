"""Which errors explain themselves: those of this library's own ``raise`` statements. Imports no torch."""

from __future__ import annotations

import dis
from pathlib import Path
from types import TracebackType

ROOMS = ("kernels", "datamodules", "lightning_modules", "recipes")
_FOLDERS = tuple(str(Path(__file__).resolve().parents[1] / room) for room in ROOMS)
_RAISE = dis.opmap["RAISE_VARARGS"]


def raised_here(error: BaseException) -> bool:
    """Whether a ``raise`` of this library made an error, or the error's class is of this library.

    Such an error says what came, what is allowed and what to do. One that Python or another library raised, even
    below our own code, was written for programmers, and so was an ``assert`` and a text of one word.
    """
    if type(error).__module__.partition(".")[0] in ROOMS:
        return True
    trace = innermost(error)
    if trace is None or isinstance(error, AssertionError) or " " not in str(error):
        return False
    code = trace.tb_frame.f_code
    return is_ours(code.co_filename) and code.co_code[trace.tb_lasti] == _RAISE


def innermost(error: BaseException) -> TracebackType | None:
    """The frame that raised an error; None where it was never raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def is_ours(file: str) -> bool:
    """Whether a source file lies in one of this library's folders."""
    return file.startswith(_FOLDERS)
