"""Accuracy under attack: an evaluation with checks that say whether to believe it, and a validation at a low price."""

from __future__ import annotations

from typing import Annotated, Literal

from kernels.perturbation import as_fraction
from lightning_modules.attacks.pgd import PGD
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.robust_measurement import RobustMeasurement, Settings
from lightning_modules.evaluators.robust_sums import RobustSums
from lightning_modules.network import Network

CURVE = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


class RobustnessEvaluator(Evaluator):
    """Robust accuracy by a sequence of attacks; an image that one of them fells meets none of the later ones.

    Besides: accuracy over eps, the least robust classes, what each attack cost, and attacks whose outcome is known
    where gradients tell the truth: each that comes out otherwise is a warning with its reason, and whatever it fells in
    the ball counts as fallen. What is measured of an image depends on it and the seed, not on its batch.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        budget: ``standard`` for the sequence of AutoAttack, ``fast`` for ours (see ``robust_sequence``).
        limit: how many images are attacked, chosen at random; they wait in memory. None for all, as they come.
        seed: of attacks and choices.
        curve: radii at which accuracy is measured by 10 steps of PGD, in units of ``eps``; 0 and 1 are always added.
            None for a quarter to four times.
        num_pictures: pictured images that fell, chosen at random.
    """

    reads_logits = True

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        budget: Literal["fast", "standard"] = "fast",
        limit: Annotated[int, "x >= 1"] | None = None,
        seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
        curve: list[Annotated[float, "x >= 0"]] | None = None,
        num_pictures: Annotated[int, "x >= 0"] = 8,
    ) -> None:
        radii = CURVE if curve is None else tuple(curve)
        self.settings = Settings(as_fraction(str(eps)), norm, budget, limit, seed, radii, num_pictures)

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return RobustMeasurement(self.settings, network, data)


class RobustValidation(Evaluator):
    """``pgd_accuracy``, which selects, and clean ``accuracy``; an image is robust if it is right before and after.

    PGD takes steps of a quarter of ``eps`` from a uniform start, the same in every epoch, of images that are right; the
    others are not attacked. It is an upper bound: what
    the network withstands is measured by ``evaluator=[robustness]``.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: of PGD.
        seed: of its starts.
    """

    reads_logits = True
    selects = ("pgd_accuracy",)
    measures = ("pgd_accuracy", "accuracy")

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        steps: Annotated[int, "x >= 1"] = 10,
        seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
    ) -> None:
        size = float(as_fraction(str(eps)))
        self.attack = PGD(eps=size, norm=norm, steps=steps, step_size=size / 4)
        self.seed = seed

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return RobustSums(self.attack, self.seed, network, len(data.classes))
