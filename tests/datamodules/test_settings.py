"""The shipped settings: each YAML names all keys of its class and builds."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.base import ImageData

FILES = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


def build(settings: dict[str, Any]) -> Any:
    """The object that ``_target_`` and the other keys describe, parts first."""
    module, _, name = settings["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    keys = {
        key: build(value) if isinstance(value, dict) and "_target_" in value else value
        for key, value in settings.items()
    }
    del keys["_target_"]
    owners = [owner for owner in target.__mro__ if owner.__module__.startswith("datamodules.")]
    parameters = [p for owner in owners for p in inspect.signature(owner).parameters.values()]
    assert set(keys) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}, "all keys of the class and its bases"
    return target(**keys)


def test_there_are_settings() -> None:
    assert len(FILES) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_settings_build(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert isinstance(build(yaml.safe_load(text)), ImageData)
