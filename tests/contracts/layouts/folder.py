"""``root/{train,test}/CLASS/IMAGE``."""

from .pictures import tree

QUICK = {}


def write(root):
    for part in ("train", "test"):
        tree(root / part)
