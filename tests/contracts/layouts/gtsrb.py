"""GTSRB in torchvision's layout: class folders for training, a list for the test."""

import numpy as np

from .pictures import CLASSES, grid

QUICK = {"verify": False}
HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


def ppm(path, label, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = 17 + label, 15 + number
    pixels = np.random.default_rng([label, number]).integers(0, 256, (height, width, 3), np.uint8)
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes())


def write(root):
    base = root / "gtsrb"
    rows = [HEADER]
    for label, number in grid():
        ppm(base / "GTSRB/Training" / f"{label:05d}" / f"00000_{number:05d}.ppm", label, number)
    for row, label in enumerate(2 * list(range(CLASSES))):
        ppm(base / "GTSRB/Final_Test/Images" / f"{row:05d}.ppm", label, 50 + row)
        rows.append(f"{row:05d}.ppm;20;20;5;5;15;15;{label}")
    (base / "GT-final_test.csv").write_text("\r\n".join(rows) + "\r\n")
