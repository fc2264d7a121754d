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

from recipes.signature import ROOT
from recipes.validate import ConfigError

PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "albumentations", "hydra-core", "numpy")


def create_directory(output: str, recipe: str, name: str | None, seed: int) -> Path:
    """Make ``output/recipe/name``; an existing one is never touched.

    Raises:
        ConfigError: the directory exists, the name is not a plain file name, or the place cannot be written.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}", name):
        raise ConfigError([f"name={name!r} must be a plain file name: letters, digits and ._=+- (at most 100)"])
    directory = Path(output) / recipe / (name or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_seed{seed}")
    if name is None:
        number, first = 2, directory
        while directory.exists():
            directory, number = first.with_name(f"{first.name}_{number}"), number + 1
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir()
    except FileExistsError:
        raise ConfigError(
            [f"the run directory {directory} exists and is not overwritten; choose another name=, or remove it"]
        ) from None
    except OSError as error:
        raise ConfigError([f"cannot make the run directory {directory}: {error}; choose another output="]) from error
    return directory


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
