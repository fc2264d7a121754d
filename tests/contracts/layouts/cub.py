"""CUB-200-2011: lists of images, labels and names."""

from .pictures import CLASSES, grid, save

QUICK = {"expect": None}


def write(root):
    names = [f"{label + 1:03d}.Bird" for label in range(CLASSES)]
    images, labels = [], []
    for row, (label, number) in enumerate(grid(), start=1):
        save(root / "images" / names[label] / f"{number}.png", label, number)
        images.append(f"{row} {names[label]}/{number}.png\n")
        labels.append(f"{row} {label + 1}\n")
    (root / "images.txt").write_text("".join(images))
    (root / "image_class_labels.txt").write_text("".join(labels))
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)))
