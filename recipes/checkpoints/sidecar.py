"""The sha256 of a file in a second file beside it, ``NAME.sha256``, in the format of ``sha256sum``."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Literal


def sidecar(path: Path) -> Path:
    """The file that holds the sha256 of ``path``."""
    return path.with_name(f"{path.name}.sha256")


def state_of(path: Path) -> Literal["intact", "damaged", "unknown"]:
    """Whether the bytes of a file match the sha256 beside it; unknown where there is none."""
    if not sidecar(path).exists():
        return "unknown"
    with open(path, "rb") as file:
        return "intact" if hashlib.file_digest(file, "sha256").hexdigest() == recorded_digest(path) else "damaged"


def recorded_digest(path: Path) -> str | None:
    """The sha256 beside a file; None where there is none, or no such file."""
    try:
        text = sidecar(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return found[1].lower() if (found := re.match(r"([0-9a-fA-F]{64})\b", text)) else None


def synced_digest(path: Path) -> str:
    """The sha256 of a file that was just written, once it is on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digest(target: Path, digest: str, path: Path) -> None:
    """Write to ``target``, down to the disk, what will stand beside ``path``."""
    with open(target, "w", encoding="utf-8") as file:
        file.write(f"{digest}  {path.name}\n")
        file.flush()
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename within a folder, down to the disk."""
    os.replace(source, target)
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    number = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
