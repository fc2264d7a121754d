"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what is there when all went well takes the place of ``path``.

    The name ends as ``path`` does, because some libraries look at that. It is as readable as its folder lets it be.
    """
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        part.chmod(path.parent.stat().st_mode & 0o666)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
