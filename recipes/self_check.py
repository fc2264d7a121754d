"""``self_check=true``: does a recipe resume exactly? Some updates in one go, against the same with a break between."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.allow import allow_words
from recipes.checkpoint import CheckpointStore
from recipes.child import run_child
from recipes.directory import is_finished
from recipes.signature import ROOT
from recipes.stop import AGAIN
from recipes.validate import ConfigError
from recipes.words import take

BREAK, UPDATES = 3, 6
#: What two runs with the same numbers may differ in: times, and the configuration's folder and length.
APART = ("seconds", "images_per_second", "config")


def self_check(words: Sequence[str]) -> int:
    """Train a few updates, then again with a stop and a resume in a new process, and compare every number.

    Args:
        words: of the command line; where the run would be left and how long it may take is replaced.

    Returns:
        0 when everything is equal bit for bit, 1 otherwise.
    """
    if take(words, "resume")[0] is not None:
        raise ConfigError(["self_check=true starts runs of its own; leave resume= out and name the recipe"])
    kept = list(words)
    for key in ("output", "name", "stop_after", "max_time"):
        kept = take(kept, key)[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [*kept, f"output={folder}/runs"]
        print(f"self check: {UPDATES} updates, against {BREAK} + {UPDATES - BREAK} with a resume between", flush=True)
        whole = _train([*command, "name=whole", f"stop_after={UPDATES}"], folder, "whole")
        _train([*command, "name=broken", f"stop_after={BREAK}"], folder, "broken")
        run = next(Path(folder, "runs").glob("*/broken"))
        if is_finished(run):
            raise ConfigError([f"this run has at most {BREAK} updates: nothing to resume; raise trainer.max_epochs"])
        broken = _train([f"resume={run}", f"stop_after={UPDATES}"], folder, "broken")
        found = differing(whole, broken)
    if found:
        print(f"self check failed: {len(found)} values differ after the resume, the first is {found[0]}", flush=True)
        return 1
    tensors = sum(1 for _ in _tensors(whole))
    print(f"self check passed: {tensors} tensors and every counter are equal bit for bit", flush=True)
    return 0


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted paths at which two checkpoints differ, times apart; equal means equal bits."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{path}.{key}" for key in a.keys() ^ b.keys() if key not in APART]
        common = [key for key in a if key in b and key not in APART]
        return missing + [line for key in common for line in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return [line for i, (x, y) in enumerate(pairs) for line in differing(x, y, f"{path}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    else:
        same = type(a) is type(b) and (a == b or a != a)
    return [] if same else [path.removeprefix(".")]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _tensors(item)


def _train(words: list[str], folder: str, name: str) -> dict[str, Any]:
    """Run train.py until it stops by itself, and read what it saved."""
    command = [sys.executable, str(ROOT / "train.py"), *allow_words(), *words]
    with open(Path(folder) / "log", "w+b") as log:
        code = run_child(command, output=log)
        if code not in (0, AGAIN):
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr, end="")
            raise ConfigError([f"the self check's run ended with exit code {code}: {shlex.join(command)}"])
    run = next(Path(folder, "runs").glob(f"*/{name}"))
    found = CheckpointStore(run / "checkpoints").newest("last")
    if found is None:
        raise ConfigError([f"the self check's run left no checkpoint: {shlex.join(command)}"])
    return found[0]
