"""Which attacks a robust accuracy is measured with, as plain data.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks". ICML
2020, arXiv 2003.01690 (AutoAttack, version ``standard``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kernels.perturbation import Norm
from lightning_modules.attacks.base import BallAttack
from lightning_modules.attacks.pgd import PGD

Budget = Literal["fast", "standard"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One attack of a sequence.

    Attributes:
        name: in tables.
        attack: name of its class.
        keys: of the attack, without ``eps`` and ``norm``; ``targets`` are no more than there are other classes.
        step: step size in units of eps, where the attack takes one.
        gradients: it follows gradients of the network.
    """

    name: str
    attack: str
    keys: Mapping[str, int | str | None]
    step: float | None = None
    gradients: bool = True

    @property
    def settings(self) -> str:
        """The keys in words."""
        step = [] if self.step is None else [f"step {self.step:g} eps"]
        return ", ".join([*(f"{key} {value}" for key, value in self.keys.items() if value is not None), *step])


#: AutoAttack, version "standard": 100 iterations, 9 targets, 5000 queries, one restart each.
STANDARD = (
    Stage("APGD-CE", "APGDCE", {"steps": 100}),
    Stage("APGD-T", "APGDDLR", {"steps": 100, "targets": 9}),
    Stage("FAB-T", "FAB", {"steps": 100, "targets": 9}),
    Stage("Square", "Square", {"queries": 5000}, gradients=False),
)
#: Ours: what falls to a few steps costs a few steps, and the survivors meet the attack that finds nearly all of the
#: rest, from the nearest target on. An image that no attack fells costs 401 backwards, and 1910 with ``STANDARD``.
FAST = (
    Stage("APGD-CE", "APGDCE", {"steps": 20}),
    Stage("APGD-DLR", "APGDDLR", {"steps": 10, "targets": None}),
    Stage("APGD-T", "APGDDLR", {"steps": 40, "targets": 9}),
)
SEQUENCES: Mapping[Budget, tuple[Stage, ...]] = {"fast": FAST, "standard": STANDARD}

CURVE = Stage("PGD", "PGD", {"steps": 10}, step=0.25)
FGSM = Stage("FGSM", "PGD", {"steps": 1, "start": "none"}, step=1.0)
FEW_QUERIES = Stage("Square on a sample", "Square", {"queries": 200}, gradients=False)


def attack_class(name: str) -> type[BallAttack]:
    """The class of this name; imported only where a sequence asks for it."""
    match name:
        case "APGDCE":
            from lightning_modules.attacks.apgd_ce import APGDCE

            return APGDCE
        case "APGDDLR":
            from lightning_modules.attacks.apgd_dlr import APGDDLR

            return APGDDLR
        case "FAB":
            from lightning_modules.attacks.fab import FAB

            return FAB
        case "Square":
            from lightning_modules.attacks.square import Square

            return Square
    return PGD


def attack_of(stage: Stage, eps: float, norm: Norm, classes: int) -> BallAttack:
    """The attack of a stage in the ball of radius ``eps``, against a network with so many classes."""
    keys: dict[str, Any] = dict(stage.keys)
    if keys.get("targets"):
        keys["targets"] = min(keys["targets"], classes - 1)
    if stage.step is not None:
        keys["step_size"] = stage.step * eps
    made: Any = attack_class(stage.attack)  # whose keys are its own
    attack: BallAttack = made(eps=eps, norm=norm, **keys)
    return attack
