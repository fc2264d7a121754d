"""A fingerprint of an image set in named pieces, so that a difference can be named and not only noticed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.reading.file_list import FileList

#: ``{"count": how many, "sha256": of their content}`` of each piece: ``classes``, ``train``, ``val``, ``test``;
#: ``val_classes`` and ``test_classes`` where they are others; ``test_is_query`` where a set has queries and a gallery;
#: ``noise`` where labels have some: how many were changed, and all of them; ``imbalance`` where a set was made to have
#: some: how many training samples were kept, and which.
Parts = dict[str, dict[str, Any]]
WHOLE_BYTES = 2**27  # up to this size the files of a part are hashed whole; more would take long at every start


def entry(count: int, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """One piece of a manifest."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return {"count": count, "sha256": digest.hexdigest()}


def names_entry(names: tuple[str, ...]) -> dict[str, Any]:
    """The piece of the class names, which counts their order."""
    return entry(len(names), ["\0".join(names).encode(errors="surrogateescape")])


def files_entry(files: FileList, labels: Tensor) -> dict[str, Any]:
    """The piece of a list of files: paths, labels and sizes, and the content of sets up to 128 MiB.

    A larger set whose file changes without changing its size keeps its manifest: reading all of it would take hours.
    """
    names = [files.name(index) for index in range(len(files))]
    paths = [os.path.join(files.folder, name) for name in names]  # of a million files; Path objects take 5 times longer
    sizes = [_size(path) for path in paths]
    whole = sum(sizes) <= WHOLE_BYTES

    def pieces() -> Iterator[bytes]:
        for name, path, size, label in zip(names, paths, sizes, labels.tolist(), strict=True):
            yield f"{name}\0{label}\0{size}\n".encode(errors="surrogateescape")
            if whole and size:
                with suppress(OSError):
                    yield Path(path).read_bytes()

    return entry(len(files), pieces())


def _size(path: str) -> int:
    """Of a regular file; 0 for anything else, as for a link that leads nowhere: whoever reads it says what it is."""
    try:
        found = os.stat(path)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def combined(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 of all pieces."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def manifest_difference(saved: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between two manifests, in words; empty where nothing does.

    Args:
        saved: ``manifest_parts()`` of the data as it was.
        found: the same of the data as it is.

    Example:
        >>> manifest_difference({"train": {"count": 3, "sha256": "a"}}, {"train": {"count": 2, "sha256": "b"}})
        ['train: 3 before, 2 now']
    """
    lines = []
    for name in dict.fromkeys([*saved, *found]):
        before, now = saved.get(name), found.get(name)
        if before is None or now is None:
            lines.append(
                f"{name}: {'absent' if before is None else before['count']} before, "
                f"{'absent' if now is None else now['count']} now"
            )
        elif before["count"] != now["count"]:
            lines.append(f"{name}: {before['count']} before, {now['count']} now")
        elif before["sha256"] != now["sha256"]:
            what = "other names, or another order" if name.endswith("classes") else "other files or labels"
            what = {"noise": "other wrong labels", "imbalance": "other samples"}.get(name, what)
            lines.append(f"{name}: {now['count']} before and now, but {what}")
    return lines
