"""What came of the runs of a sweep, side by side: a row for each setting, over its seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from recipes.configuration.problems import ConfigError
from recipes.configuration.stages import compose_run
from recipes.running.directory import is_finished
from recipes.running.resume import differences, read_config

#: Test metrics that are compared, in percent, where runs have them.
METRICS = ("accuracy", "recall@1", "map@r", "robust_accuracy")
Values = dict[str, float]  # by seed


def comparison(jobs: Sequence[list[str]]) -> list[str]:
    """Lines of one table for each metric; none where fewer than two settings were finished.

    Jobs that differ in their seed alone are one row: number of runs, mean and standard deviation. Behind them stands
    the mean difference to the first row over the seeds that both have, and from three on the p-value of a paired
    t-test.

    Args:
        jobs: the words of each, of train.py.
    """
    shared = set(jobs[0]).intersection(*jobs[1:])
    found: dict[str, dict[str, Values]] = {}
    for job in jobs:
        setting = [word for word in job if word not in shared and not word.startswith(("seed=", "name="))]
        seed = next((word for word in job if word.startswith("seed=")), "")
        for metric, value in _measured(job).items():
            found.setdefault(metric, {}).setdefault(" ".join(setting), {})[seed] = value
    return [line for metric, rows in found.items() if len(rows) > 1 for line in _table(metric, rows)]


def _table(metric: str, rows: dict[str, Values]) -> list[str]:
    from scipy.stats import ttest_rel  # here, because a sweep that is refused should not wait for it

    width = max(len(setting) for setting in rows)
    lines = ["", f"{'test ' + metric + ', %':<{width}}  runs    mean     sd    diff       p"]
    first = next(iter(rows.values()))
    for setting, values in rows.items():
        percent = [100 * value for value in values.values()]
        sd = f"{statistics.stdev(percent):7.2f}" if len(percent) > 1 else " " * 7
        pairs = [] if values is first else [(values[seed], first[seed]) for seed in values if seed in first]
        difference = f"{100 * statistics.mean(a - b for a, b in pairs):+8.2f}" if pairs else " " * 8
        varied = len(pairs) > 2 and len({a - b for a, b in pairs}) > 1
        p = f"{ttest_rel(*zip(*pairs, strict=True)).pvalue:8.2g}" if varied else ""
        lines.append(
            f"{setting:<{width}}  {len(percent):4}  {statistics.mean(percent):6.2f}{sd}{difference}{p}".rstrip()
        )
    return lines


def _measured(job: list[str]) -> dict[str, float]:
    """The test metrics of the newest finished run of these words."""
    config = compose_run(job)
    folder = Path(config["output"]) / config["recipe"]
    finished = [path for path in folder.glob("*/results.json") if is_finished(path.parent)]
    for path in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            stored = read_config(path.parent)
            other = stored.get("teacher") != config.get("teacher") or differences(stored, config)
        except ConfigError:
            continue
        if not other:
            results = json.loads(path.read_text(encoding="utf-8"))
            metrics = {key: value for found in results.get("evaluators", {}).values() for key, value in found.items()}
            metrics |= results["test"]
            return {name: metrics[name] for name in METRICS if name in metrics}
    return {}
