"""Accuracy under common corruptions: noise, blur, weather, digital artefacts."""

from __future__ import annotations

from typing import Annotated

from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.corruption_images import GROUPS, KINDS, SMALLEST, corrupting
from lightning_modules.evaluators.corruption_measurement import CorruptionMeasurement, Settings
from lightning_modules.network import Network


class CorruptionsEvaluator(Evaluator):
    """Accuracy under the corruptions of ImageNet-C: 15 of the benchmark and 4 extra ones, by kind and severity.

    Images become uint8, are corrupted at the size the network sees, and go back to [0, 1]. What is drawn for an image
    depends on (seed, index, kind, severity) alone. Hendrycks, Dietterich 2019, arXiv 1903.12261; needs the package
    imagecorruptions-imaug.

    Args:
        kinds: names, or groups: noise, blur, weather, digital, extra. None for all 19.
        severities: of 1 to 5.
        limit: how many images are corrupted, chosen at random; they wait in memory. None for all, as they come.
        seed: of corruptions and choices.
        num_pictures: images, chosen at random, pictured under every kind at the middle one of the severities.

    Raises:
        ValueError: the package is absent, a kind is none, or kinds or severities are empty.
    """

    reads_logits = True
    smallest_image = SMALLEST

    def __init__(
        self,
        *,
        kinds: list[str] | None = None,
        severities: list[Annotated[int, "1 <= x <= 5"]] | None = None,
        limit: Annotated[int, "x >= 1"] | None = None,
        seed: Annotated[int, "0 <= x <= 4294967295"] = 0,
        num_pictures: Annotated[int, "x >= 0"] = 2,
    ) -> None:
        asked = {member for kind in (KINDS if kinds is None else kinds) for member in GROUPS.get(kind, (kind,))}
        steps = sorted({1, 2, 3, 4, 5} if severities is None else set(severities))
        if unknown := asked - set(KINDS):
            raise ValueError(f"kinds names {', '.join(sorted(unknown))}; there are {', '.join([*GROUPS, *KINDS])}")
        if not asked or not steps:
            raise ValueError("kinds and severities must name at least one each; null stands for all")
        corrupting()  # is it there? Training may come first
        chosen = tuple(kind for kind in KINDS if kind in asked)
        self.settings = Settings(chosen, tuple(steps), limit, seed, num_pictures)

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return CorruptionMeasurement(self.settings, network, data)
