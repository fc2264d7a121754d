"""The contract of surgery: a change of the network itself, once, after pretrained weights and before the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from torch import nn

from kernels.ranges import RangeChecked
from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.changes import Changes

Phase = Literal["replace", "operation", "parametrize"]
#: The order of surgeries: replace modules, change one layer's operation, parametrize weights.
PHASES: tuple[Phase, ...] = ("replace", "operation", "parametrize")


class Surgery(RangeChecked):
    """Changes modules of the backbone in place. The order of the configuration does not matter: phases decide.

    Class attributes:
        phase: when it is applied among several.
        rank: its place among those of one phase, lower first.
        does: what it does to the network: ``replaces_batch_norm``, ``standardizes_weights``, ...
        refuses: effects of other surgeries that make this one meaningless, each with the mathematical reason.

    Args:
        include: patterns of module names (as in a shell, relative to the backbone) that are considered; None for all.
        exclude: patterns of names that are left as they are.
    """

    phase: ClassVar[Phase]
    rank: ClassVar[int] = 0
    does: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[dict[str, str]] = {}

    def __init__(self, *, include: list[str] | None = None, exclude: list[str] | None = None) -> None:
        self.include, self.exclude = include, exclude or []

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Change the backbone; names of modules and keys of the state_dict stay whenever possible.

        Args:
            backbone: the timm model, with its weights.
            anatomy: of this backbone, as it is now.

        Raises:
            ValueError: the surgery was applied before, or is impossible here.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(backbone, anatomy)")

    def fold(self, backbone: nn.Module) -> list[str]:
        """Take the surgery out of a copy of the trained backbone without changing what it computes in eval mode.

        Returns:
            One sentence for each kind of module that has to stay; none where the backbone is plain again.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fold(backbone)")

    def chosen(self, layers: Iterable[Layer], changes: Changes, why_not: Callable[[Layer], str | None]) -> list[Layer]:
        """The layers that match the patterns and that ``why_not`` has nothing against; the others go to ``skipped``.

        Raises:
            ValueError: none is left, with the reasons.
        """
        found = []
        for layer in layers:
            if reason := self._pattern(layer.name) or why_not(layer):
                changes.skipped[layer.name] = reason
            else:
                found.append(layer)
        if not found:
            reasons = "; ".join(dict.fromkeys(changes.skipped.values())) or "it has no layer of that kind"
            raise ValueError(f"{type(self).__name__} matches no module of this backbone: {reasons}")
        return found

    def _pattern(self, name: str) -> str | None:
        if self.include is not None and not _matches(name, self.include):
            return "not in include"
        return "in exclude" if _matches(name, self.exclude) else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_together(surgeries: dict[str, Surgery]) -> None:
    """Refuse surgeries that contradict each other.

    Raises:
        ValueError: naming every such pair and its reason.
    """
    problems = [
        f"{name} cannot be combined with {other}: {reason}"
        for name, surgery in surgeries.items()
        for effect, reason in surgery.refuses.items()
        for other, by in surgeries.items()
        if other != name and effect in by.does
    ]
    if problems:
        raise ValueError("\n".join(["these surgeries cannot work together:", *problems]))


def operate(backbone: nn.Module, surgeries: dict[str, Surgery], image_size: int | None = None) -> list[str]:
    """Apply surgeries in the order of their phases.

    Args:
        backbone: the timm model, with its weights.
        surgeries: by name.
        image_size: side of the images of the one forward that reads the anatomy; None for the model's own.

    Returns:
        The report, line by line.

    Raises:
        ValueError: a combination or a surgery that is impossible, with the reason.
    """
    check_together(surgeries)
    lines: list[str] = []
    for phase in PHASES:
        now = dict(sorted(surgeries.items(), key=lambda item: item[1].rank))
        now = {name: surgery for name, surgery in now.items() if surgery.phase == phase}
        if now:
            anatomy = Anatomy.of(backbone, image_size)
            for name, surgery in now.items():
                lines += surgery.apply(backbone, anatomy).lines(name)
    return lines


def fold(backbone: nn.Module, surgeries: dict[str, Surgery]) -> dict[str, list[str]]:
    """Take surgeries out again, last phase first.

    Returns:
        {name of a surgery whose modules have to stay: sentences about them}; empty where the backbone is plain.
    """
    ordered = sorted(surgeries.items(), key=lambda item: PHASES.index(item[1].phase), reverse=True)
    return {name: lines for name, surgery in ordered if (lines := surgery.fold(backbone))}
