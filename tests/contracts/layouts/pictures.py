"""Pictures for the smallest sets in each published layout."""

import numpy as np
from PIL import Image

CLASSES, EACH = 8, 6  # where other classes test than train: four and four


def save(path, label, number, side=16):
    """Noise in the colour of its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([label, number]).integers(0, 128, (side, side, 3))
    Image.fromarray((noise + [label * 15, 60, 120 - label * 15]).astype(np.uint8)).save(path)


def grid(classes=CLASSES, each=EACH):
    """(label, number) of every picture, class by class."""
    return [(label, number) for label in range(classes) for number in range(each)]


def tree(root, classes=CLASSES):
    """``root/CLASS/IMAGE``."""
    for label, number in grid(classes):
        save(root / f"class{label}" / f"{number}.png", label, number)
