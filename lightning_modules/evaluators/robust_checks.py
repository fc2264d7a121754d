"""Attacks whose outcome is known beforehand where gradients tell the truth, and what it means when they come out
otherwise.

Carlini, Athalye, Papernot and others. "On Evaluating Adversarial Robustness". 2019, arXiv 1902.06705. Athalye,
Carlini, Wagner. "Obfuscated Gradients Give a False Sense of Security". ICML 2018, arXiv 1802.00420.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.counter_rng import uniform
from kernels.perturbation import Norm
from lightning_modules.attacks.victim import Victim
from lightning_modules.evaluators.robust_sequence import CURVE, FEW_QUERIES, FGSM, Budget, Stage, attack_of
from lightning_modules.evaluators.robust_trial import Cost, Samples, attempted

SAMPLED = 0.25  # share of the images that few-query Square attacks
TOLERATED = 0.002  # of the images: AutoAttack's own tolerance for what Square finds (its checks.py)
SAME = 1e-3  # of the largest score: what two forwards may differ by


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    Attributes:
        name: what must hold.
        passed: whether it does; None where there was nothing to measure.
        found: numbers.
        meaning: of a violation.
    """

    name: str
    passed: bool | None
    found: str
    meaning: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, ``violated`` or ``not measured``."""
        return {True: "pass", False: "violated", None: "not measured"}[self.passed]

    @property
    def reason(self) -> str:
        """What a violation means."""
        return self.meaning if self.passed is False else ""


class Checks:
    """Measures beside a sequence of attacks, batch by batch.

    Args:
        eps: radius of the sequence.
        norm: of the balls.
        multiples: radii of the curve in units of ``eps``; 0 and 1 are always among them.
        budget: of the sequence; the standard one has Square itself.
        seed: which images few-query Square attacks.
    """

    def __init__(self, eps: float, norm: Norm, multiples: Sequence[float], budget: Budget, seed: int) -> None:
        self.eps, self.norm, self.budget, self.seed = eps, norm, budget, seed
        self.multiples = sorted({0.0, 1.0, *map(float, multiples)})
        self.standing = dict.fromkeys(self.multiples, 0)
        self.cost = Cost()
        self.images = self.right = self.outside = self.zero = self.missed = 0
        self.standing_fgsm = self.standing_far = self.sampled = self.fell_to_square = 0
        self.differs = 0.0

    def add(self, victim: Victim, samples: Samples, right: Tensor, survived: Tensor, classes: int) -> Tensor:
        """One batch.

        Args:
            victim: the network.
            samples: ``[B]``.
            right: ``[B]`` bool, classified right without an attack.
            survived: ``[B]`` bool, and after the whole sequence.
            classes: of the network.

        Returns:
            ``[B]`` bool: survived, but fell to an attack of these within ``eps``.
        """
        before, start = (victim.forwards, victim.backwards), perf_counter()
        self._look(victim, samples, right)
        caught = torch.zeros_like(right)
        for multiple in self.multiples:
            fell = self._fell(CURVE, multiple * self.eps, victim, samples, right, classes)
            self.standing[multiple] += int((right & ~fell).sum())
            caught |= fell & (multiple <= 1)
        fell = self._fell(FGSM, self.eps, victim, samples, right, classes)
        self.standing_fgsm += int((right & ~fell).sum())
        caught |= fell
        whole = 1.0 if self.norm == "linf" else prod(samples.image.shape[1:]) ** 0.5
        far = self._fell(CURVE, max(whole, self.eps), victim, samples, right, classes)
        self.standing_far += int((right & ~far).sum())
        missed = caught & survived
        if self.budget == "fast":
            missed |= self._square(victim, samples, survived & ~missed, classes)
        self.missed += int((caught & survived).sum())
        self.cost += Cost(victim.forwards - before[0], victim.backwards - before[1], perf_counter() - start)
        return missed

    def _look(self, victim: Victim, samples: Samples, right: Tensor) -> None:
        """Without an attack: whether two forwards agree, and whether there is a gradient."""
        self.images, self.right = self.images + len(samples), self.right + int(right.sum())
        first = victim.logits(samples.image)
        gradient, _, again = victim.gradient(
            samples.image, lambda logits: cross_entropy(logits, samples.label, reduction="none")
        )
        self.zero += int((right & (gradient.flatten(1) == 0).all(1)).sum())
        self.differs = max(self.differs, float((first - again).abs().max() / first.abs().max().clamp_min(1e-12)))

    def _fell(self, stage: Stage, eps: float, victim: Victim, samples: Samples, among: Tensor, classes: int) -> Tensor:
        """``[B]`` which of some samples fall to an attack."""
        fell, rows = torch.zeros_like(among), among.nonzero()[:, 0]
        if len(rows):
            trial = attempted(attack_of(stage, eps, self.norm, classes), self.norm, victim, samples.of(rows))
            fell[rows] = trial.fell
            self.outside += trial.outside
        return fell

    def _square(self, victim: Victim, samples: Samples, survived: Tensor, classes: int) -> Tensor:
        index = samples.draw.index
        sample = uniform(self.seed, 0, index.cpu(), 0, ["robustness.square"])[0].to(survived.device) < SAMPLED
        fell = self._fell(FEW_QUERIES, self.eps, victim, samples, survived & sample, classes)
        self.sampled, self.fell_to_square = self.sampled + int(sample.sum()), self.fell_to_square + int(fell.sum())
        return fell

    def rows(self, chance: float, square: tuple[int, int] | None, outside: int) -> list[Check]:
        """What came of all batches.

        Args:
            chance: share of the most frequent class, the accuracy of a constant answer.
            square: with the standard budget, how many images Square felled after the others, and of how many.
            outside: how many images the sequence carried out of the ball.
        """
        at_zero, pgd, far = self.standing[0.0], self.standing[1.0], self.standing_far / self.images
        few = self.budget == "fast"
        return [
            Check(
                "eps = 0 equals clean accuracy",
                at_zero == self.right,
                f"{at_zero} of {self.images} right at eps = 0, {self.right} without an attack",
                "predictions change by themselves, or the attack leaves its ball",
            ),
            self._monotone(),
            Check(
                "very large eps leaves chance",
                far <= chance,
                f"accuracy {far:.1%} where every pixel may become anything, chance {chance:.1%}",
                "no image withstands that: gradients are masked",
            ),
            Check(
                "FGSM is no stronger than PGD",
                self.standing_fgsm >= pgd,
                f"{self.standing_fgsm} right under FGSM, {pgd} under PGD",
                "many small steps find less than one large one: gradients are masked",
            ),
            _of_square(*((self.fell_to_square, self.sampled) if few else square or (0, 0)), few),
            Check(
                "the sequence misses nothing simple",
                self.missed <= TOLERATED * self.images,
                f"{self.missed} survivors fell to FGSM or PGD, and count as fallen",
                "simple attacks find what strong ones miss: gradients are masked",
            ),
            Check(
                "two forwards agree",
                self.differs <= SAME,
                f"scores differ by {self.differs:.1g} of the largest",
                "layers act at random in eval mode: attacks would have to average over them",
            ),
            Check(
                "gradients are not zero",
                self.zero == 0,
                f"{self.zero} of {self.right} images without a gradient of the cross-entropy",
                "attacks that follow it stand still: gradients are masked",
            ),
            Check(
                "attacked images stay in the ball",
                self.outside + outside == 0,
                f"{self.outside + outside} outside, which count as withstood",
                "an attack breaks its rules",
            ),
        ]

    def _monotone(self) -> Check:
        name = "accuracy falls with eps"
        for low, high in zip(self.multiples, self.multiples[1:], strict=False):
            if self.standing[high] > self.standing[low]:
                found = f"{self.standing[low]} right at {low:g} eps, {self.standing[high]} at {high:g} eps"
                return Check(name, False, found, "a larger ball holds all of the smaller one: PGD gets lost in it")
        return Check(name, True, f"measured at {len(self.multiples)} radii up to {self.multiples[-1]:g} eps")


def _of_square(fell: int, of: int, few: bool) -> Check:
    asked = "few-query Square on a sample" if few else "Square"
    return Check(
        "Square is no stronger than gradients",
        fell <= TOLERATED * of if of else None,
        f"{fell} of {of} images fell to {asked} alone, and count as fallen" if of else f"no image came to {asked}",
        "an attack without gradients finds what they miss: gradients are masked",
    )
