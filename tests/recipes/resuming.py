"""Runs that are stopped and go on, and what is left of them."""

import csv
import random

import numpy as np
import torch

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.processes.stop import Stopped


def finish(run):
    """Train until it stops; None, or why it stopped."""
    try:
        run.run()
    except Stopped as stopped:
        return stopped
    return None


def go_on(folder, recipe, name, *words):
    # Whatever the generators were left at by others: a resumed run brings its own.
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    return finish(recipes.resume_run(folder / recipe / name, words))


def last(folder, recipe, name):
    """The newest checkpoint."""
    return CheckpointStore(folder / recipe / name / "checkpoints").newest("last")[0]


def outcome(folder, recipe, name):
    """What ``last`` holds, and metrics.csv without its times."""
    with open(folder / recipe / name / "metrics.csv", newline="") as file:
        rows = [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]
    return last(folder, recipe, name), rows
