"""SVHN in torchvision's layout, rebuilt from noise."""

import numpy as np

QUICK = {"verify": False}


def write(root):
    from scipy.io import savemat

    for part, count in (("train", 60), ("test", 20)):
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.array([[number % 10 + 1] for number in range(count)], np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels})
