"""Checkpoints: tensors and plain values, written whole or not at all, read in safe mode only."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from recipes.checkpoints.form import Form
from recipes.checkpoints.read import FORMAT_VERSION, read_checkpoint
from recipes.checkpoints.sidecar import sidecar, state_of
from recipes.checkpoints.store import CheckpointStore, previous_of

__all__ = ["FORMAT_VERSION", "CheckpointStore", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write one checkpoint and return when it is on disk; see ``CheckpointStore``.

    Args:
        path: ``NAME.ckpt``; a file there becomes ``NAME.previous.ckpt``.
        content: tensors and plain values.

    Raises:
        ValueError: a name without ``.ckpt``.
        TypeError: something in ``content`` is neither a tensor nor a plain value; nothing was written.
        OSError: the write failed; the file that was there is intact.
    """
    if path.suffix != ".ckpt":
        raise ValueError(f"{path} must end in .ckpt")
    store = CheckpointStore(path.parent)
    store.save(path.stem, content)
    store.wait()


def load_checkpoint(path: str | Path, form: Form | None = None) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is executed.

    Args:
        path: a file, or a run directory: then ``checkpoints/best.ckpt``, and where that is damaged the generation
            before it, with a warning. A file with a ``.sha256`` beside it must match.
        form: refuses a file that does not hold what is needed; see ``recipes.checkpoints.form``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of our checkpoints, damaged, of a newer format, or of another form.
    """
    path = Path(path)
    if not path.is_dir() or not (path / "checkpoints").is_dir():
        return _load_file(path, form)
    best = path / "checkpoints" / "best.ckpt"
    try:
        return _load_file(best, form)
    except (FileNotFoundError, ValueError) as error:
        previous = previous_of(best)
        if not _intact(previous):
            raise
        content = read_checkpoint(previous, form)
        warnings.warn(f"{previous} is read, the best checkpoint before the last one: {error}", stacklevel=2)
        return content


def _load_file(path: Path, form: Form | None) -> dict[str, Any]:
    if not path.is_file():
        if stages := sorted(found.parent for found in path.glob("*/checkpoints") if found.is_dir()):
            named = ", ".join(map(str, stages))
            raise FileNotFoundError(f"{path} is a run of stages, each with its own network; give one of them: {named}")
        if path.is_dir():
            raise FileNotFoundError(
                f"{path} is a folder and no run's directory: it has no checkpoints/best.ckpt; give a run's directory, "
                "such as runs/RECIPE/NAME, or one of its checkpoints"
            )
        raise FileNotFoundError(
            f"there is no checkpoint {path}; give a file such as runs/RECIPE/NAME/checkpoints/best.ckpt, or a run's "
            "directory"
        )
    if state_of(path) == "damaged":
        raise ValueError(f"{path} is damaged: its bytes do not match {sidecar(path).name}; {_advice(path)}")
    return read_checkpoint(path, form)


def _advice(path: Path) -> str:
    """The other generation of a damaged file, where it can be used."""
    other = path.with_name(path.name.replace(".previous.ckpt", ".ckpt"))
    other = previous_of(path) if other == path else other
    return f"{other} beside it is intact" if _intact(other) else "no other generation beside it is intact"


def _intact(path: Path) -> bool:
    return path.is_file() and state_of(path) == "intact"
