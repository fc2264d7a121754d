"""Nearest class mean: how well the features of a network tell classes apart, without any classifier.

Mensink, Verbeek, Perronnin, Csurka. "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
Cost". IEEE TPAMI 2013.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from kernels.pairs import unit
from kernels.wilson import wilson_interval
from lightning_modules.class_means import SavedMeans, class_means_of
from lightning_modules.distributed import total_over_processes
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement, device_of
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.frozen import state_digest
from lightning_modules.network import Network


class NearestMean(Evaluator):
    """Accuracy of giving each image the class whose mean of training features is the nearest.

    The means are those of the pooled features of the training images, without augmentation; no head takes part, so that
    a backbone as it comes from timm can be measured. A class without training images is never given. Costs one pass
    over the training images.

    Metrics: ``accuracy``, its 95 % interval ``accuracy_low`` to ``accuracy_high`` (Wilson), and ``images``.

    Args:
        metric: cosine to the class means, or euclidean for distances of features as they are.
        save: leave class_means.safetensors in the output folder (see ``lightning_modules.class_means``).
    """

    compares = "training"
    selects = ("accuracy",)
    measures = ("accuracy", "accuracy_low", "accuracy_high", "images")

    def __init__(self, *, metric: Literal["cosine", "euclidean"] = "cosine", save: bool = False) -> None:
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric={metric!r} is unknown; choose cosine or euclidean")
        self.metric, self.save = metric, save

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        """Take the class means.

        Raises:
            ValueError: there are no training images, or no folder for the file.
        """
        if data.train is None:
            raise ValueError("nearest_mean takes class means of the training images, and this data has none")
        if self.save and data.output is None:
            raise ValueError("save=true needs a folder to write to: EvaluationData.output")
        found = class_means_of(network, data.train(), len(data.classes), device_of(network))
        if self.save and data.output is not None and not data.brief:
            key = data.key("train_eval") if data.key else ""
            digest = state_digest(network.state_dict())
            kept = SavedMeans(found.means(), found.counts, digest, key, tuple(data.classes))
            kept.save(data.output / "class_means.safetensors")
        means_CD, counts_C = (value.to(device_of(network)) for value in (found.means(), found.counts))
        return _Counts(means_CD, counts_C, self.metric)


class _Counts(Measurement):
    """How many images, and how many of them right; sums stay on the device until the end."""

    def __init__(self, means_CD: Tensor, counts_C: Tensor, metric: str) -> None:
        self.means_CD, self.absent_C, self.metric = means_CD, counts_C == 0, metric
        self.sums = torch.zeros(2, dtype=torch.int64, device=means_CD.device)

    def add(self, batch: Batch, output: Output) -> None:
        """Count a batch.

        Raises:
            ValueError: the network gives no features.
        """
        if output.features is None:
            raise ValueError("the network gives no features, and nearest_mean compares them with class means")
        right_B = nearest(output.features, self.means_CD, self.absent_C, self.metric) == batch.label
        self.sums += torch.stack([right_B.sum(), right_B.new_tensor(len(batch), dtype=torch.int64)])

    def result(self) -> Evaluation:
        """Over all processes.

        Raises:
            ValueError: no data.
        """
        right, images = total_over_processes(self.sums).tolist()
        if not images:
            raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
        low, high = wilson_interval(right, images)
        return Evaluation(
            metrics={"accuracy": right / images, "accuracy_low": low, "accuracy_high": high, "images": images}
        )


def nearest(features_BD: Tensor, means_CD: Tensor, absent_C: Tensor, metric: str) -> Tensor:
    """``[B]`` the class whose mean is nearest, in float64; of equally near ones the first."""
    features_BD = features_BD.detach().double()
    if metric == "cosine":
        score_BC = unit(features_BD) @ unit(means_CD).T
    else:  # the nearest is the one with the largest <x, m> - |m|^2 / 2
        score_BC = features_BD @ means_CD.T - means_CD.square().sum(1) / 2
    return score_BC.masked_fill(absent_C, -torch.inf).argmax(1)
