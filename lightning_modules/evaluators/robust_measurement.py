"""One robustness evaluation under way: batches are attacked as they come, or a random sample of them at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from time import perf_counter

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from kernels.perturbation import Norm
from kernels.wilson import wilson_interval
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.victim import Victim, attacked
from lightning_modules.evaluators.base import EvaluationData, Measurement, device_of
from lightning_modules.evaluators.batch_sample import BatchSample
from lightning_modules.evaluators.random_rows import RandomRows
from lightning_modules.evaluators.result import Evaluation, PictureRow, Table
from lightning_modules.evaluators.robust_checks import Check, Checks
from lightning_modules.evaluators.robust_inputs import check_batch
from lightning_modules.evaluators.robust_sequence import SEQUENCES, Budget, attack_of
from lightning_modules.evaluators.robust_trial import Cost, Samples, attempted
from lightning_modules.evaluators.robust_view import (
    ClassCounts,
    attack_table,
    attacked_row,
    check_table,
    class_table,
    eps_curve,
    tail_accuracy,
)
from lightning_modules.network import Network


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``RobustnessEvaluator`` was asked for; ``eps`` exactly."""

    eps: Fraction
    norm: Norm
    budget: Budget
    limit: int | None
    seed: int
    curve: tuple[float, ...]
    num_pictures: int


