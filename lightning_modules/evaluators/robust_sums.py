"""What a validation sums up: accuracy, and accuracy under one attack."""

from __future__ import annotations

import torch

from kernels.batch import Batch, Output
from lightning_modules.attacks.base import BallAttack, Draw
from lightning_modules.attacks.victim import attacked
from lightning_modules.distributed import total_over_processes
from lightning_modules.evaluators.base import Measurement
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.evaluators.robust_inputs import check_batch, check_finite
from lightning_modules.network import Network
from lightning_modules.tasks.meters import Meter


class RobustSums(Measurement):
    """Sums that stay on the device until the end."""

    def __init__(self, attack: BallAttack, seed: int, network: Network, classes: int) -> None:
        self.attack, self.seed, self.network, self.classes = attack, seed, network, classes
        self._meter = Meter()

    def add(self, batch: Batch, output: Output) -> None:
        """Attack a batch.

        Raises:
            ValueError: it cannot be attacked (see ``check_batch``).
        """
        if not len(batch):
            return
        check_batch(batch, output.class_scores, self.classes)
        right = output.class_scores.argmax(1) == batch.label
        robust, rows = torch.zeros_like(right), right.nonzero().flatten()  # what is wrong already is not attacked
        if len(rows):
            image, label, draw = batch.image[rows], batch.label[rows], Draw(self.seed, 0, batch.index[rows])
            with attacked(self.network) as victim:
                logits = victim.logits(self.attack.search(victim, image, label, draw).image)
            check_finite(logits, "an attacked image")
            robust[rows] = logits.argmax(1) == label
        self._meter.add({"pgd_accuracy": robust, "accuracy": right, "samples": torch.ones_like(batch.label)})

    def result(self) -> Evaluation:
        """Over all processes."""
        sums = self._meter.read(total_over_processes)
        samples = sums.pop("samples")
        return Evaluation(metrics={name: value / samples for name, value in sums.items()})
