"""``root/CLASS/IMAGE``; the last half of the classes tests."""

from .pictures import tree as write

QUICK = {}
__all__ = ["QUICK", "write"]
