"""What every source of images offers to training and evaluation: splits, loaders of ``Batch``, and a record of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import Loader, make_loader
from datamodules.manifest import Parts, combined
from datamodules.order import ShuffledOrder, StoredOrder
from datamodules.split import hold_out, index_digest, limit
from kernels.batch import Batch


class ImageData(lightning.LightningDataModule):
    """A labelled image set with train, validation and test part. Subclasses say where the images come from.

    Args:
        seed: the run's seed, for order and augmentation.
        batch_size: samples of one update, over all processes.
        eval_batch_size: samples of an evaluation batch, over all processes.
        num_workers: loader processes; 0 loads in this one. Never changes the batches.
        val_fraction: share of the training set held out for validation (stratified).
        split_seed: of the validation split and the limits; apart from ``seed`` so that runs share a split.
        limit_train: train on so many samples only (stratified); their ``index`` stays that in the full set.
        limit_test: test on so many samples only (stratified).
        drop_last: leave out an incomplete last training batch.
        worker_timeout_s: seconds after which a loader process that delivers no batch ends the run.

    Attributes (after ``setup``):
        classes: names, in the order of the labels.
        image_size: side of the square images, in pixels.
        num_train: length of the full training set before split and limits: that of every per-sample store.
        train_index, val_index, test_index: positions of the parts in use. ``val_index`` points into the training set,
            unless the source has a validation set of its own.
        device: set it before the loaders are built. On a CUDA device and without workers, images that fit in memory
            are kept and augmented there; otherwise batches come on the CPU.
    """

    channels = 3
    classes: tuple[str, ...]
    image_size: int
    train_labels: Tensor
    test_labels: Tensor
    val_labels: Tensor | None = None  # only of a source that has a validation set of its own
    absent: str | None = None  # why there are no images, where a set was built from its declared facts alone
    train_index: Tensor
    val_index: Tensor
    test_index: Tensor
    order: ShuffledOrder

    def __init__(
        self,
        seed: int = 0,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
        drop_last: bool = True,
        worker_timeout_s: int = 600,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("worker_timeout_s", worker_timeout_s, 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")
        self.seed, self.split_seed = seed, split_seed
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.val_fraction, self.limit_train, self.limit_test = val_fraction, limit_train, limit_test
        self.drop_last, self.worker_timeout_s = drop_last, worker_timeout_s
        self.device = torch.device("cpu")
        self._ready = False

    def read(self) -> None:
        """Fill ``classes``, ``image_size`` and the labels of each part (and the images where they fit in memory)."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def source(self, part: str) -> Dataset[Batch]:
        """The data set of a part, whose ``__getitems__`` turns keys into a Batch.

        Args:
            part: ``train`` (augmented), ``train_eval`` (the same samples as they are), ``val`` or ``test``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define source(part)")

    def fingerprint(self) -> Parts:
        """Count and sha256 of class names and of each part; they change when images, labels or names do."""
        raise NotImplementedError(f"{type(self).__name__} must define fingerprint()")

    def unreadable(self) -> dict[str, dict[str, Any]]:
        """Files of each part that were passed over because they cannot be read, as plain data."""
        return {}

    def preprocessing(self) -> dict[str, Any]:
        """How evaluation images are made, as plain data: all that is needed to feed the network elsewhere."""
        raise NotImplementedError(f"{type(self).__name__} must define preprocessing()")

    def test_picture(self, index: int) -> np.ndarray:
        """The test image with this ``Batch.index`` as the network sees it, ``[H, W, 3]`` uint8."""
        raise NotImplementedError(f"{type(self).__name__} must define test_picture(index)")

    def setup(self, stage: str | None = None) -> None:
        """Read and split the set; does nothing the second time."""
        if self._ready:
            return
        self.read()
        for part in ("train", "val", "test"):
            labels = getattr(self, f"{part}_labels")
            if labels is not None:
                check_labels(labels, self.classes, part)
        if self.val_labels is None:
            train, self.val_index = hold_out(self.train_labels, self.val_fraction, self.split_seed)
        else:
            train, self.val_index = torch.arange(self.num_train), torch.arange(len(self.val_labels))
        self.train_index = limit(self.train_labels, train, self.limit_train, self.split_seed, "limit_train")
        everything = torch.arange(len(self.test_labels))
        self.test_index = limit(self.test_labels, everything, self.limit_test, self.split_seed, "limit_test")
        self.order = ShuffledOrder(self.train_index, self.batch_size, self.seed, self.drop_last)
        self._ready = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_train(self) -> int:
        return len(self.train_labels)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.order)

    @property
    def manifest(self) -> str:
        """sha256 over data, labels and class names; a resumed run compares it."""
        return combined(self.manifest_parts())

    def manifest_parts(self) -> Parts:
        """What ``manifest`` is made of, as plain data: count and sha256 of ``classes`` and of each part.

        ``datamodules.manifest.manifest_difference`` says in words where two of them differ.
        """
        if not hasattr(self, "_manifest_parts"):
            self._manifest_parts = self.fingerprint()
        return self._manifest_parts

    def split_record(self) -> dict[str, Any]:
        """Seed, sizes and fingerprints of the parts, as plain data."""
        parts = {"train": self.train_index, "val": self.val_index, "test": self.test_index}
        return {
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction if self.val_labels is None else None,
            "num_train_full": self.num_train,
            "counts": {name: len(index) for name, index in parts.items()},
            "sha256": {name: index_digest(index) for name, index in parts.items()},
        }

    def set_position(self, epoch: int, batches_done: int = 0) -> None:
        """Let the next training loader start in ``epoch`` after ``batches_done`` batches; call after ``setup``."""
        self.order.set_position(epoch, batches_done)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's hook: a copy from page-locked memory need not wait."""
        return batch.to(device, non_blocking=True)

    def train_dataloader(self) -> Loader:
        return self._loader("train", self.order)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Validation batches; an empty list (Lightning's sign for none) where nothing is held out."""
        if len(self.val_index) == 0:
            return []
        return self._loader("val", StoredOrder(self.val_index, self.eval_batch_size))

    def test_dataloader(self) -> Loader:
        return self._loader("test", StoredOrder(self.test_index, self.eval_batch_size))

    def train_eval_dataloader(self) -> Loader:
        """The training samples in stored order and without augmentation, for evaluators that compare with them."""
        return self._loader("train_eval", StoredOrder(self.train_index, self.eval_batch_size))

    def _loader(self, part: str, order: ShuffledOrder | StoredOrder) -> Loader:
        return make_loader(
            self.source(part),
            order,
            self.num_workers,
            persistent_workers=part == "train",
            timeout_s=self.worker_timeout_s,
        )


def check_labels(labels: Tensor, classes: Sequence[str], part: str) -> None:
    """Raise ValueError naming the first label outside ``0 .. C-1``."""
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero()[:, 0]
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{part} label {int(labels[first])} at index {first} is outside 0..{len(classes) - 1} "
            f"({len(classes)} classes); {len(wrong)} labels are; correct the label file"
        )
