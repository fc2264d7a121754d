"""The one place where the errors of a program end: each becomes one message and an exit code.

=============================================  =========  ==================================================
an error                                       exit code  message
=============================================  =========  ==================================================
of a configuration                             2          every problem that was found
that carries an ``exit_code``                  that one   its own
raised by this library, or by the system       2          its own; the system's answer, with what helps
the same, once the run has begun               1          and the run directory
anything else                                  1          ``internal error``: the kind, the text and the place;
                                                          of code that is none of this library, ``error``
=============================================  =========  ==================================================

The traceback is shown with ``--traceback``, or with RECIPES_TRACEBACK=1 in the environment; what ends a run is in its
``traceback.txt`` as well. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernels.raise_site import is_ours, raised_here
from recipes.configuration.problems import ConfigError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
VARIABLE = "RECIPES_TRACEBACK"
TRACEBACK_FILE = "traceback.txt"
_NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation")
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<"})
_MOST = 1000  # characters of a message that another library wrote
#: What helps against an answer of the system; those with an entry are recognized in torch's texts too.
_HELP = {
    errno.ENOSPC: "free some space, or choose another output=",
    errno.EDQUOT: "free some space, or choose another output=",
    errno.EFBIG: "the file may not grow further: a limit of the disk or of ulimit -f",
    errno.EROFS: "choose another output=",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EMFILE: "raise the limit with ulimit -n, or use fewer data.num_workers",
    errno.ENFILE: "use fewer data.num_workers",
    errno.EAGAIN: "there may be no more processes: use fewer data.num_workers, or raise ulimit -u",
    errno.ENOMEM: "use fewer data.num_workers, a smaller data.batch_size or a smaller net",
    errno.EIO: "the disk or the network behind it fails",
}


def contain(program: Callable[[], int]) -> int:
    """Run a program; its exit code, and whatever it raises as one message on stderr."""
    try:
        return program()
    except KeyboardInterrupt:  # before or after training, which has its own answer
        print("stopped by SIGINT; nothing was being trained", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(VARIABLE):
            traceback.print_exception(error)
        shown = report(error).encode(errors="backslashreplace").decode()  # bytes of a command line that are no UTF-8
        print(shown, file=sys.stderr, flush=True)
        return exit_code(error)


@contextmanager
def begun(directory: Path | None) -> Iterator[None]:
    """What is raised inside belongs to a run that has begun: in ``directory``, where this process writes to one."""
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault("run_directory", directory)
        raise


@contextmanager
def refusing() -> Iterator[None]:
    """What explains itself inside is a problem of the configuration.

    Raises:
        ConfigError: in place of a ``ValueError``, ``TypeError`` or ``OSError`` that this library raised.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as error:
        if not raised_here(error):
            raise
        raise ConfigError([str(error)]) from error


def report(error: BaseException) -> str:
    """The message: what went wrong, and the run directory where there is one."""
    directory: Path | None = getattr(error, "run_directory", None)
    text = explanation(error)
    if isinstance(error, ConfigError):
        text = _listing(error.problems)
    elif text is None:
        text = _internal(error, directory)
    elif exit_code(error) in (FAILED, REFUSED):
        text = f"error: {text}"
    else:  # a run that was asked to stop says itself where it goes on
        return text
    return text if directory is None else f"{text}\nrun directory: {directory}"


def exit_code(error: BaseException) -> int:
    """The exit code of a program that an error ends."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    return REFUSED if explanation(error) is not None and not hasattr(error, "run_directory") else FAILED


def explanation(error: BaseException) -> str | None:
    """What an error tells its user; None for an internal error."""
    if raised_here(error):
        return str(error)
    if ran_out_of_memory(error):
        return f"out of memory: take a smaller net, data.batch_size or fewer data.num_workers ({first_line(error)})"
    return _answer_of_the_system(error)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; torch's class is told by its name, and the host's allocator has none of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY))


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_MOST]


def write_traceback(directory: Path, error: BaseException) -> None:
    """Keep the whole of it in the run directory, where the disk lets us."""
    with suppress(OSError):
        text = "".join(traceback.format_exception(error))
        (directory / TRACEBACK_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def _answer_of_the_system(error: BaseException) -> str | None:
    """A full disk, no more processes and the like: an ``OSError``, or what torch or safetensors say of one."""
    if isinstance(error, OSError):
        names = [_short(repr(name)) for name in (error.filename, error.filename2) if name is not None]
        said = f"{error.strerror}{': ' if names else ''}{' -> '.join(names)}" if error.strerror else first_line(error)
        return "; ".join([said, *([_HELP[error.errno]] if error.errno in _HELP else [])])
    if isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError":  # which derives from no other
        cited = next((number for number in _HELP if os.strerror(number) in str(error)), None)
        if cited is None and "can't start new thread" in str(error):
            cited = errno.EAGAIN
        return None if cited is None else f"{first_line(error)}; {_HELP[cited]}"
    return None


def _short(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:300]}... ({len(name)} characters)"


def _internal(error: BaseException, directory: Path | None) -> str:
    """Its kind, text and place: in code of the user's own where that is the last but for libraries, else in ours."""
    frames = traceback.extract_tb(error.__traceback__)
    written = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (written or frames)[-1] if frames else None
    place = f" ({'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno})" if frame else ""
    text = f"{type(error).__name__}: {first_line(error)}{place}"
    file = None if directory is None else directory / TRACEBACK_FILE
    kept = f"is in {file}" if file is not None and file.is_file() else "is shown with --traceback"
    if written and not is_ours(written[-1].filename):
        return f"error: {text}. The code that raised it is none of this library. The whole traceback {kept}"
    whole = f"The whole traceback {kept}"
    return f"internal error: {text}. This is unexpected, and a fault of the program: please report it. {whole}"


def _listing(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)])
