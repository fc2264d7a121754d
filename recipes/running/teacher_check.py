"""What a teacher knows of the data, before anything is learnt from it."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from datamodules.base import ImageData
from lightning_modules.teaching.teacher import Teacher
from recipes.configuration.problems import ConfigError
from recipes.running.directory import write_json

FILE = "teacher.json"
DEVIATIONS = 2.0  # above chance, in standard deviations of guessing


@torch.no_grad()
def check_teacher(teacher: Teacher, data: ImageData, device: torch.device, directory: Path) -> None:
    """Measure the teacher on the validation part, say so and leave it in the run directory.

    Args:
        teacher: frozen; it is moved to the device of the run.
        data: set up.
        device: where the run computes.
        directory: of the run.

    Raises:
        ConfigError: it answers no better than a guess.
    """
    if "logits" not in teacher.gives:
        return
    if not len(data.val_index) or data.classes_of("val") != data.classes:
        print("teacher: not measured, since no validation images of its classes are held out", flush=True)
        return
    teacher.to(device)
    right = images = 0
    batches: Any = data.val_dataloader()
    for batch in batches:
        moved = batch.to(device)
        right += int((teacher(moved.image).class_scores.argmax(1) == moved.label).sum())
        images += len(batch)
    part = "test" if data.select_on == "test_best" else "val"
    chance = float(data.labels_of(part)[data.val_index].bincount().max()) / images
    found = {"accuracy": right / images, "images": images, "chance": chance}
    write_json(directory / FILE, found)
    print(f"teacher: {right / images:.2%} on the validation part ({images} images)", flush=True)
    if teacher.checked_on_data and right <= images * chance + DEVIATIONS * sqrt(images * chance * (1 - chance)):
        raise ConfigError(
            [
                f"teacher: it answers {right} of {images} validation images right, and guessing gives "
                f"{images * chance:.0f}: it learnt next to nothing, or was trained on other images, or, where a file "
                "of weights says nothing of them, its classes stand in another order than those of the data or its "
                "images were normalized otherwise; give a reference that names its classes (a run, a checkpoint, an "
                "exported file) and was trained on such images, or set teaching.check=false (beside teaching=live, "
                "where no teaching is chosen) to learn from it all the same"
            ]
        )


def read_teacher(directory: Path) -> dict[str, Any]:
    """What was measured at the start of the run, as an entry of results.json; nothing where nothing was."""
    path = directory / FILE
    return {"teacher": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
