"""One evaluation under corruptions: every image of the stream, or a random sample, under every kind and severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.batch import Batch, Output
from lightning_modules.distributed import total_over_processes
from lightning_modules.evaluators.base import EvaluationData, Measurement, device_of
from lightning_modules.evaluators.batch_sample import BatchSample
from lightning_modules.evaluators.corruption_images import BENCHMARK, SMALLEST, Pixels, corrupted, package_version
from lightning_modules.evaluators.corruption_view import kind_table, severity_curve
from lightning_modules.evaluators.random_rows import RandomRows
from lightning_modules.evaluators.result import CaptionedPicture, Evaluation, PictureRow, Table
from lightning_modules.evaluators.robust_inputs import check_batch, check_finite
from lightning_modules.network import Network


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``CorruptionsEvaluator`` was asked for; kinds in the order of the benchmark, severities ascending."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    limit: int | None
    seed: int
    num_pictures: int


class CorruptionMeasurement(Measurement):
    """Counts what is right under every kind and severity."""

    def __init__(self, settings: Settings, network: Network, data: EvaluationData) -> None:
        self.settings, self.network, self.data = settings, network, data
        self.right_KS = torch.zeros(len(settings.kinds), len(settings.severities), dtype=torch.int64)
        self.counts = torch.zeros(2, dtype=torch.int64)  # images, those right without a corruption
        self.size = ""
        self.sample = BatchSample(settings.limit, settings.seed, "corruptions.limit")
        shown = 0 if data.brief else settings.num_pictures
        self.pictures: RandomRows[PictureRow] = RandomRows(shown, settings.seed, "corruptions.pictures")

    def add(self, batch: Batch, output: Output) -> None:
        """Corrupt the images, or keep those of the sample.

        Raises:
            ValueError: images that are smaller than 32 px, not of three channels or outside of [0, 1], soft labels,
                other classes than the data's, scores that are not finite.
        """
        if not len(batch):
            return
        _check_shape(batch.image)
        check_batch(batch, output.class_scores, len(self.data.classes))
        for part in self.sample.now(batch):
            self._measure(part)

    @torch.no_grad()
    def _measure(self, batch: Batch) -> None:
        own, index = self.settings, batch.index.tolist()
        self.size = f"{batch.image.shape[-1]} x {batch.image.shape[-2]}"
        clean_B = self._predicted(batch.image)
        self.counts += torch.stack([torch.tensor(len(batch)), (clean_B == batch.label).sum().cpu()])
        pixels = _to_pixels(batch.image)
        middle = own.severities[len(own.severities) // 2]
        shown = {i: [self._picture(pixels[i], "clean", batch.label[i], clean_B[i])] for i in
                 self.pictures.wanted(batch.index)}  # fmt: skip
        for k, kind in enumerate(own.kinds):
            for s, severity in enumerate(own.severities):
                made = [corrupted(one, kind, severity, own.seed, i) for one, i in zip(pixels, index, strict=True)]
                predicted_B = self._predicted(_to_images(made, batch.image))
                self.right_KS[k, s] += (predicted_B == batch.label).sum().cpu()
                if severity == middle:
                    for i, pictures in shown.items():
                        words = kind.replace("_", " ")
                        pictures.append(self._picture(made[i], words, batch.label[i], predicted_B[i]))
        for i, pictures in shown.items():
            note = f"{self.data.classes[int(batch.label[i])]} · severity {middle}"
            self.pictures.add(batch.index[i : i + 1], [PictureRow(pictures, index[i], note)])

    def _predicted(self, image: Tensor) -> Tensor:
        logits = self.network(image).class_scores
        check_finite(logits, "a corrupted image")
        predicted_B: Tensor = logits.argmax(1)
        return predicted_B

    def _picture(self, pixels: Pixels, words: str, label: Tensor, predicted: Tensor) -> CaptionedPicture:
        taken = "" if int(label) == int(predicted) else f": taken for {self.data.classes[int(predicted)]}"
        return CaptionedPicture(pixels, words + taken)

    def result(self) -> Evaluation:
        """Metrics, accuracy by kind and over severity, pictures.

        Raises:
            ValueError: no data.
        """
        own = self.settings
        for part in self.sample.rest(device_of(self.network)):
            self._measure(part)
        place = device_of(self.network)
        images, clean = total_over_processes(self.counts.to(place)).tolist()
        if not images:
            raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
        accuracy_KS = total_over_processes(self.right_KS.to(place)).double().cpu().numpy() / images
        metrics = _metrics(clean / images, own.kinds, accuracy_KS) | {"images": images}
        if self.data.brief:
            return Evaluation(metrics=metrics)
        rows = self.pictures.rows()
        return Evaluation(
            metrics=metrics,
            tables={"Protocol": Table(["protocol"], [[self._protocol(images)]])}
            | kind_table(own.kinds, own.severities, accuracy_KS),
            figures=severity_curve(own.kinds, own.severities, accuracy_KS, clean / images),
            pictures={"Corrupted images": rows} if rows else {},
        )

    def _protocol(self, images: int) -> str:
        own = self.settings
        chosen = f"all {images} images" if own.limit is None else f"{images} of {self.sample.seen} images at random"
        severities = ", ".join(map(str, own.severities))
        return (
            f"{len(own.kinds)} kinds, severity {severities}, {chosen}, seed {own.seed}, {self.size} px, "
            f"{package_version()}"
        )


def _metrics(clean: float, kinds: tuple[str, ...], accuracy_KS: np.ndarray[Any, Any]) -> dict[str, float]:
    by_kind = accuracy_KS.mean(1)
    metrics = {"accuracy": clean}
    for name, benchmark in (("corruption_accuracy", True), ("extra_accuracy", False)):
        if asked := [float(value) for kind, value in zip(kinds, by_kind, strict=True)
                     if (kind in BENCHMARK) == benchmark]:  # fmt: skip
            metrics[name] = sum(asked) / len(asked)
    return metrics | {"worst_kind": float(by_kind.min())}


def _check_shape(image: Tensor) -> None:
    channels, height, width = image.shape[1:]
    if channels != 3 or min(height, width) < SMALLEST:
        raise ValueError(
            f"images of {channels} channels and {width} x {height} px; corruptions need three channels and at least "
            f"{SMALLEST} px a side: raise data.image_size, or take other data"
        )


def _to_pixels(image_B3HW: Tensor) -> Pixels:
    pixels = image_B3HW.double().clamp(0, 1).mul(255).round().to(torch.uint8)
    found: Pixels = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return found


def _to_images(pixels: list[Pixels], like: Tensor) -> Tensor:
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return (stacked.double() / 255).to(like)
