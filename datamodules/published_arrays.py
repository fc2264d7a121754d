"""What published sets that fit in memory have in common: files below a root, their checksums, and fetching them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.arrays import ArrayData


class PublishedArrays(ArrayData):
    """An image set in memory that is read from published files. Subclasses define ``arrays`` and ``fetch``.

    Args:
        seed: the run's seed.
        root: folder that holds the files, or the folder that the set comes in.
        download: fetch what is missing into ``root``; its sha256 is checked.
        verify: compare the files with the published ones; false accepts rebuilt files.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def __init__(
        self, seed: int = 0, *, root: str = "data", download: bool = False, verify: bool = True, **common: Any
    ) -> None:
        super().__init__(seed, **common)
        self.root, self.download, self.verify = Path(os.path.expanduser(root)), download, verify

    def fetch(self) -> None:
        """Bring the missing files; OSError or ValueError where that cannot be."""
        raise NotImplementedError(f"{type(self).__name__} must define fetch()")

    def need(self, folder: Path, names: Sequence[str], by_hand: str, holding: str) -> None:
        """Download where asked; raise one FileNotFoundError where files are missing all the same.

        Args:
            folder: that the names are below.
            names: of files, or of folders where they end in ``/``.
            by_hand: what the user may do instead.
            holding: what ``root`` is to hold.
        """
        missing, reason = _missing(folder, names), ""
        if missing and self.download:
            try:
                self.fetch()
            except (OSError, ValueError) as error:
                reason = f" {error}."
            missing = _missing(folder, names)
        if missing:
            raise FileNotFoundError(
                f"{type(self).__name__} is not in {folder.absolute()} (missing: {', '.join(missing)}).{reason} "
                f"Set data.download=true to fetch it, or {by_hand}, or set data.root to the folder that holds "
                f"{holding}."
            )


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not ((folder / name).is_dir() if name[-1] == "/" else (folder / name).is_file())]


def check_md5(folder: Path, files: Sequence[Sequence[str]]) -> None:
    """Raise ValueError naming the files whose md5 is not the published one.

    Args:
        folder: that the names are below.
        files: (name, md5) of each.
    """
    from torchvision.datasets.utils import check_integrity

    wrong = [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
    if wrong:
        raise ValueError(
            f"{folder}: {', '.join(wrong)} differ from the published files (md5); bring another copy, "
            "or set data.verify=false when they were rebuilt on purpose"
        )
