"""Which images and folders a folder holds: one rule for all sets of image folders.

Hidden names (with a dot at the start) are left out. Links are followed. What is no regular file (a pipe, a socket, a
device, a link to nothing) is never listed, so that nothing opens it. Whatever is left out is counted.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

from datamodules.reading.decode import SUFFIXES

HIDDEN, OTHER, SPECIAL, CLOSED, AGAIN, STRAY = (
    "hidden names",
    f"names without {' '.join(SUFFIXES)}",
    "special files and links to nothing",
    "folders that cannot be opened",
    "links to folders that are read under another name",
    "images beside the class folders",
)


class LeftOut:
    """Counts what a walk leaves out, by reason, and remembers the first of each."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        """Count one entry."""
        self.count[reason] += 1
        self.first.setdefault(reason, path)

    def said(self, folder: Path) -> str:
        """What was left out below a folder, on one line; empty for nothing."""
        found = (
            f"{reason}: {count}, the first {os.path.relpath(self.first[reason], folder)!r}"
            for reason, count in self.count.items()
        )
        return f"left out: {'; '.join(found)}" if self.count else ""

    def warn(self, folder: Path) -> None:
        """One warning for all of it."""
        if self.count:
            warnings.warn(f"{folder}: {self.said(folder)}", stacklevel=2)


def contents(folder: str | os.PathLike[str], left: LeftOut) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images directly in a folder, each sorted; the rest is counted."""
    folders: list[str] = []
    images: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                left.add(HIDDEN, entry.path)
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(entry.name)
            elif not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
                left.add(SPECIAL, entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                images.append(entry.name)
            else:
                left.add(OTHER, entry.path)
    return folders, images


def images_below(folder: Path, left: LeftOut) -> list[str]:
    """Paths, relative to the folder, of all images at any depth, sorted.

    Each folder is read once, under its own name where that lies below: links are followed last, and one that leads to
    a folder that was read is counted. So links in circles end.
    """
    found: list[str] = []
    linked: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting or linked:
        below = waiting.pop() if waiting else linked.pop(0)
        where = os.path.join(folder, below)
        try:
            state = os.stat(where)
            if (state.st_dev, state.st_ino) in seen:
                left.add(AGAIN, where)
                continue
            seen.add((state.st_dev, state.st_ino))
            folders, images = contents(where, left)
        except OSError:
            if not below:
                raise
            left.add(CLOSED, where)
            continue
        found += [os.path.join(below, name) for name in images]
        inner = [os.path.join(below, name) for name in folders]
        links = {path for path in inner if os.path.islink(os.path.join(folder, path))}
        linked += [path for path in inner if path in links]
        waiting += [path for path in reversed(inner) if path not in links]
    return sorted(found)
