"""Which charts the columns of metrics.csv become. Column names decide, so a new diagnostic needs no change here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.report.line_chart import Chart, line_chart
from recipes.report.markup import Markup
from recipes.report.numbers import is_share, label, path_label, percent, quantity
from recipes.report.run_files import Column, RunFiles

SPLITS = ("train", "val", "test")
TIMING = ("images_per_second", "seconds")
POSITIONS = ("epoch", "update")
LEAD = ("loss", "accuracy", "lr")  # what a reader looks at first, in this order


def learning_charts(run: RunFiles) -> list[Markup]:
    """Loss, accuracy, what selected, learning rate, then whatever else was measured on a split."""
    columns = {name: column for name, column in _with_values(run).items() if not repeats(name, run.metrics)}
    by_metric: dict[str, dict[str, Column]] = {}
    for name, column in columns.items():
        split, _, metric = name.partition("/")
        if split in SPLITS and not (split == "train" and _is_term(metric, columns)):
            by_metric.setdefault(metric, {})[split] = column
    for name in columns:
        if name == "lr" or name.startswith("lr/"):
            by_metric.setdefault("lr", {})[name.removeprefix("lr/")] = columns[name]
    named = run.results.get("selected_by")
    selecting = [str(name).removeprefix("-") for name in named] if isinstance(named, list) else []
    lead = dict.fromkeys([*LEAD[:2], *selecting, *LEAD[2:], *by_metric])
    return [_chart(run, metric, by_metric[metric], title=path_label(metric), zero=metric == "lr", selected="val")
            for metric in lead if metric in by_metric]  # fmt: skip


def repeats(name: str, columns: Mapping[str, Any]) -> bool:
    """Whether a further evaluator's ``val/NAME/METRIC`` holds what ``val/METRIC`` does."""
    split, _, rest = name.partition("/")
    metric = rest.rpartition("/")[2]
    return split == "val" and metric != rest and columns.get(f"val/{metric}") == columns[name]


def timing_charts(run: RunFiles) -> list[Markup]:
    """Throughput and seconds of each epoch."""
    titles = {"images_per_second": "Images per second", "seconds": "Seconds per epoch"}
    columns = _with_values(run)
    return [
        line_chart(Chart(titles[name], run.epochs, {name: columns[name]}, zero=True))
        for name in TIMING
        if name in columns
    ]


def method_charts(run: RunFiles) -> list[Markup]:
    """One chart for each diagnostic of a part, and one of the loss terms where there are several."""
    charts = []
    columns, reports = _with_values(run), _part_reports(run)
    for name, column in columns.items():
        first, _, rest = name.partition("/")
        if first in (*SPLITS, *TIMING, *POSITIONS, "lr"):
            continue
        part = rest.rpartition("/")[0] or (first if rest else "")
        title = f"{label(part)} · {label(name)}" if part else label(name)
        if first in reports and part != first:  # a seat that says something of each other part: gradient/kd/cosine
            part, title = first, path_label(name)
        charts.append(_chart(run, name, {name: column}, title=title, marks=_first_active(run, part)))
    names = [name for name in columns if name.startswith("train/")]
    terms = {n.removeprefix("train/"): columns[n] for n in names if _is_term(n.removeprefix("train/"), columns)}
    if len(terms) > 1:
        charts.append(line_chart(Chart("Training loss by term", run.epochs, terms, zero=True)))
    return charts


def network_notes(run: RunFiles) -> list[str]:
    """Which networks stood beside the one in training, and how good the teacher was before the first epoch."""
    lines = [line.strip() for line in run.networks.splitlines() if line.strip()]
    found = run.results.get("teacher")
    if isinstance(found, dict) and isinstance(accuracy := found.get("accuracy"), int | float):
        lines.append(f"teacher: {percent(accuracy)} of the validation images right before training")
    return lines


def part_notes(run: RunFiles) -> list[tuple[str, str]]:
    """For each part that reports on the run: its name and what it says, when it acted first of all."""
    notes = []
    for part, facts in _part_reports(run).items():
        words = []
        first, share = facts.get("first_active_epoch"), facts.get("active_step_share")
        if isinstance(first, int | float):
            words.append(f"first active in epoch {first:g}" if first >= 0 else "never active")
        if isinstance(share, int | float):
            words.append(f"active in {percent(share)} of all steps")
        others = {key: value for key, value in facts.items() if key not in ("first_active_epoch", "active_step_share")}
        words += [f"{path_label(key)} {quantity(key, value)}" for key, value in others.items()]
        if words:
            notes.append((label(part), ", ".join(words)))
    return notes


def _with_values(run: RunFiles) -> dict[str, Column]:
    return {name: column for name, column in run.metrics.items() if any(value is not None for value in column)}


def _is_term(metric: str, columns: dict[str, Column]) -> bool:
    """Training metrics that no other split has, besides loss and accuracy, are terms of the loss."""
    return metric not in LEAD and not is_share(metric) and f"val/{metric}" not in columns


def _chart(run: RunFiles, name: str, lines: dict[str, Column], *, title: str = "", zero: bool = False,
           marks: dict[float, str] | None = None, selected: str = "") -> Markup:  # fmt: skip
    """``selected`` names the line on which the selected epoch is marked; without one, the best of the accuracy is."""
    top = max((value for column in lines.values() for value in column if value is not None), default=0.0)
    share = is_share(name) and top <= 1
    epoch = run.results.get("selected_epoch")
    known = isinstance(epoch, int | float)
    return line_chart(Chart(title or label(name), run.epochs, lines, share=share, zero=zero or share, marks=marks or {},
                            best=selected if known or name == "accuracy" else "",
                            selected=epoch if known else None))  # fmt: skip


def _part_reports(run: RunFiles) -> dict[str, dict[str, Any]]:
    """What the parts report, by name; results hold it under ``parts`` or ``acted``."""
    reports: dict[str, dict[str, Any]] = {}
    for key in ("parts", "acted"):
        entries = run.results.get(key)
        for part, facts in entries.items() if isinstance(entries, dict) else ():
            if isinstance(facts, dict):
                reports.setdefault(str(part).rpartition("/")[2], {}).update(facts)
    return reports


def _first_active(run: RunFiles, part: str) -> dict[float, str]:
    """Where the part's charts bear a mark."""
    first = _part_reports(run).get(part.rpartition("/")[2], {}).get("first_active_epoch")
    return {float(first): "acts from here"} if isinstance(first, int | float) and first > 0 else {}
