"""The parts of one task, as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kernels.batch import Step, Update
from lightning_modules.composition import check_composition
from lightning_modules.frozen import Frozen
from lightning_modules.gradients.base import Gradient
from lightning_modules.gradients.sum import Sum
from lightning_modules.part import (
    MAIN,
    Attack,
    Context,
    Loss,
    Mixing,
    Part,
    Reader,
    Regularizer,
    Reweighting,
    TrainingData,
    Unsuited,
    split_view,
)
from lightning_modules.reweightings.uniform import Uniform


class Parts(nn.Module):
    """Loss, regularizers and the optional seats, refused when they contradict each other.

    Args:
        loss: the loss.
        regularizers: by name.
        mixing, attack: None where the seat is empty.
        reweighting: uniform by default.
        gradient: the sum by default.
        head: of the network, which keeps owning its weights; here it takes part in set-up, commits and checks, as does
            that of each further network that is trained.
        networks: further networks by name, for views such as ``peer/main``. They are trained with the main one, but for
            a ``Frozen`` one.
        others: parts without a seat in the step, by the name a user knows them by (``diagnostics/forgetting``); they
            take part in every moment.

    Raises:
        ValueError: two parts that cannot work together, with the reason, or another one that is no part.
    """

    def __init__(
        self,
        loss: Loss,
        regularizers: Mapping[str, Regularizer] | None = None,
        mixing: Mixing | None = None,
        attack: Attack | None = None,
        reweighting: Reweighting | None = None,
        gradient: Gradient | None = None,
        head: Part | None = None,
        networks: Mapping[str, nn.Module] | None = None,
        others: Mapping[str, Part] | None = None,
    ) -> None:
        super().__init__()
        self._heads: dict[str, Part] = {}  # in a dict, so that they are not registered a second time
        if head is not None:
            self._heads["head"] = head
        for name, network in (networks or {}).items():
            own = None if isinstance(network, Frozen) else getattr(network, "head", None)
            if isinstance(own, Part):
                self._heads[f"{name}/head"] = own
        self.loss = loss
        self.regularizers = nn.ModuleDict(dict(regularizers or {}))
        self.mixing, self.attack = mixing, attack
        self.reweighting = reweighting or Uniform()
        self.gradient = gradient or Sum()
        self.networks = nn.ModuleDict(dict(networks or {}))
        self.trained = [module for module in self.networks.values() if not isinstance(module, Frozen)]
        self.others = nn.ModuleDict(_parts(others or {}))
        for _, part in self.named():
            if isinstance(part, Reader) and part.follows_prediction:
                part.view = loss.prediction
        check_composition(list(self.named()), list(self.networks))
        self._writers, self._beginners = self._that("commit"), self._that("begin")
        readers = [loss, *(part for _, part in self.named() if part is not loss)]
        self.views = tuple(dict.fromkeys(view for part in readers for view in part.views))
        first = {view: part for part in reversed(readers) for view in part.views}
        self.still = frozenset(view for view, part in first.items() if view in part.still)
        self.maps = _maps(readers)

    @property
    def networks_read(self) -> frozenset[str]:
        """Names of the networks that some view is of."""
        return frozenset(split_view(view)[0] for view in self.views)

    def _that(self, moment: str) -> list[Part]:
        """The parts for which a moment means something."""
        return [part for _, part in self.named() if getattr(type(part), moment) is not getattr(Part, moment)]

    def named(self) -> Iterator[tuple[str, Part]]:
        """Every part with the name a user knows it by."""
        for kind in ("mixing", "attack", "loss", "reweighting", "gradient"):
            part = getattr(self, kind)
            if part is not None:
                yield kind, part
        for name, part in self.regularizers.items():
            yield name, part  # type: ignore[misc]
        yield from self.others.items()  # type: ignore[misc]
        yield from self._heads.items()

    def setup(self, context: Context) -> None:
        """Let every part allocate its state.

        Raises:
            ValueError: parts that do not suit the networks of the run, all of them at once; or a setting of one.
        """
        steps, regularizers = getattr(self.attack, "steps", None), dict(self.regularizers.items())
        context = replace(context, attack_steps=steps, regularizers=regularizers)
        problems = []
        for name, part in self.named():
            try:
                part.setup(context)
            except Unsuited as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("these parts cannot work together:\n- " + "\n- ".join(problems))

    @torch.no_grad()
    def prepare(self, data: TrainingData) -> None:
        """Let every part look at the data, before update 0."""
        for part in self._that("prepare"):
            part.prepare(data)

    def begin(self, step: Step) -> None:
        """Let every part draw what holds for the update."""
        for part in self._beginners:
            part.begin(step)

    @torch.no_grad()
    def commit(self, result: Update, step: Step) -> None:
        """Let every part write its state, after a successful update."""
        for part in self._writers:
            part.commit(result, step)

    @torch.no_grad()
    def validated(self, network: nn.Module, metrics: dict[str, float]) -> None:
        """Let parts set what validation decides."""
        for part in self._that("validated"):
            part.validated(network, metrics)

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

    def files(self, folder: Path) -> None:
        """Let every part that has files write them, into a folder of its own."""
        for name, part in self.named():
            if type(part).files is not Part.files:
                (folder / name).mkdir(parents=True, exist_ok=True)
                part.files(folder / name)

    def idle(self) -> list[str]:
        """Names of parts that never acted."""
        return [name for name, part in self.named() if not part.acted()]


def _maps(readers: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """The feature maps that are read of each view."""
    found: dict[str, dict[str, None]] = {}
    for part in readers:
        for view in (part.views or (MAIN,)) if part.maps else ():
            found.setdefault(view, {}).update(dict.fromkeys(part.maps))
    return {view: tuple(names) for view, names in found.items()}


def _parts(others: Mapping[str, Part]) -> dict[str, Part]:
    wrong = {name: type(part).__name__ for name, part in others.items() if not isinstance(part, Part)}
    if wrong:
        raise ValueError(
            "; ".join(f"{name}: a {kind} takes part in nothing" for name, kind in wrong.items())
            + "; let the kind of its group derive from lightning_modules.part.Part, whose moments are called"
        )
    return dict(others)
