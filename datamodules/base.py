"""What every source of images offers to training and evaluation: splits, loaders of ``Batch``, and a record of both."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import lightning
import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.data_key import key_of, settings_of
from datamodules.manifest import Parts, combined
from datamodules.noisy_labels import NoisyLabels
from datamodules.order.class_order import ClassBalancedOrder
from datamodules.order.loader import Loader, make_loader
from datamodules.order.order import ShuffledOrder, StoredOrder, TrainingOrder
from datamodules.order.split import index_digest, limit
from kernels.batch import Batch
from kernels.ranges import RangeChecked


class ImageData(RangeChecked, NoisyLabels, lightning.LightningDataModule):
    """A labelled image set with train, validation and test part. Subclasses say where the images come from.

    The labels of a part are positions in the names of that part, which may differ: see ``LabelSets``.

    Args:
        seed: the run's seed, for order and augmentation.
        batch_size: samples of one update, over all processes.
        eval_batch_size: samples of an evaluation batch, over all processes.
        num_workers: loader processes; 0 loads in this one. Never changes the batches.
        val_fraction: share of the training set held out for validation (stratified); where the test classes are not
            those of training, share of the training classes, at least one unless it is 0.
        split_seed: of the validation split and the limits; apart from ``seed`` so that runs share a split.
        imbalance: ``exponential`` or ``step`` keeps fewer training samples of the classes with higher labels (see
            ``datamodules.order.imbalance``), before anything is held out; the test part stays as it is. None for the
            set as it is.
        imbalance_ratio: size of the largest class over that of the smallest; given with ``imbalance``.
        limit_train: train on so many samples only (stratified); their ``index`` stays that in the full set.
        limit_test: test on so many samples only (stratified).
        drop_last: leave out an incomplete last training batch.
        samples_per_class: batches of ``batch_size / samples_per_class`` classes with so many samples each (see
            ``datamodules.order.class_order``); None shuffles all samples.
        augmentations: epochs after which the augmentations of the samples come again (the order does not), so that what
            is computed of them can be kept: see ``Batch.augmentation``. None for new ones in every epoch.
        select_on: ``val`` holds out ``val_fraction``; ``test_best`` holds out nothing and validates on the test part,
            which then selects the epoch: to compare with papers that report the best epoch on the test set, and for
            nothing else. The training part is then all of the training set.
        worker_timeout_s: seconds after which a loader process that delivers no batch ends the run.

    Attributes (after ``setup``):
        classes: names of the classes trained on, in the order of the labels: what a head or proxies count.
        val_classes, test_classes: names of those parts; ``read`` sets them where they are others than ``classes``.
        train_labels: ``[num_train]``; -1 where the sample's class is held out.
        stored_labels: ``[num_train]`` as they were before any class was held out.
        test_is_query: ``[N_test]`` whether a test image is a query, else it belongs to the gallery; by ``Batch.index``.
            None where every test image is both.
        image_size: side of the square images, in pixels.
        num_train: length of the full training set before split and limits: that of every per-sample store.
        train_index, val_index, test_index: positions of the parts in use. ``val_index`` points into the training set,
            unless the source has a validation set of its own or validation is the test part.
        noise: set it before ``setup``, for wrong labels in training; None for none. ``train_labels`` are then the wrong
            ones, as a learner would be given them, and ``Batch.clean_label`` holds the others.
        device: set it before the loaders are built. On a CUDA device and without workers, images that fit in memory
            are kept and augmented there; otherwise batches come on the CPU.
    """

    channels = 3
    image_size: int
    augment: Any = None  # what training does to the images
    leaves_out = False  # whether images that cannot be read are left out of a part
    absent: str | None = None  # why there are no images, where a set was built from its declared facts alone

    def __init__(
        self,
        seed: int = 0,
        *,
        batch_size: Annotated[int, "x >= 1"] = 128,
        eval_batch_size: Annotated[int, "x >= 1"] = 512,
        num_workers: Annotated[int, "0 <= x <= 1024"] = 0,
        val_fraction: Annotated[float, "0 <= x < 1"] = 0.1,
        split_seed: Annotated[int, "x >= 0"] = 0,
        imbalance: Literal["exponential", "step"] | None = None,
        imbalance_ratio: Annotated[float, "x >= 1"] | None = None,
        limit_train: Annotated[int, "x >= 1"] | None = None,
        limit_test: Annotated[int, "x >= 1"] | None = None,
        drop_last: bool = True,
        samples_per_class: Annotated[int, "x >= 1"] | None = None,
        augmentations: Annotated[int, "x >= 1"] | None = None,
        select_on: Literal["val", "test_best"] = "val",
        worker_timeout_s: Annotated[int, "1 <= x <= 31536000"] = 600,
    ) -> None:
        super().__init__()
        if select_on not in ("val", "test_best"):
            raise ValueError(f"data.select_on is {select_on!r}; choose val or test_best")
        self.seed, self.split_seed = seed, split_seed
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.val_fraction, self.limit_train, self.limit_test = val_fraction, limit_train, limit_test
        self.drop_last, self.worker_timeout_s = drop_last, worker_timeout_s
        self.samples_per_class, self.augmentations, self.select_on = samples_per_class, augmentations, select_on
        self.device = torch.device("cpu")
        self.imbalance, self.imbalance_ratio = imbalance, imbalance_ratio
        self.check_imbalance()
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
        """Count and sha256 of each part as stored; they change when its images or labels (``stored_labels``) do."""
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

    def test_paths(self) -> list[str] | None:
        """File of each test image by ``Batch.index``; None where images come from no files."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Read and split the set; does nothing the second time."""
        if self._ready:
            return
        self.read()
        self.settle_labels()
        everything = torch.arange(len(self.test_labels))
        self.test_index = limit(self.test_labels, everything, self.limit_test, self.split_seed, "limit_test")
        train = self.choose_validation()
        self.train_index = limit(self.train_labels, train, self.limit_train, self.split_seed, "limit_train")
        self.add_noise()
        self._ready = True

    @cached_property
    def order(self) -> TrainingOrder:
        """Of the training batches; made when it is asked for, since an evaluation needs none."""
        settings = self.seed, self.drop_last, self.augmentations
        if self.samples_per_class is None:
            return ShuffledOrder(self.train_index, self.batch_size, *settings)
        labels = self.train_labels[self.train_index]
        return ClassBalancedOrder(self.train_index, labels, self.batch_size, self.samples_per_class, *settings)

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
        """What ``manifest`` is made of, as plain data: count and sha256 of class names and of each part.

        ``datamodules.manifest.manifest_difference`` says in words where two of them differ.
        """
        if not hasattr(self, "_manifest_parts"):
            self._manifest_parts = self.label_entries() | self.fingerprint()
        return self._manifest_parts

    def key(self, part: str) -> str:
        """sha256 of all that decides what a part gives: images, labels, which samples, and in training how augmented.

        Equal keys are equal pixels at equal ``(Batch.index, Batch.augmentation)``, up to what ``manifest`` can notice.

        Args:
            part: ``train``, ``train_eval``, ``val`` or ``test``.
        """
        index = {"val": self.val_index, "test": self.test_index}.get(part, self.train_index)
        augmented = part == "train" and self.augment is not None
        return key_of(
            {
                "source": f"{type(self).__module__}.{type(self).__qualname__}",
                "manifest": self.manifest_parts(),
                "set": self.set_of(part),
                "index": index_digest(index),
                "labels": index_digest(self.labels_of(part)[index]),
                "classes": self.classes_of(part),
                "preprocessing": self.preprocessing(),
                "leaves_out": self.leaves_out,
                "augment": [self.seed, self.augmentations, settings_of(self.augment)] if augmented else None,
            }
        )

    def split_record(self) -> dict[str, Any]:
        """Seed, sizes and fingerprints of the parts, as plain data."""
        parts = {"train": self.train_index, "val": self.val_index, "test": self.test_index}
        return {
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction if self.held_out else None,
            "num_train_full": self.num_train,
            "counts": {name: len(index) for name, index in parts.items()},
            "sha256": {name: index_digest(index) for name, index in parts.items()},
            **({"classes": {name: len(self.classes_of(name)) for name in parts}} if self.by_classes else {}),
            **({"imbalance": self.imbalance_record()} if self.imbalance is not None else {}),
            **({"noise": self.noise_record()} if self.noise is not None else {}),
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
        part = "test" if self.select_on == "test_best" else "val"
        return self._loader(part, StoredOrder(self.val_index, self.eval_batch_size))

    def test_dataloader(self) -> Loader:
        return self._loader("test", StoredOrder(self.test_index, self.eval_batch_size))

    def train_eval_dataloader(self) -> Loader:
        """The training samples in stored order and without augmentation, for evaluators that compare with them."""
        return self._loader("train_eval", StoredOrder(self.train_index, self.eval_batch_size))

    def _loader(self, part: str, order: TrainingOrder | StoredOrder) -> Loader:
        return make_loader(
            self.source(part),
            order,
            self.num_workers,
            persistent_workers=part == "train",
            timeout_s=self.worker_timeout_s,
        )
