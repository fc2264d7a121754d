"""One name for all that decides the pixels and labels of a part, so that what is computed of them may be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Decode, resize and augment images; another version may do it otherwise.
PACKAGES = ("pillow", "albumentations", "opencv-python-headless", "opencv-python")


def key_of(facts: Mapping[str, Any]) -> str:
    """sha256 of facts, in whatever order they stand, and of the versions of ``PACKAGES``.

    What is no plain data goes by its ``repr``: one with an address in it makes a key that never comes again, which
    costs a computation and is never wrong.
    """
    text = json.dumps({**facts, "versions": _versions()}, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_of(part: object) -> dict[str, Any]:
    """Class and attributes of an object that is configured once; its class names in ``lazy`` those that say nothing
    new and are filled with use."""
    lazy = getattr(part, "lazy", ())
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    return {"class": name, **{key: value for key, value in vars(part).items() if key not in lazy}}


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