class RobustMeasurement(Measurement):
    """Attacks each batch at once, or a random sample at the end."""

    def __init__(self, settings: Settings, network: Network, data: EvaluationData) -> None:
        self.settings, self.network, self.data = settings, network, data
        self.eps = float(settings.eps)
        self.stages = SEQUENCES[settings.budget]
        self.checks = Checks(self.eps, settings.norm, settings.curve, settings.budget, settings.seed)
        self.costs = [Cost() for _ in range(len(self.stages) + 1)]  # of the clean forward, then of each stage
        self.fell_at: list[Tensor] = []  # [B] 0 wrong already, k fell to stage k, one more: to a check, last: none
        self.labels: list[Tensor] = []
        self.outside = 0
        self.sample = BatchSample(settings.limit, settings.seed, "robustness.limit")
        self.pictures: RandomRows[PictureRow] = RandomRows(
            0 if data.brief else settings.num_pictures, settings.seed, "robustness.pictures"
        )

    def add(self, batch: Batch, output: Output) -> None:
        """Attack the images, or keep those of the sample.

        Raises:
            ValueError: images outside of [0, 1], soft labels, other classes than the data's, scores that are not
                finite.
        """
        if not len(batch):
            return
        check_batch(batch, output.class_scores, len(self.data.classes))
        for part in self.sample.now(batch):
            self._attack(part)

    def _attack(self, batch: Batch) -> None:
        own, image, label, index = self.settings, batch.image, batch.label, batch.index
        with attacked(self.network) as victim:
            start = perf_counter()
            logits = victim.logits(image)
            classes, right = logits.shape[1], logits.argmax(1) == label
            bool(right.any())  # waits for the device, so that the time is that of the work
            self.costs[0] += Cost(victim.forwards, 0, perf_counter() - start)
            samples = Samples(image, label, Draw(own.seed, 0, index))
            fell_at = self._sequence(victim, samples, right, classes)
            missed = self.checks.add(victim, samples, right, fell_at > len(self.stages), classes)
        fell_at[fell_at > len(self.stages)] += 1
        fell_at[missed] = len(self.stages) + 1
        self.fell_at.append(fell_at.cpu())
        self.labels.append(label.cpu())

    def _sequence(self, victim: Victim, samples: Samples, right: Tensor, classes: int) -> Tensor:
        """``[B]`` 0 for an image that is wrong already, the number of the stage that felled it from 1, or one more."""
        own = self.settings
        fell_at = right.long() * (len(self.stages) + 1)
        for number, stage in enumerate(self.stages, 1):
            rows = (fell_at > len(self.stages)).nonzero()[:, 0]
            if not len(rows):
                break
            attack = attack_of(stage, self.eps, own.norm, classes)
            trial = attempted(attack, own.norm, victim, replace(samples, draw=samples.draw.again(number)).of(rows))
            fell_at[rows[trial.fell]] = number
            self.costs[number] += trial.cost
            self.outside += trial.outside
            self._keep(samples.of(rows[trial.fell]), trial.image[trial.fell], trial.predicted[trial.fell], stage.name)
        return fell_at

    def _keep(self, samples: Samples, found: Tensor, predicted: Tensor, attack: str) -> None:
        names, index = self.data.classes, samples.draw.index
        at = self.pictures.wanted(index)
        words = [(names[int(samples.label[i])], names[int(predicted[i])]) for i in at]
        rows = [
            attacked_row(samples.image[i], found[i], both, attack, int(index[i]))
            for i, both in zip(at, words, strict=True)
        ]
        self.pictures.add(index[at], rows)

    def result(self) -> Evaluation:
        """Metrics, tables, the curve and pictures; a warning for each check that is violated.

        Raises:
            ValueError: no data.
        """
        for part in self.sample.rest(device_of(self.network)):
            self._attack(part)
        if not self.labels:
            raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
        label, fell_at = torch.cat(self.labels), torch.cat(self.fell_at)
        robust = fell_at > len(self.stages) + 1
        counts = ClassCounts.of(label, fell_at > 0, robust, len(self.data.classes))
        checks = self._checked(counts, fell_at)
        metrics = self._metrics(counts, checks)
        if self.data.brief:
            return Evaluation(metrics=metrics)
        images = len(label)
        tables = (
            {"Protocol": Table(["protocol"], [[self._protocol(images)]])}
            | attack_table(self._standing(fell_at), images)
            | check_table(checks)
            | class_table(counts, self.data.classes)
        )
        figures = eps_curve(self.checks.standing, images, str(self.settings.eps))
        pictures = {"Images that fell": self.pictures.rows()} if self.pictures.rows() else {}
        return Evaluation(metrics=metrics, tables=tables, figures=figures, pictures=pictures)

    def _metrics(self, counts: ClassCounts, checks: Sequence[Check]) -> dict[str, float]:
        images, robust = int(counts.images.sum()), int(counts.robust.sum())
        by_class, (low, high) = counts.robust_accuracy(), wilson_interval(robust, images)
        spent = sum(self.costs, Cost())
        return {
            "accuracy": int(counts.right.sum()) / images,
            "robust_accuracy": robust / images,
            "robust_low": low,
            "robust_high": high,
            "worst_class": float(by_class.min()),
            "tail_30": tail_accuracy(by_class),
            "images": images,
            "forwards": spent.forwards,
            "backwards": spent.backwards,
            "forwards_per_image": spent.forwards / images,
            "backwards_per_image": spent.backwards / images,
            "violated_checks": sum(one.passed is False for one in checks),
        }

    def _standing(self, fell_at: Tensor) -> list[tuple[str, str, int, Cost]]:
        names = ["no attack", *(stage.name for stage in self.stages), "checks"]
        settings = ["", *(stage.settings for stage in self.stages), "see below"]
        rows = zip(names, settings, [*self.costs, self.checks.cost], strict=True)
        return [(name, words, int((fell_at > number).sum()), cost) for number, (name, words, cost) in enumerate(rows)]

    def _checked(self, counts: ClassCounts, fell_at: Tensor) -> list[Check]:
        square = None
        if not self.stages[-1].gradients:
            last = len(self.stages)
            square = (int((fell_at == last).sum()), int((fell_at >= last).sum()))
        checks = self.checks.rows(float(counts.images.max() / counts.images.sum()), square, self.outside)
        for one in checks:
            if one.passed is False:
                warnings.warn(f"robustness: '{one.name}' is violated: {one.found}; {one.reason}", stacklevel=2)
        return checks

    def _protocol(self, images: int) -> str:
        own = self.settings
        chosen = f"all {images} images" if own.limit is None else f"{images} of {self.sample.seen} images at random"
        return f"{own.norm}, eps {own.eps}, {chosen}, seed {own.seed}, {own.budget} budget, network in eval mode"
