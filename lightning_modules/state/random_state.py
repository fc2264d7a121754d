"""The state of every global random generator as plain values and tensors, so that a safe load can read it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """State of Python's, numpy's and torch's generators, and of ``device`` where that is a CUDA device."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """The inverse of ``random_state``."""
    random.setstate(_python(state["python"]))
    np.random.set_state(_numpy(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator starts from a seed inside, and is what it was afterwards.

    Args:
        seed: 0 to 2**32 - 1.

    Example:
        >>> with numpy_seeded(0):
        ...     float(np.random.rand())
        0.5488135039273248
    """
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def check_random_state(state: dict[str, Any]) -> str | None:
    """Why a state cannot be set, as ``key: reason``; found on generators that nobody uses."""
    trials: dict[str, Callable[[], Any]] = {
        "python": lambda: random.Random().setstate(_python(state["python"])),  # noqa: S311
        "numpy": lambda: np.random.RandomState().set_state(_numpy(state["numpy"])),
        "torch": lambda: torch.Generator().set_state(state["torch"]),
    }
    for name, trial in trials.items():
        try:
            trial()
        except Exception as error:  # each library has errors of its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return f"{name} is no state of a generator ({reason})"
    return None


def _python(state: Any) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(words.tolist()), gauss


def _numpy(state: Any) -> tuple[Any, ...]:
    name, keys, position, has_gauss, cached = state
    if not 0 <= position <= len(keys):  # numpy does not look, and would read beside its memory
        raise ValueError(f"position {position}")
    return name, keys.numpy().astype(np.uint32), position, has_gauss, cached
