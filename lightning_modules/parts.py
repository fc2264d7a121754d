"""The parts of one task, as one module, and the rules of their composition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from kernels.batch import Batch, Output, Step
from lightning_modules.gradients.base import Gradient
from lightning_modules.gradients.sum import Sum
from lightning_modules.part import Attack, Context, Loss, Mixing, Part, Regularizer, Reweighting, Teacher
from lightning_modules.reweightings.uniform import Uniform


class Parts(nn.Module):
    """Loss, regularizers and the optional seats, refused when they contradict each other.

    Args:
        loss: the loss.
        regularizers: by name.
        mixing, attack, teacher: None where the seat is empty.
        reweighting: uniform by default.
        gradient: the sum by default.
        head: of the network, which keeps owning its weights; here it takes part in set-up, commits and checks.

    Raises:
        ValueError: two parts that cannot work together, with the reason.
    """

    def __init__(
        self,
        loss: Loss,
        regularizers: Mapping[str, Regularizer] | None = None,
        mixing: Mixing | None = None,
        attack: Attack | None = None,
        teacher: Teacher | None = None,
        reweighting: Reweighting | None = None,
        gradient: Gradient | None = None,
        head: Part | None = None,
    ) -> None:
        super().__init__()
        self._head = [head] if head is not None else []  # in a list, so that it is not registered a second time
        self.loss = loss
        self.regularizers = nn.ModuleDict(dict(regularizers or {}))
        self.mixing, self.attack, self.teacher = mixing, attack, teacher
        self.reweighting = reweighting or Uniform()
        self.gradient = gradient or Sum()
        check_composition(self)
        self._writers = [part for _, part in self.named() if type(part).commit is not Part.commit]
        self.views = tuple(dict.fromkeys(view for _, part in self.named() for view in part.views))
        self.maps = tuple(dict.fromkeys(name for _, part in self.named() for name in part.maps))

    def named(self) -> Iterator[tuple[str, Part]]:
        """Every part with the name a user knows it by."""
        for kind in ("mixing", "attack", "teacher", "loss", "reweighting", "gradient"):
            part = getattr(self, kind)
            if part is not None:
                yield kind, part
        for name, part in self.regularizers.items():
            yield name, part  # type: ignore[misc]
        for part in self._head:
            yield "head", part

    def setup(self, context: Context) -> None:
        """Let every part allocate its state."""
        for _, part in self.named():
            part.setup(context)

    @torch.no_grad()
    def commit(self, outputs: dict[str, Output], batch: Batch, step: Step) -> None:
        """Let every part write its state, after a successful update."""
        for part in self._writers:
            part.commit(outputs, batch, step)

    def after_validation(self, metrics: dict[str, float]) -> None:
        """Let parts set what validation decides."""
        for _, part in self.named():
            part.after_validation(metrics)

    def end_epoch(self) -> dict[str, float]:
        """Diagnostics of every part, as ``kind/name``-prefixed columns."""
        columns: dict[str, float] = {}
        for name, part in self.named():
            prefix = f"regularizer/{name}" if name in self.regularizers else name
            columns |= {f"{prefix}/{key}": value for key, value in part.end_epoch().items()}
        return columns

    def report(self) -> dict[str, dict[str, float]]:
        """What each part did over the run, where it has something to say."""
        return {name: report for name, part in self.named() if (report := part.report())}

    def idle(self) -> list[str]:
        """Names of parts that never acted."""
        return [name for name, part in self.named() if not part.acted()]


def check_composition(parts: Parts) -> None:
    """Refuse pairs of parts that contradict each other, all problems at once."""
    named = list(parts.named())
    problems = []
    for name, part in named:
        others = [(other, effect) for other, acting in named if acting is not part for effect in _effects(acting)]
        problems += [
            f"{name} cannot be combined with {other}: {part.refuses[effect]}"
            for other, effect in others
            if effect in part.refuses
        ]
        effects = {effect for _, effect in others}
        problems += [f"{name} needs {need!r}, which nothing can give" for need in sorted(part.needs - NEEDS)]
        missing = [need for need in sorted(part.needs & NEEDS) if _missing(need, parts, effects)]
        problems += [f"{name} needs {need}: {_HOW[need]}" for need in missing]
        problems += [f"{name}: {objection}" for objection in part.objections(parts.loss)]
        for view in part.views:
            if view == "adversarial" and parts.attack is None:
                problems.append(f"{name} reads the adversarial view, and there is no attack")
    if not parts.loss.per_sample and type(parts.reweighting) is not Uniform:
        problems.append(
            f"reweighting needs per-sample losses, and {type(parts.loss).__name__} is defined on pairs or batches; "
            "remove it with ~reweighting"
        )
    if problems:
        raise ValueError("these parts cannot work together:\n- " + "\n- ".join(problems))


#: What a part can ask for. ``index`` is in every batch.
NEEDS = frozenset({"attack", "teacher", "hard_labels", "logits", "embedding", "index", "pair_form"})
_HOW = {
    "logits": "choose a head that gives them, such as head=linear",
    "embedding": "choose a head that gives one, such as head=embedding",
    "pair_form": "choose a loss on pairs that can be mixed (loss=multi_similarity, contrastive, proxy_anchor, ...)",
    "attack": "add one with attack=NAME",
    "teacher": "add one with teacher=NAME",
    "hard_labels": "a class for each sample, and mixing makes soft labels; remove it with ~mixing",
}


def _missing(need: str, parts: Parts, effects: set[str]) -> bool:
    """Whether the other parts, with these effects, leave a need open."""
    match need:
        case "attack":
            return parts.attack is None
        case "teacher":
            return parts.teacher is None
        case "hard_labels":
            return "mixes_labels" in effects
        case "pair_form":
            return parts.loss.pair_form is None
        case "logits" | "embedding":
            return any(need not in head.gives for head in parts._head)
    return False


def _effects(part: Part) -> frozenset[str]:
    """What a part does to the rest; mixing behind the backbone also mixes features."""
    mixes_features = isinstance(part, Mixing) and part.at == "feature_map"
    return part.does | {"mixes_features"} if mixes_features else part.does
