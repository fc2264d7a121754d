"""CIFAR-100 in torchvision's layout, rebuilt from noise."""

from .cifar10 import QUICK, entry, pickled

__all__ = ["QUICK", "write"]


def write(root):
    folder, kinds = root / "cifar-100-python", ("fine_labels", "coarse_labels")
    pickled(folder / "train", entry(600, 100, kinds))
    pickled(folder / "test", entry(200, 100, kinds))
    pickled(folder / "meta", {f"{kind[:-1]}_names": [f"{kind[0]}{i}" for i in range(100)] for kind in kinds})
