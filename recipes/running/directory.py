"""The run directory: where a run lives, and what it says about how it came to be."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.processes.lock import Lock

PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "albumentations", "hydra-core", "numpy")


STATUS = "status.json"


def open_directory(output: str, recipe: str, name: str | None, seed: int, config: dict[str, Any]) -> tuple[Path, bool]:
    """The directory of a run: a new one, or that of the unfinished run of the same name and configuration.

    A finished run is never touched: its name gets a suffix, ``NAME_2`` and so on.

    Returns:
        The directory, and whether it holds a run to go on with.

    Raises:
        ConfigError: an unfinished run of another configuration or at work right now has the name, the name is not a
            plain file name, or the place cannot be written.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}", name):
        raise ConfigError([f"name={name!r} must be a plain file name: letters, digits and ._=+- (at most 100)"])
    first = Path(output) / recipe / (name or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_seed{seed}")
    for number in range(1, 10_000):
        directory = first if number == 1 else first.with_name(f"{first.name}_{number}")
        if not _exists(directory) or (name is not None and _is_husk(directory)):
            return _make(directory), False
        if name is not None and not is_finished(directory):
            _check_same_run(directory, config)
            return directory, True
    raise ConfigError([f"there are 9,999 runs {first}; choose another name="])


def run_directory_of(checkpoint: Path) -> Path:
    """The run that a checkpoint lies in; of a run directory, itself."""
    if checkpoint.is_dir():
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def stage_beside(reference: str | None, run: Path | None) -> str | None:
    """What a reference to a network names: the stage beside a run directory that is itself a stage, else as it is."""
    if reference is None or run is None or not (run.parent / "config.yaml").is_file():
        return reference
    beside = run.parent / reference
    return str(beside) if (beside / "config.yaml").is_file() else reference


def _is_husk(directory: Path) -> bool:
    """Whether a process was killed between making the directory and saying what run it is for."""
    ours = {"checkpoints", "environment.json", "command.txt", "surgery.txt", ".lock"}
    names = {entry.name for entry in directory.iterdir()} if directory.is_dir() else {"a file"}
    return names <= ours and "checkpoints" in names and not any((directory / "checkpoints").iterdir())


def _exists(directory: Path) -> bool:
    try:
        return directory.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise _unusable(directory, error) from error


def _make(directory: Path) -> Path:
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(directory, error) from error
    return directory


def _unusable(directory: Path, error: OSError) -> ConfigError:
    where = str(directory)
    shown = where if len(where) <= 200 else f"{where[:200]}... ({len(where)} characters)"
    return ConfigError([f"cannot make the run directory {shown}: {error.strerror or error}; choose another output="])


def _check_same_run(directory: Path, config: dict[str, Any]) -> None:
    from recipes.running.resume import differences, read_config

    try:
        live = Lock(directory).live()
    except OSError as error:
        raise ConfigError([f"cannot lock {directory}: {error}; choose another name="]) from error
    if live:
        raise ConfigError([f"a run in {directory} is at work right now; choose another name="])
    if found := differences(read_config(directory), config):
        raise ConfigError(
            [
                f"the run directory {directory} holds an unfinished run of another configuration and is not "
                f"overwritten ({'; '.join(found)}); choose another name=, or remove it"
            ]
        )


def write_status(directory: Path, state: str, **facts: Any) -> None:
    """Say in status.json where a run is: running, interrupted, failed or finished."""
    write_json(directory / STATUS, {"state": state, "time": time.strftime("%Y-%m-%d %H:%M:%S"), **facts})


def is_finished(directory: Path) -> bool:
    """Whether a run has ended and its results can be read; where they are lost, it is evaluated again."""
    return read_status(directory).get("state") == "finished" and bool(_read_object(directory / "results.json"))


def read_status(directory: Path) -> dict[str, Any]:
    """What ``write_status`` wrote last; empty where that cannot be read."""
    return _read_object(directory / STATUS)


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where that cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit of this library; no environment variables, no user names."""
    import torch

    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= {package: _version(package) for package in PACKAGES}
    facts |= {"cpu": _cpu_name(), "cpu_cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["git_commit"] = _git_commit()
    return facts


def peak_memory_mb() -> float:
    """Largest memory of this process so far: of the GPU where one was used, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not a Unix
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else platform.machine()


def _git_commit() -> str:
    def git(*words: str) -> str:
        result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}{' with changes' if commit and git('status', '--porcelain') else ''}" or "not a git checkout"
    except OSError:
        return "git is not installed"
