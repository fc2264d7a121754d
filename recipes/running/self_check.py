"""``self_check=true``: does a recipe resume exactly? Some updates in one go, against the same with a break between."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.allow import allow_words
from recipes.configuration.compose import to_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.configuration.stage_words import KEY
from recipes.configuration.stages import compose_run
from recipes.configuration.words import take
from recipes.processes.child import run_child
from recipes.processes.stop import AGAIN
from recipes.running.directory import is_finished, write_text

BREAK, UPDATES = 3, 6
#: What two runs with the same numbers may differ in: times, and the configuration's folder and length.
APART = ("seconds", "images_per_second", "config")


def self_check(words: Sequence[str]) -> int:
    """Train a few updates, then again with a stop and a resume in a new process, and compare every number.

    Stages are checked one after another, each from the weights that the few updates of the one before have left.

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
    config = compose_run(kept)
    with tempfile.TemporaryDirectory() as folder:
        if KEY in config:
            return _check_stages(config, Path(folder))
        places = {name: Path(folder, "runs", config["recipe"], name) for name in ("whole", "broken")}
        starts = {name: [*kept, f"output={folder}/runs", f"name={name}"] for name in places}
        return _check(starts, places)


def _check_stages(config: dict[str, Any], folder: Path) -> int:
    """The same for every stage, in a run directory in which each has ended early."""
    write_text(folder / "config.yaml", to_yaml(config))
    for stage, own in config[KEY].items():
        print(f"stage {stage}", flush=True)
        places = {"whole": folder / stage, "broken": folder / f"{stage}.broken"}
        for place in places.values():
            (place / "checkpoints").mkdir(parents=True)
            write_text(place / "config.yaml", to_yaml({**own, "stop_after": None}))
        if failed := _check({name: [f"resume={place}"] for name, place in places.items()}, places):
            return failed
        store = CheckpointStore(folder / stage / "checkpoints")
        if store.newest("best") is None:  # no epoch has ended
            store.save("best", _newest(folder / stage))
            store.wait()
    return 0


def _check(starts: dict[str, list[str]], places: dict[str, Path]) -> int:
    """Compare a run in one go with one that is broken off; ``starts`` are the words that begin them."""
    print(f"self check: {UPDATES} updates, against {BREAK} + {UPDATES - BREAK} with a resume between", flush=True)
    whole = _train([*starts["whole"], f"stop_after={UPDATES}"], places["whole"])
    _train([*starts["broken"], f"stop_after={BREAK}"], places["broken"])
    if is_finished(places["broken"]):
        raise ConfigError([f"this run has at most {BREAK} updates: nothing to resume; raise trainer.max_epochs"])
    broken = _train([f"resume={places['broken']}", f"stop_after={UPDATES}"], places["broken"])
    if found := differing(whole, broken):
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


def _train(words: list[str], place: Path) -> dict[str, Any]:
    """Run train.py until it stops by itself, and read what it saved."""
    command = [sys.executable, str(ROOT / "train.py"), *allow_words(), *words]
    with tempfile.TemporaryFile() as log:
        code = run_child(command, output=log)
        if code not in (0, AGAIN):
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr, end="")
            raise ConfigError([f"the self check's run ended with exit code {code}: {shlex.join(command)}"])
    return _newest(place)


def _newest(place: Path) -> dict[str, Any]:
    found = CheckpointStore(place / "checkpoints").newest("last")
    if found is None:
        raise ConfigError([f"the self check's run left no checkpoint in {place}"])
    return found[0]
