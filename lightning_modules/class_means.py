"""Class means of a network's pooled features over a data set, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kernels.batch import Batch
from kernels.class_means import ClassMeans
from lightning_modules.distributed import total_over_processes
from lightning_modules.frozen import Frozen
from lightning_modules.weights_file import read_weights
from lightning_modules.whole_file import whole_file

FORMAT = "class_means/1"


@torch.no_grad()
def class_means_of(
    network: nn.Module, batches: Iterable[Batch], num_classes: int, device: torch.device | str
) -> ClassMeans:
    """Sums and counts of the pooled features of each class, in one pass and in float64.

    In eval mode and without gradient; modes and random state are put back. Under several processes the batches of each
    are its share of the data, as those of ``TrainingData.batches`` and of a validation are; what they have seen is
    added up, so that all of them have the same means, those of all the data.

    Args:
        network: gives ``Output.features``; a ``Network``, a teacher.
        batches: with ``[B]`` classes below ``num_classes``.
        num_classes: C.
        device: where the network is.

    Returns:
        On the host.

    Raises:
        ValueError: no image, a network without features, labels that are no classes below C.
    """
    device, found = torch.device(device), None
    dtype = next((p.dtype for p in _weights_of(network).parameters() if p.is_floating_point()), None)
    with _looked_at(network, device):
        for batch in batches:
            image = batch.image.to(device, dtype, non_blocking=True)
            features = network(image).features
            if features is None:
                raise ValueError(
                    f"{type(network).__name__} gives no features, of which there could be means by class; take a "
                    "single network that gives its pooled features"
                )
            _check_labels(batch.label, num_classes)
            found = found or ClassMeans.empty(num_classes, features.shape[1])
            # On the host, where sums do not depend on the order in which threads come to add.
            found.add(features.cpu(), batch.label.cpu())
    if found is None:
        raise ValueError("there is no image to take class means of; check data.root and data.limit_train")
    sums, counts = (total_over_processes(value.to(device)).cpu() for value in (found.sums, found.counts))
    return ClassMeans(sums, counts)


def _weights_of(network: nn.Module) -> nn.Module:
    return network.network if isinstance(network, Frozen) else network


@contextmanager
def _looked_at(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode, and the generators in the state, they were in."""
    modes = [(module, module.training) for module in _weights_of(network).modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _weights_of(network).eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} for the means of {num_classes} classes; they must "
            f"be 0 to {num_classes - 1}"
        )


@dataclass(frozen=True, slots=True)
class SavedMeans:
    """Class means with what they were made of.

    Attributes:
        means: ``[C, D]`` float64; zeros for a class without samples.
        counts: ``[C]`` int64.
        network: checksum of the network (``frozen.state_digest``).
        data: key of the data (``ImageData.key``); empty where nobody said.
        classes: C names; empty where nobody said.
    """

    means: Tensor
    counts: Tensor
    network: str
    data: str = ""
    classes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in ("means", "counts")}
        facts = {"format": FORMAT, "network": self.network, "data": self.data, "classes": json.dumps(self.classes)}
        with whole_file(path) as part:
            save_file(tensors, part, facts)


def load_class_means(
    path: Path,
    *,
    network: str | None = None,
    data: str | None = None,
    width: int | None = None,
    num_classes: int | None = None,
) -> SavedMeans:
    """Read what ``SavedMeans.save`` wrote, and refuse what belongs to something else. The file may come from anyone.

    Args:
        path: of the file.
        network: checksum of the network whose means they must be; None for any.
        data: key of the data they must be of; None for any.
        width: D; None for any.
        num_classes: C; None for any.

    Raises:
        ValueError: no such file, a damaged one, or one of another network, data, width or number of classes.
    """
    found = _read(path)
    stated: list[tuple[str, Any, Any]] = [
        ("the network with the checksum", found.network, network),
        ("the data with the key", found.data, data),
        ("features of width", found.means.shape[1], width),
        ("as many classes as", len(found.means), num_classes),
    ]
    wrong = [f"{what} {came}, and {asked} is asked for" for what, came, asked in stated if asked not in (None, came)]
    if wrong:
        raise ValueError(
            f"{path} holds class means of {'; of '.join(wrong)}; compute them anew (class_means_of), or give the file "
            "that was made with this network and data"
        )
    return found


