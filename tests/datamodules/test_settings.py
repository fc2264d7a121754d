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
    keys = {key: build(value) if isinstance(value, dict) else value for key, value in settings.items()}
    del keys["_target_"]
    parameters = inspect.signature(target).parameters.values()
    assert set(keys) == {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return target(**keys)


def test_there_are_settings() -> None:
    assert len(FILES) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_settings_build(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert isinstance(build(yaml.safe_load(text)), ImageData)
