"""ImageNet as torchvision lays it out: ``root/{train,val}/CLASS/IMAGE``."""

from .pictures import tree

QUICK = {"expect": None}


def write(root):
    for part in ("train", "val"):
        tree(root / part)
