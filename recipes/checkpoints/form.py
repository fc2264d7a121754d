"""What a checkpoint consists of: one schema for the two kinds there are, checked as a file is read.

``best`` holds what evaluation and export need: the evaluated network, and the facts to understand it. ``last`` holds
all of it and the state of training beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.state.random_state import check_random_state

Content = dict[str, Any]
Form = Callable[[Content, Path], None]
MAX_COUNT = 2**62


@dataclass(frozen=True, slots=True)
class _Value:
    what: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Named:
    """A dict with names as keys and one schema for all values."""

    each: Any


@dataclass(frozen=True, slots=True)
class _Many:
    """A list of any length with one schema for all items."""

    each: Any


_TEXT = _Value("text", lambda value: isinstance(value, str))
_COUNT = _Value("a whole number from 0 on", lambda value: type(value) is int and 0 <= value < MAX_COUNT)
_INTEGER = _Value("a whole number", lambda value: type(value) is int and abs(value) < MAX_COUNT)
_SECONDS = _Value("a number from 0 on", lambda value: type(value) in (int, float) and 0 <= value < MAX_COUNT)
_TENSOR = _Value("a tensor", lambda value: isinstance(value, Tensor))
_SCALAR = _Value("a tensor of one number", lambda value: isinstance(value, Tensor) and value.ndim == 0)
_SAMPLES = _Value("a tensor of at most one dimension", lambda value: isinstance(value, Tensor) and value.ndim <= 1)
_LIST = _Value("a list, or None", lambda value: value is None or isinstance(value, list | tuple))
_ANY = _Value("", lambda value: True)  # of a part, an optimizer or a metric, which say themselves what they can load

EVALUABLE = {"network": _Named(_TENSOR), "config": _TEXT, "classes": _Many(_TEXT), "preprocessing": _Named(_ANY)}
_ROW = {"epoch": _COUNT, "update": _COUNT, "seconds": _SECONDS, "images_per_second": _SECONDS}
_GUARD = {"in_row": _COUNT, "in_epoch": _COUNT, "total": _COUNT, "restored_from": _INTEGER, "advanced": _COUNT}
_PROCESS = {
    "random": {"python": _Many(_ANY), "numpy": _Many(_ANY), "torch": _TENSOR},
    "meter": {"sums": _Named(_SCALAR), "pending": _Named(_Many(_SAMPLES))},
    "terms": _Many(_TEXT),
    "samples": _COUNT,
    "seconds": _SECONDS,
    "parts": _Named(_Named(_ANY)),
}
RESUMABLE = {
    "position": [_COUNT, _COUNT],
    "update": _COUNT,
    "config": _TEXT,
    "data": {"manifest": _Named({"count": _ANY, "sha256": _ANY}), "split": _Named(_ANY)},
    "training": {"task": _Named(_ANY), "optimizers": _Many(_Named(_ANY)), "guard": _GUARD, "update": _COUNT},
    "processes": _Many(_PROCESS),
    "record": {"rows": _Many(_Named(_ANY)), "best": _Named(_ANY), "best_key": _LIST, "seconds": _SECONDS},
}


def check_evaluable(content: Content, path: Path) -> None:
    """Refuse what cannot be evaluated or exported.

    Raises:
        ValueError: naming the file and the key.
    """
    if problem := _problem(content, EVALUABLE, ""):
        raise ValueError(f"{path} cannot be used: {problem}")


def check_resumable(content: Content, path: Path) -> None:
    """Refuse what training cannot go on from, such as a ``best.ckpt`` in the place of a ``last.ckpt``.

    Raises:
        ValueError: naming the file and the key.
    """
    problem = _problem(content, RESUMABLE, "") or _contradiction(content)
    if problem:
        only = "; only last.ckpt holds the state of training" if "position" not in content else ""
        raise ValueError(f"{path} is none to go on from: {problem}{only}")


def position_problem(content: Content, max_epochs: int, steps_per_epoch: int) -> str | None:
    """Why a position lies outside of a run; None where it lies inside."""
    epoch, batches = content["position"]
    inside = (epoch < max_epochs and batches <= steps_per_epoch) or (epoch, batches) == (max_epochs, 0)
    if inside and content["update"] == epoch * steps_per_epoch + batches:
        return None
    return (
        f"position is [{epoch}, {batches}] at update {content['update']}, and the run has {max_epochs} epochs of "
        f"{steps_per_epoch} updates"
    )


def _problem(value: Any, schema: Any, key: str) -> str | None:
    """The first place that does not follow the schema, in words."""
    if isinstance(schema, _Value):
        return None if schema.fits(value) else f"{key} must be {schema.what}, got {_shown(value)}"
    if isinstance(schema, _Many | list):
        return _problem_of_items(value, schema, key)
    if not isinstance(value, dict):
        return f"{key or 'the content'} must be a dict, got {_shown(value)}"
    if isinstance(schema, _Named):
        if (odd := next((name for name in value if not isinstance(name, str)), None)) is not None:
            return f"{key} has the key {odd!r:.80}, which is no name"
        pairs = [(name, schema.each) for name in value]
    else:
        if (absent := next((name for name in schema if name not in value), None)) is not None:
            return f"{_below(key, absent)} is missing"
        pairs = list(schema.items())
    return _first((value[name], inner, _below(key, name)) for name, inner in pairs)


def _problem_of_items(value: Any, schema: _Many | list[Any], key: str) -> str | None:
    wanted = "a list" if isinstance(schema, _Many) else f"a list of {len(schema)}"
    if not isinstance(value, list | tuple) or (isinstance(schema, list) and len(value) != len(schema)):
        return f"{key} must be {wanted}, got {_shown(value)}"
    inner = [schema.each] * len(value) if isinstance(schema, _Many) else schema
    return _first((item, one, _below(key, n)) for n, (item, one) in enumerate(zip(value, inner, strict=True)))


def _first(places: Any) -> str | None:
    return next((problem for place in places if (problem := _problem(*place)) is not None), None)


def _contradiction(content: Content) -> str | None:
    """What each key alone does not show."""
    update, record = content["update"], content["record"]
    if content["training"]["update"] != update:
        return f"update is {update}, and training.update is {content['training']['update']}"
    rows = [*record["rows"], *([record["best"]] if record["rows"] or record["best"] else [])]
    if problem := _problem(rows, _Many(_ROW), "record.rows (the last one is record.best)"):
        return problem
    for number, own in enumerate(content["processes"]):
        if problem := check_random_state(own["random"]):
            return f"processes.{number}.random.{problem}"
    return None


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _shown(value: Any) -> str:
    """A value in a message; of what may be large, its kind."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if isinstance(value, dict | Tensor) else f"{value!r:.80}"
