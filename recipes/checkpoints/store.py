"""Checkpoints on disk: two generations of each name, of which one is whole at every instant."""

from __future__ import annotations

import errno
import shutil
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as finish
from pathlib import Path
from typing import Any

import torch

from recipes.checkpoints.form import Form
from recipes.checkpoints.read import FORMAT_VERSION, check_content, read_checkpoint, tensor_bytes
from recipes.checkpoints.sidecar import recorded_digest, rename, sidecar, state_of, synced_digest, write_digest

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class CheckpointStore:
    """The files ``NAME.ckpt`` and ``NAME.previous.ckpt`` of a folder, each with its ``.sha256`` beside it.

    A file counts when its bytes match its sha256, in the format of ``sha256sum``. Everything new is written and flushed
    under temporary names in the same folder; then follow four renames, each on disk before the next. ``A`` and ``B``
    are the last two generations, ``C`` the new one:

    ==================================  ==================  ==================
    after                               ``NAME.ckpt``       ``NAME.previous``
    ==================================  ==================  ==================
    all files are written               B                   A
    sha256 of B to ``NAME.previous``    B                   A, does not match
    B to ``NAME.previous``              none                B
    sha256 of C to ``NAME``             none                B
    C to ``NAME``                       C                   B
    ==================================  ==================  ==================

    A ``NAME.ckpt`` that does not match is replaced, and never becomes the previous one.

    Args:
        directory: an existing folder. One process at a time writes to it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._worker = ThreadPoolExecutor(1, "checkpoint")  # joined when the interpreter ends, with its work done
        self._pending: dict[str, Future[None]] = {}
        self._intact: dict[str, str] = {}  # digest of NAME.ckpt, where this process wrote it

    def path(self, name: str) -> Path:
        """The newest generation of ``name``."""
        return self.directory / f"{name}.ckpt"

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write ``content``; on return it may change, and the rest (flush, sha256, renames) goes on in the background.

        Raises:
            TypeError: something in ``content`` is neither a tensor nor a plain value; nothing was written.
            OSError: this write, or the one of ``name`` before, failed; a generation before it is intact.
        """
        self._collect(name)
        check_content(content)
        path, part, outer = self.path(name), _temporary(self.path(name)), sys.exception()
        try:
            with open(part, "wb") as file:
                torch.save({"format_version": FORMAT_VERSION, **content}, file)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # torch turns a full disk into a RuntimeError
                raise _explained(path, _root(error, outer), tensor_bytes(content)) from error
            raise
        self._pending[name] = self._worker.submit(self._publish, name)

    def wait(self) -> None:
        """Return when everything that was saved is on disk.

        Raises:
            OSError: one of the writes failed.
        """
        finish(self._pending.values())
        for name in list(self._pending):
            self._collect(name)

    def newest(
        self, name: str, update: int | None = None, form: Form | None = None
    ) -> tuple[dict[str, Any], Path] | None:
        """Content and file of the newest generation that is intact; a warning names each that is not, and why.

        Args:
            name: which checkpoint.
            update: only a generation whose ``content["update"]`` is this one.
            form: only a generation that holds what is needed; see ``recipes.checkpoints.form``.
        """
        self.wait()
        for path in (self.path(name), previous_of(self.path(name))):
            if not path.is_file():
                continue
            try:
                content = _read_intact(path, form)
            except (OSError, ValueError) as error:
                warnings.warn(f"{path} is ignored: {error}", stacklevel=2)
                continue
            if update is None or content.get("update") == update:
                return content, path
        return None

    def clean(self) -> None:
        """Remove what a process that was killed had begun to write, with a warning."""
        for part in sorted(self.directory.glob(".*.part")):
            warnings.warn(f"{part} is removed: it was being written when the process ended", stacklevel=2)
            part.unlink()

    def _collect(self, name: str) -> None:
        if (pending := self._pending.pop(name, None)) is not None:
            pending.result()

    def _publish(self, name: str) -> None:
        """Give a written file its name, and the file of that name the place of the previous one."""
        current, previous = self.path(name), previous_of(self.path(name))
        part, note, previous_note = (_temporary(file) for file in (current, sidecar(current), sidecar(previous)))
        try:
            digest = synced_digest(part)
            renames = [(note, sidecar(current)), (part, current)]
            write_digest(note, digest, current)
            if (old := self._digest(name)) is not None:
                write_digest(previous_note, old, previous)
                renames = [(previous_note, sidecar(previous)), (current, previous), *renames]
            for source, target in renames:
                rename(source, target)
        except OSError as error:
            needed = part.stat().st_size if part.exists() else 0
            for file in (part, note, previous_note):
                file.unlink(missing_ok=True)
            raise _explained(current, error, needed) from error
        self._intact[name] = digest

    def _digest(self, name: str) -> str | None:
        """The sha256 of the current generation; None where there is none, or none that is intact."""
        current = self.path(name)
        digest = recorded_digest(current)
        if digest is None or not current.is_file():
            return None
        return digest if digest == self._intact.get(name) or state_of(current) == "intact" else None


def previous_of(path: Path) -> Path:
    """The file of the generation before ``NAME.ckpt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _read_intact(path: Path, form: Form | None) -> dict[str, Any]:
    state = state_of(path)
    if state == "unknown":
        raise ValueError(f"it has no sha256 beside it ({sidecar(path).name}), so nothing shows that it is whole")
    if state == "damaged":
        raise ValueError(f"it does not match its sha256 ({sidecar(path).name})")
    return read_checkpoint(path, form)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _root(error: BaseException, outer: BaseException | None) -> BaseException:
    """The system's error behind one of torch; ``outer`` was being handled before, and is none of it."""
    cause: BaseException | None = error
    while cause is not None and cause is not outer:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__context__
    return error


def _explained(path: Path, error: BaseException, needed: int) -> OSError:
    """An error that says what could not be written, and where the disk may be full how much is missing."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if not isinstance(error, OSError) or error.errno in _FULL:
        reason += f" (it needs {needed:,} bytes, {shutil.disk_usage(path.parent).free:,} are free)"
    held = any(file.is_file() for file in (path, previous_of(path)))
    earlier = "an earlier checkpoint there is intact" if held else "there is no earlier checkpoint"
    return OSError(f"could not write {path}: {reason}; {earlier}")
