"""Images per CPU second of random crop + flip + normalize at 32 px: ours, torchvision on PIL, albumentations.

All three run through a DataLoader with workers=0, in one process, on one thread, on the same images, and end in a
normalized float batch. Rounds are interleaved; the table gives medians and the ratio to ours.

    python -m benchmarks.augmentation                    # random images
    python -m benchmarks.augmentation --root FOLDER      # CIFAR-10 below FOLDER
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import save
from datamodules.arrays import ArrayData
from datamodules.augmentation.augment import BatchAugment
from datamodules.sources.cifar import CIFAR10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GOALS = {"torchvision v2 on PIL": 50.0, "albumentations": 10.0}


class RandomImages(ArrayData):
    """As many random images as CIFAR-10 has."""

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.arange(50_000) % 10
        return (images, labels), (images[:1000], labels[:1000]), tuple("0123456789")


class PerImage(Dataset[tuple[Tensor, int]]):
    """The usual data set: one image at a time through a function."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[np.ndarray], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def torchvision_transform() -> Callable[[np.ndarray], Tensor]:
    from PIL import Image
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda image: steps(Image.fromarray(image))


def albumentations_transform() -> Callable[[np.ndarray], Tensor]:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    steps = A.Compose(
        [
            A.PadIfNeeded(40, 40, border_mode=0),
            A.RandomCrop(32, 32),
            A.HorizontalFlip(p=0.5),
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )
    return lambda image: steps(image=image)["image"]


def ours(data: ArrayData) -> Iterator[Tensor]:
    """Batches of the training loader, normalized in place as a network's first layer does."""
    mean = torch.tensor(MEAN).repeat_interleave(32 * 32)
    scale = 1.0 / torch.tensor(STD).repeat_interleave(32 * 32)
    for batch in data.train_dataloader():
        batch.image.view(len(batch), -1).sub_(mean).mul_(scale)
        yield batch.image


def images_per_cpu_second(batches: Iterator[Tensor], count: int) -> float:
    """Take batches until ``count`` images have come."""
    next(batches)  # start-up of the loader is not what is measured
    seen, start = 0, time.process_time()
    for image in batches:
        seen += len(image)
        if seen >= count:
            break
    return seen / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    keys: dict[str, Any] = {
        "augment": BatchAugment(crop_padding=4, flip_prob=0.5),
        "val_fraction": 0.0,
        "batch_size": arguments.batch_size,
    }
    data = CIFAR10(0, root=arguments.root, verify=False, **keys) if arguments.root else RandomImages(0, **keys)
    data.setup()
    images = data.train_images.permute(0, 2, 3, 1).contiguous().numpy()
    labels = data.train_labels.tolist()

    def usual(transform: Callable[[np.ndarray], Tensor]) -> Iterator[Tensor]:
        loader = DataLoader(PerImage(images, labels, transform), arguments.batch_size, shuffle=True)
        return (image for image, _ in loader)

    by_torchvision, by_albumentations = torchvision_transform(), albumentations_transform()
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: images_per_cpu_second(ours(data), 40_000),
        "torchvision v2 on PIL": lambda: images_per_cpu_second(usual(by_torchvision), 3_000),
        "albumentations": lambda: images_per_cpu_second(usual(by_albumentations), 3_000),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            rates[name].append(run())
    rows: dict[str, dict[str, object]] = {}
    print(f"{'':24}{'images / CPU s':>16}{'range':>22}{'ours is':>12}{'goal':>10}")
    for name, values in rates.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        goal = f">= {GOALS[name]:.0f} x" if name in GOALS else ""
        print(f"{name:24}{median:16,.0f}{min(values):12,.0f} -{max(values):8,.0f}{ratio:10.1f} x{goal:>10}")
        rows[name] = {"images_per_cpu_second": round(median), "range": [round(min(values)), round(max(values))]}
        rows[name] |= {"ours_is_times": round(ratio, 1)}
    save("augmentation", {"batch_size": arguments.batch_size, "rounds": arguments.rounds, **rows})


if __name__ == "__main__":
    main()
