"""The networks that teach, as one frozen network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.batch import Output
from lightning_modules.frozen import Frozen
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.precision import at_least_float32
from lightning_modules.teaching.training_images import TrainingImages

Half = Literal["bf16", "fp16"]
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Ensemble(nn.Module):
    """One or several networks on the same images; several give the mean of their logits, and no features.

    The mean of logits is the geometric mean of predictions, at every temperature. Features of two networks have nothing
    to do with each other, so that there is no mean of them.

    Args:
        networks: that teach; each normalizes images itself.
        sizes: side in pixels that each sees; None for the images as they are.
        precision: of the forwards; what comes out is in float32.
        compile: run each network through ``torch.compile``.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        sizes: Sequence[int | None] | None = None,
        precision: Half | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        common = frozenset.intersection(*(network.head.gives for network in networks))
        #: What the output has: ``logits``, ``embedding``, ``features``.
        self.gives = common & {"logits"} if len(networks) > 1 else common | {"features"}
        self.sizes = list(sizes or [None] * len(networks))
        self.precision = precision
        forwards: list[Callable[..., Output]] = [network.__call__ for network in networks]
        self._forwards = [torch.compile(forward) for forward in forwards] if compile else forwards

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self._forwards) > 1

    @property
    def num_features(self) -> int | None:
        """D of the features; None where there are none."""
        return None if self.several else self.networks[0].num_features  # type: ignore[return-value]

    def forward(
        self, image: Tensor, label: Tensor | None = None, mix_map: Any = None, want_maps: Collection[str] = ()
    ) -> Output:
        """``[B, 3, H, W]`` in [0, 1] -> logits, and of a single network features and the maps that were asked for.

        ``label`` and ``mix_map`` belong to training, and are not looked at.
        """
        keys: dict[str, Any] = {"want_maps": want_maps} if want_maps else {}
        cast = torch.autocast(image.device.type, _DTYPES[self.precision]) if self.precision else nullcontext()
        with cast:
            outputs = [
                forward(_sized(image, size), **keys) for forward, size in zip(self._forwards, self.sizes, strict=True)
            ]
        if not self.several:
            return _widened(outputs[0]) if self.precision else outputs[0]
        if "logits" not in self.gives:
            return Output()
        logits = [at_least_float32(output.class_scores) for output in outputs]
        return Output(logits=torch.stack(logits).mean(0))


class Teacher(Frozen):
    """An ``Ensemble`` that is only looked at (see ``Frozen``), and what is known of it.

    Args:
        ensemble: the networks.
        checked_on_data: whether a run refuses it where it knows nothing of the data.
    """

    def __init__(self, ensemble: Ensemble, checked_on_data: bool = True) -> None:
        super().__init__(ensemble)
        self.checked_on_data = checked_on_data
        self.gives, self.num_features = ensemble.gives, ensemble.num_features

    def begin(self, parts: Parts, images: TrainingImages) -> list[str]:
        """Look at what reads this teacher and at what it will be shown; lines for the report of the run."""
        return []


def _sized(image: Tensor, size: int | None) -> Tensor:
    if size is None or size == image.shape[-1]:
        return image
    resized = F.interpolate(image.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp_(0.0, 1.0).to(image.dtype)


def _widened(output: Output) -> Output:
    def wide(value: Tensor | None) -> Tensor | None:
        return None if value is None else at_least_float32(value)

    return replace(
        output,
        features=wide(output.features),
        logits=wide(output.logits),
        embedding=wide(output.embedding),
        maps={name: at_least_float32(value) for name, value in output.maps.items()},
    )
