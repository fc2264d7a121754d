"""Checkpoints: tensors and plain values, written whole or not at all, read in safe mode only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write next to ``path``, flush to disk, then rename: the old file stays valid until the new one is."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch turns a full disk into a RuntimeError
            raise OSError(f"could not write {path}: {error}; an earlier checkpoint there is intact") from error
        raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of our checkpoints, cut short, or of a newer format.
    """
    path = Path(path)
    if path.is_dir() and (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}; give a file such as runs/RECIPE/NAME/checkpoints/best.ckpt, or a run's "
            "directory"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the safe reader raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of this library ({reason})") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path} is no checkpoint of this library; weights of others go to backbone.pretrained=FILE")
    version = content["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version!r}, this one reads up to {FORMAT_VERSION}; update the library")
    return content
