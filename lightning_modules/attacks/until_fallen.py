"""What the attacks of AutoAttack share: several runs, from which a sample leaves as soon as it is misclassified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor

from kernels.perturbation import box, project_l2
from lightning_modules.attacks.base import BallAttack, Draw, Found, hard
from lightning_modules.attacks.victim import Victim

#: A run looks for samples that have fallen every so many steps: each look waits for the device.
LOOK = 4


@dataclass
class Standing:
    """The samples of a run that have not left it; a subclass adds its own tensors ``[B, ...]``.

    Attributes:
        row: ``[B]`` which sample of the run each is.
        image: ``[B, C, H, W]`` the clean image.
        low, high: like ``image``, bounds of the L-inf ball.
        label: ``[B]`` the true class.
        target: ``[B]`` the class that a targeted run goes to.
        best: like ``image``, the best image so far: the one that fell, or the one of highest value.
        value: ``[B]`` of ``best``.
        fallen: ``[B]`` whether ``best`` is misclassified; then nothing replaces it.
        draw: random numbers.
    """

    row: Tensor
    image: Tensor
    low: Tensor
    high: Tensor
    label: Tensor
    target: Tensor
    best: Tensor
    value: Tensor
    fallen: Tensor
    draw: Draw

    def of(self, rows: Tensor) -> Self:
        """Some of the samples."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {k: v.of(rows) if isinstance(v, Draw) else v[rows] for k, v in held.items()}
        return replace(self, **some)

    def offer(self, image: Tensor, value: Tensor, fell: Tensor) -> Tensor:
        """Take the images that fell or are better than the best; ``[B]`` which."""
        taken = (fell | (value > self.value)) & ~self.fallen
        self.best = torch.where(taken[:, None, None, None], image, self.best)
        self.value = torch.where(taken, value, self.value)
        self.fallen = self.fallen | (fell & taken)
        return taken


S = TypeVar("S", bound=Standing)


class UntilFallen(BallAttack, Generic[S]):
    """Runs of an attack, one for each target and restart, each on the samples that still stand.

    A sample that is misclassified has fallen: it keeps that image and takes part in no further pass, from the clean
    image on, which is its own adversarial image where it is misclassified. Of the others the image of highest value in
    all runs is kept. Networks are attacked as they predict (there is no ``norms``), because statistics of a batch would
    change with each sample that leaves. A network of one class has no other to fall to, and the image stays.

    A subclass defines ``start`` and ``advance``.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: of a run.
        targets: the classes of highest logits at the clean image, the true one aside, each with runs of its own; fewer
            where the network has fewer, with a warning. None for untargeted runs.
        restarts: runs for each target.
        bf16: as for ``BallAttack``.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str,
        norm: Literal["linf", "l2"],
        steps: Annotated[int, "x >= 0"],
        targets: Annotated[int, "x >= 1"] | None = None,
        restarts: Annotated[int, "x >= 1"] = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, bf16=bf16)
        self.steps, self.targets, self.restarts = steps, targets, restarts

    def start(self, victim: Victim, standing: Standing) -> S:
        """The state of a run before its first step."""
        raise NotImplementedError(f"{type(self).__name__} must define start(victim, standing)")

    def advance(self, victim: Victim, state: S, step: int) -> None:
        """One step of every sample, from 0 on; ``state.offer`` is given what it finds."""
        raise NotImplementedError(f"{type(self).__name__} must define advance(victim, state, step)")

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        if not self.eps:
            return Found(image)
        right, clean = hard(label), victim.logits(image)
        standing = (clean.argmax(1) == right).nonzero().flatten()
        others = clean.scatter(1, right[:, None], float("-inf"))
        rivals = others.argsort(stable=True, dim=1, descending=True)[:, :-1]
        best, value = image.clone(), clean.new_full((len(image),), float("-inf"))
        for run in range(self._runs(rivals.shape[1])):
            if not len(standing):
                break
            target = rivals[standing, run // self.restarts]
            drawn = draw.of(standing) if run == 0 else draw.of(standing).again(run)
            found = self._run(victim, self._all(image[standing], right[standing], target, drawn, value))
            better = found.fallen | (found.value > value[standing])
            best[standing] = torch.where(better[:, None, None, None], found.best, best[standing])
            value[standing] = torch.maximum(value[standing], found.value)
            standing = standing[~found.fallen]
        return Found(best)

    def project(self, state: Standing, moved: Tensor) -> Tensor:
        """Images put back into the ball and into [0, 1]."""
        return moved.clamp(state.low, state.high) if self.norm == "linf" else project_l2(state.image, moved, self.eps)

    def _runs(self, others: int) -> int:
        wanted = self.targets or 1
        if self.targets and 0 < others < wanted:
            warnings.warn(
                f"targets={wanted}, and the network has {others} classes beside the true one: "
                f"{type(self).__name__} goes to each of these",
                stacklevel=3,
            )
        return min(wanted, others) * self.restarts

    def _all(self, image: Tensor, label: Tensor, target: Tensor, draw: Draw, like: Tensor) -> Standing:
        """Every sample of a run, before anything was found."""
        low, high = box(image, self.eps) if self.norm == "linf" else (image, image)
        row = torch.arange(len(image), device=image.device)
        nothing, none = like.new_full((len(image),), float("-inf")), torch.zeros_like(row, dtype=torch.bool)
        return Standing(row, image, low, high, label, target, image, nothing, none, draw)

    def _run(self, victim: Victim, found: Standing) -> Standing:
        """One run; ``found`` is filled with the best of every sample."""
        state = self.start(victim, found)
        found = replace(found, best=found.best.clone(), value=found.value.clone(), fallen=found.fallen.clone())
        for step in range(self.steps):
            if step % LOOK == 0:
                standing = (~state.fallen).nonzero().flatten()
                if len(standing) < len(state.row):
                    _fill(found, state)
                    state = state.of(standing)
                if not len(standing):
                    break
            self.advance(victim, state, step)
        _fill(found, state)
        return found


def _fill(found: Standing, state: Standing) -> None:
    found.best[state.row], found.value[state.row], found.fallen[state.row] = state.best, state.value, state.fallen
