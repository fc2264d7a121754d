"""What a validation looks at while a network is trained to be robust: accuracy under PGD."""

from __future__ import annotations

from typing import Annotated

import torch

from kernels.batch import Batch, Output
from kernels.perturbation import Norm, as_fraction
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.distributed import total_over_processes
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.evaluators.robust_inputs import check_batch
from lightning_modules.network import Network
from lightning_modules.tasks.meters import Meter


class RobustValidation(Evaluator):
    """``pgd_accuracy``, which selects, and clean ``accuracy``; an image is robust if it is right before and after.

    PGD takes steps of a quarter of ``eps`` from a uniform start, the same in every epoch. It is an upper bound: what
    the network withstands is measured by ``evaluator=[robustness]``.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: of PGD.
        seed: of its starts.
    """

    reads_logits = True
    selects = ("pgd_accuracy",)

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Norm = "linf",
        steps: Annotated[int, "x >= 1"] = 10,
        seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
    ) -> None:
        size = float(as_fraction(str(eps)))
        self.attack = PGD(eps=size, norm=norm, steps=steps, step_size=size / 4)
        self.seed = seed

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return _Sums(self, network, len(data.classes))


class _Sums(Measurement):
    """Sums that stay on the device until the end."""

    def __init__(self, evaluator: RobustValidation, network: Network, classes: int) -> None:
        self.evaluator, self.network, self.classes = evaluator, network, classes
        self._meter = Meter()

    def add(self, batch: Batch, output: Output) -> None:
        """Attack a batch.

        Raises:
            ValueError: it cannot be attacked (see ``check_batch``).
        """
        if not len(batch):
            return
        check_batch(batch, output.class_scores, self.classes)
        draw = Draw(self.evaluator.seed, 0, batch.index)
        right = output.class_scores.argmax(1) == batch.label
        with attacked(self.network) as victim:
            found = self.evaluator.attack.search(victim, batch.image, batch.label, draw)
            robust = right & (victim.logits(found.image).argmax(1) == batch.label)
        self._meter.add({"pgd_accuracy": robust, "accuracy": right, "samples": torch.ones_like(batch.label)})

    def result(self) -> Evaluation:
        """Over all processes."""
        sums = self._meter.read(total_over_processes)
        samples = sums.pop("samples")
        return Evaluation(metrics={name: value / samples for name, value in sums.items()})
