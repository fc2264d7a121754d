"""A teacher that is computed once for each image it is shown, and read from disk from then on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from kernels.batch import Batch, Output
from lightning_modules.evaluators.feature_cache import features_key
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.teaching.base import Teaching
from lightning_modules.teaching.cache_fit import check_fit, read_of
from lightning_modules.teaching.record import Dtype, Record
from lightning_modules.teaching.row_file import RowFile
from lightning_modules.teaching.teacher import Ensemble, Teacher
from lightning_modules.teaching.training_images import TrainingImages

FOLDER = "cache/teachers"
#: How far a row may be from what the teacher gives now, as a share of its largest entry: other devices, and batches of
#: other sizes, round otherwise. What another teacher gives, or this one of another image, is far beyond.
ROUNDING, HALF_ROUNDING = 0.01, 0.05
CHECK_EVERY = 100  # in the first epoch that is read, of so many batches the first is computed as well


class Cached(Teaching):
    """What the teacher gives for each (image, augmentation) is kept in a file, for this run and later ones.

    Only what the parts of the run read is kept: logits, features or norms of features. A batch of which any row is not
    there is computed as a whole, as ``Live`` does.

    Args:
        folder: of the files, made when the first is written. Any of them may be removed while no run reads it.
        dtype: of the rows; float32 keeps every bit, float16 halves their size.
        keys: ``image_size``, ``precision``, ``compile``, ``check`` (see ``Teaching``).
    """

    def __init__(self, *, folder: str = FOLDER, dtype: Literal["float32", "float16"] = "float32", **keys: Any) -> None:
        super().__init__(**keys)
        self.folder, self.dtype = folder, dtype

    def teacher(self, networks: Sequence[Network], sizes: Sequence[int | None]) -> Teacher:
        ensemble = Ensemble(networks, sizes, self.precision, self.compile)
        return CachedTeacher(ensemble, self.check, Path(self.folder).expanduser(), self.dtype, self.compile)


class CachedTeacher(Teacher):
    """A ``Teacher`` that reads what it once gave, where it is told which samples it is shown.

    ``begin`` comes before the first batch. Without a batch it computes.

    Args:
        ensemble: the networks.
        checked_on_data: whether a run refuses it where it knows nothing of the data.
        folder: of the files.
        dtype: of the rows.
        compiled: whether the ensemble is, which rounds otherwise.
    """

    keyed_by_sample = True

    def __init__(
        self,
        ensemble: Ensemble,
        checked_on_data: bool = True,
        folder: Path = Path(FOLDER),
        dtype: Dtype = "float32",
        compiled: bool = False,
    ) -> None:
        super().__init__(ensemble, checked_on_data)
        self.folder, self.dtype, self.compiled = folder, dtype, compiled
        self.images: TrainingImages | None = None
        self.record = Record({})
        self.file: RowFile | None = None
        self._identity: dict[str, Any] = {}
        self._places = torch.empty(0, dtype=torch.int64)  # of each sample of the full set among those in use
        self._batches = self._samples = 0  # that were read, in this process

    @property
    def ensemble(self) -> Ensemble:
        """The networks."""
        return cast(Ensemble, self.network)

    @property
    def augmentations(self) -> int:
        """Rows of a sample."""
        images = self._known()
        return (images.augmentations or 1) * (images.visits or 1) if images.augmented else 1

    @property
    def rows(self) -> int:
        """Of the file."""
        return int(self._places.max()) * self.augmentations + self.augmentations

    def begin(self, parts: Parts, images: TrainingImages) -> list[str]:
        """Decide what is kept.

        Raises:
            ValueError: the teacher would be shown something else than what is kept, no row would be read again, or
                there is nothing to keep.
        """
        name = next(name for name, module in parts.networks.items() if module is self)
        check_fit(parts, name, images)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"teaching.folder={self.folder} is a file; give a folder")
        read = read_of(parts, name)
        first: Any = self.ensemble.networks[0]
        has = {"logits": first.head.num_classes, "features": self.num_features}
        widths = {key: int(width) for key, width in has.items() if key in read & self.gives}
        if "norms" in read and "features" in self.gives - read:
            widths["norms"] = 1
        if not widths:
            raise ValueError(
                f"teaching=cached keeps logits, features and norms of the teacher: it gives {_listed(self.gives)}, and "
                f"the parts read {_listed(read)}; take teaching=live"
            )
        self.record, self.images, self.file = Record(widths, self.dtype), images, None
        used = images.index.unique()
        self._places = torch.full((int(used.max()) + 1,), -1).index_copy_(0, used, torch.arange(len(used)))
        self._identity = {
            "networks": [features_key(network, "") for network in self.ensemble.networks],  # type: ignore[arg-type]
            "sizes": self.ensemble.sizes,
            "precision": [self.ensemble.precision, images.precision, self.compiled],
            "kept": self.record.facts,
            "augmentations": self.augmentations,
        }
        kept = ", ".join(f"{width} {key}" for key, width in widths.items())
        several = f" in {self.augmentations} augmentations" if self.augmentations > 1 else ""
        size = RowFile(Path(), {}, self.rows, self.record.width).size / 1e6
        return [f"teacher: {kept} of {len(used)} images{several} are kept in {self.folder} ({size:.1f} MB)"]

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        label: Tensor | None = None,
        mix_map: Any = None,
        want_maps: Collection[str] = (),
        batch: Batch | None = None,
    ) -> Output:
        """What the teacher gives for these images; of a batch only what the parts of the run read."""
        if batch is None:
            return cast(Output, self.network(image, label, mix_map, want_maps))
        file, rows = self._opened(), self._rows_of(batch)
        there, found = file.read(rows)
        whole = bool(there.all())
        if whole and not self._is_checked(len(rows)):
            return self.record.output(found, image.device)
        computed = self.record.rows(self.network(image))
        self._compare(rows[there], found[there], computed[there])
        if not whole:
            file.write(rows[~there], computed[~there])
        return self.record.output(found if whole else computed, image.device)

    def _known(self) -> TrainingImages:
        if self.images is None:
            raise ValueError("a cached teacher has to know the images first; call begin(parts, images)")
        return self.images

    def _opened(self) -> RowFile:
        if self.file is None:
            facts = {**self._identity, "data": self._known().key()}
            key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            stated = {"key": key, "kept": self.record.facts, "augmentations": self.augmentations}
            self.file = RowFile(self.folder / f"{key}.rows", stated, self.rows, self.record.width)
        return self.file

    def _rows_of(self, batch: Batch) -> np.ndarray:
        self._known()
        if batch.augmentation is None:
            raise ValueError("the batch does not say which augmentations it shows; set data.augmentations")
        index, shown = batch.index.cpu(), batch.augmentation.cpu()
        inside = (index >= 0) & (index < len(self._places)) & (shown >= 0) & (shown < self.augmentations)
        place = self._places[torch.where(inside, index, 0)]
        if not bool((inside & (place >= 0)).all()):
            raise ValueError(
                "the batch has samples that are none of the training part, or augmentations that are not below "
                f"{self.augmentations}, and for these there are no rows"
            )
        return cast(np.ndarray, (place * self.augmentations + shown).numpy())

    def _is_checked(self, samples: int) -> bool:
        """Whether this batch, which could be read, is computed as well."""
        number, before = self._batches, self._samples
        self._batches, self._samples = number + 1, before + samples
        return number % CHECK_EVERY == 0 and before < len(self._known().index)

    def _compare(self, rows: np.ndarray, found: np.ndarray, computed: np.ndarray) -> None:
        if not len(rows):
            return
        half = self.ensemble.precision is not None or not self._known().precision.startswith("32")
        bound = HALF_ROUNDING if half else ROUNDING
        far = self.record.distance(found, computed)
        if (worst := float(far.max())) > bound:
            place, shown = divmod(int(rows[far.argmax()]), self.augmentations)
            sample = int((self._places == place).nonzero()[0, 0])
            raise ValueError(
                f"{self._opened().path}: the row of sample {sample}, augmentation {shown}, is {worst:.2g} of its "
                f"largest entry away from what the teacher gives now, and rounding explains {bound:g}: the file, or "
                "the images, are not what its name says; remove the file, and it is filled anew"
            )


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