def _read(path: Path) -> SavedMeans:
    tensors, facts = read_weights(path)
    again = "compute the class means anew (class_means_of)"
    if facts.get("format") != FORMAT or set(tensors) != {"means", "counts"}:
        raise ValueError(f"{path} is no file of class means ({FORMAT} is expected); {again}")
    means, counts = tensors["means"], tensors["counts"]
    whole = means.ndim == 2 and means.dtype == torch.float64 and bool(means.isfinite().all())
    if not whole or counts.shape != means.shape[:1] or counts.dtype != torch.int64 or bool((counts < 0).any()):
        raise ValueError(
            f"{path} holds means of type {means.dtype} and shape {list(means.shape)} and counts of type "
            f"{counts.dtype} and shape {list(counts.shape)}; expected are finite float64 [C, D] and int64 [C] of at "
            f"least 0; {again}"
        )
    try:
        classes = json.loads(facts.get("classes", "[]"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} names its classes in no form that can be read; {again}") from error
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or len(classes) not in (0, len(means)):
        raise ValueError(f"{path} must name none or all of its {len(means)} classes; {again}")
    return SavedMeans(means, counts, facts.get("network", ""), facts.get("data", ""), tuple(classes))


class KeptMeans(nn.Module):
    """Class means of a network that stays as it is, as state of a part: taken once, and kept in every checkpoint.

    Args:
        network: a ``Frozen`` network.
        num_classes: C.
        width: D.
        data_key: gives the key of a part of the data (``Context.data_key``); None where there is none.

    Attributes:
        means: ``[C, D]`` float64; zeros for a class without samples.
        counts: ``[C]`` int64.
    """

    means: Tensor
    counts: Tensor

    def __init__(
        self, network: Frozen, num_classes: int, width: int, data_key: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self._network, self._data_key, self._data = [network], data_key, ""
        self._complete: bool | None = None  # known once the counts were read
        self.register_buffer("means", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def prepare(self, batches: Iterable[Batch], device: torch.device) -> None:
        """Take the means of the training data."""
        found = class_means_of(self._network[0], batches, len(self.means), device)
        self.means.copy_(found.means())
        self.counts.copy_(found.counts)
        self._complete, self._data = None, "" if self._data_key is None else self._data_key("train_eval")

    def check(self, labels: Tensor) -> None:
        """Refuse labels whose class has no mean. Costs a host read only where some class has none.

        Args:
            labels: ``[B]`` classes, or ``[B, C]`` soft labels, of which the largest share is looked at.

        Raises:
            ValueError: naming the classes, or that ``prepare`` was never called.
        """
        if self._complete is None:
            self._complete = bool((self.counts > 0).all())
        if self._complete:
            return
        if not self.counts.any():
            raise ValueError("there are no class means yet; call prepare(data) once, before the first update")
        label_B = labels if labels.ndim == 1 else labels.argmax(1)
        if len(missing := label_B[self.counts[label_B] == 0].unique()):
            raise ValueError(
                f"class {', '.join(map(str, missing.tolist()))} has no mean: no training sample had this label when "
                "the class means were taken; give prepare(data) all of the training data, with the labels of training"
            )

    def save(self, path: Path) -> None:
        """Leave them in a file (see ``SavedMeans``)."""
        SavedMeans(self.means, self.counts, self._network[0].checksum() or "", self._data).save(path)

    def get_extra_state(self) -> str:
        """The key of the data they are of."""
        return self._data

    def set_extra_state(self, state: str) -> None:
        self._data, self._complete = state, None
