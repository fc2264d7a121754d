"""STL-10 in torchvision's layout, rebuilt from noise."""

import numpy as np

QUICK = {"verify": False}


def write(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in (("train", 60), ("test", 20)):
        np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        np.array([number % 10 + 1 for number in range(count)], np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
