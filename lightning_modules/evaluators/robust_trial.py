"""One attack against some samples: which of them withstand it, what that cost, and whether it played by the rules."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from kernels.perturbation import Norm, norm_of
from lightning_modules.attacks.base import BallAttack, Draw
from lightning_modules.attacks.victim import Victim
from lightning_modules.evaluators.robust_inputs import check_finite

OUTSIDE = 1e-6  # how far, in pixel values, rounding may carry an image out of its ball


@dataclass(slots=True)
class Cost:
    """What attacks took.

    Attributes:
        forwards: images through the network.
        backwards: images whose gradient was taken.
        seconds: wall time.
    """

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards, self.seconds + other.seconds)


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples under attack.

    Attributes:
        image: ``[B, C, H, W]`` in [0, 1].
        label: ``[B]`` classes.
        draw: their random numbers.
    """

    image: Tensor
    label: Tensor
    draw: Draw

    def __len__(self) -> int:
        return len(self.image)

    def of(self, rows: Tensor) -> Samples:
        """Some of them."""
        return Samples(self.image[rows], self.label[rows], self.draw.of(rows))


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one attack.

    Attributes:
        fell: ``[B]`` bool, the image it found lies in the ball and is misclassified.
        image: ``[B, C, H, W]`` as found.
        predicted: ``[B]`` class of that image.
        outside: how many images lie outside of the ball or of [0, 1]; these count as withstood.
        cost: with one forward that looks at what was found.
    """

    fell: Tensor
    image: Tensor
    predicted: Tensor
    outside: int
    cost: Cost


def attempted(attack: BallAttack, norm: Norm, victim: Victim, samples: Samples) -> Trial:
    """Attack the samples and look, with a forward of its own, at what was found.

    Raises:
        ValueError: the scores of an attacked image are not finite.
    """
    before, start = (victim.forwards, victim.backwards), time.perf_counter()
    found = attack.search(victim, samples.image, samples.label, samples.draw).image
    logits = victim.logits(found)
    check_finite(logits, "an attacked image")
    predicted = logits.argmax(1)
    inside = _inside(samples.image, found, attack.eps, norm)
    fell = (predicted != samples.label) & inside
    outside = int((~inside).sum())  # waits for the device, so that the time is that of the work
    spent = Cost(victim.forwards - before[0], victim.backwards - before[1], time.perf_counter() - start)
    return Trial(fell, found, predicted, outside, spent)


def _inside(image: Tensor, found: Tensor, eps: float, norm: Norm) -> Tensor:
    moved = (found.double() - image.double()).abs()
    far = moved.flatten(1).amax(1) if norm == "linf" else norm_of(moved).flatten()
    low, high = found.flatten(1).amin(1), found.flatten(1).amax(1)
    return (far <= eps + OUTSIDE) & (low >= 0) & (high <= 1)
