"""Any tree of class folders, some classes of which are for the test only."""

from __future__ import annotations

from typing import Annotated, Any

from datamodules.disjoint_files import DisjointFiles, Listed, from_folders, refuse_shared_classes
from datamodules.reading.file_list import FileList
from datamodules.reading.folder_tree import need_root, validation_folder


class FolderDisjoint(DisjointFiles):
    """``root/CLASS/IMAGE``, or ``root/{train,val,test}/CLASS/IMAGE`` with other classes in every part.

    Without ``val`` (or ``valid``, ``validation``), validation holds out training classes.

    Args:
        seed: the run's seed.
        test_classes: share of the classes that test, the last ones by name, rounded; not used where the folders
            ``train`` and ``test`` say which.
        **common: the keys of ``DisjointFiles``, ``ImageFiles`` and ``ImageData``.
    """

    def __init__(self, seed: int = 0, *, test_classes: Annotated[float, "0 < x < 1"] = 0.5, **common: Any) -> None:
        super().__init__(seed, **common)
        self.test_share = test_classes

    @property
    def in_parts(self) -> bool:
        """Whether folders say which classes train and which test."""
        return all((self.root / part).is_dir() for part in ("train", "test"))

    def listed(self) -> tuple[Listed, Listed]:
        need_root(self.root, "CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE")
        if self.in_parts:
            return from_folders(self.root, "train"), from_folders(self.root, "test")
        whole = from_folders(self.root)
        count = len(whole.classes)
        tested = round(self.test_share * count)
        if not 1 <= tested < count:
            raise ValueError(
                f"data.test_classes={self.test_share} of the {count} classes in {self.root} are {tested}; both parts "
                "need at least one, use another share or more classes"
            )
        return whole.halves(count - tested)

    def read(self) -> None:
        super().read()
        if self.absent or not self.in_parts or (folder := validation_folder(self.root, "val", "test")) is None:
            return
        val = from_folders(self.root, folder.name)
        refuse_shared_classes(self.root, ("training", self.classes), ("validation", val.classes))
        refuse_shared_classes(self.root, ("test", self.test_classes), ("validation", val.classes))
        self.val_classes, self.val_labels = val.classes, val.labels
        self.files["val"] = FileList(self.root, val.names)
