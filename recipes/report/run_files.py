"""Reads what a run left in its directory. Every file may be missing: the page then leaves its section out."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.configuration.plain import read_yaml

Column = list[float | None]


@dataclass(slots=True)
class RunFiles:
    """Contents of a run directory.

    Attributes:
        recipe: name of the recipe.
        name: name of the run.
        config: resolved configuration, YAML text.
        command: the exact command line.
        environment: versions and hardware, flat.
        metrics: columns of metrics.csv by name, one entry an epoch; None where a cell is empty or not finite.
        results: results.json.
        surgery: what surgery did to the network, one line a module.
        networks: which networks stood beside the one in training, a line for each fact.
    """

    recipe: str
    name: str
    config: str = ""
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Column] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    surgery: str = ""
    networks: str = ""

    @property
    def epochs(self) -> list[float]:
        """Epoch of each row of the metrics; counted where the column is missing or has a gap."""
        length = max((len(column) for column in self.metrics.values()), default=0)
        column = self.metrics.get("epoch", [None] * length)
        return [float(i) if value is None else value for i, value in enumerate(column)]


def read_run(run_dir: Path) -> RunFiles:
    """Read the run directory.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: a JSON file cannot be read.
    """
    run_dir = Path(run_dir).resolve()
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run directory at {run_dir}; a report is written into the directory of its run")
    config, results = _text(run_dir / "config.yaml"), _json(run_dir / "results.json")
    return RunFiles(
        recipe=_recipe_name(config, results) or _subject(run_dir),
        name=run_dir.name,
        config=config,
        command=_text(run_dir / "command.txt").strip(),
        environment=_json(run_dir / "environment.json"),
        metrics=_columns(run_dir / "metrics.csv"),
        results=results,
        surgery=_text(run_dir / "surgery.txt"),
        networks=_text(run_dir / "networks.txt"),
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level, keys joined by ``/``; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # nested thousands deep, a number of thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object of named results")
    return content


def _columns(path: Path) -> dict[str, Column]:
    rows = list(csv.DictReader(_text(path).splitlines()))
    names = [name for name in (rows[0] if rows else {}) if name]
    return {name: [_cell(row.get(name)) for row in rows] for name in names}


def _cell(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _subject(folder: Path) -> str:
    """What an evaluation without a recipe is of, by where it stands: RECIPE/RUN/evaluations/DATE, or NAME/DATE."""
    where = folder.parent
    return f"{where.parent.parent.name} {where.parent.name}" if where.name == "evaluations" else where.name


def _recipe_name(config: str, results: dict[str, Any]) -> str:
    if isinstance(results.get("recipe"), str):
        return str(results["recipe"])
    try:
        tree = read_yaml(config)
    except ValueError:
        return ""  # only the title depends on it, and the page shows the text as it is
    recipe = tree.get("recipe") if isinstance(tree, dict) else None
    if isinstance(recipe, dict):
        recipe = recipe.get("name")
    return recipe if isinstance(recipe, str) else ""
