"""The network in training: normalization, backbone, pooling and head as one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kernels.batch import Output
from lightning_modules.backbones.timm_backbone import Backbone
from lightning_modules.heads.base import Head
from lightning_modules.surgery.base import Surgery


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel.

    The constants are buffers, so that a checkpoint is complete without its recipe. They stay float64 whatever dtype the
    module is cast to: rounded once to bfloat16 or float32 they would be wrong in every later dtype.

    Args:
        mean: per channel, for images in [0, 1].
        std: per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalize:
        exact = self.mean, self.std
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float64:
            self.mean, self.std = (value.to(self.mean.device) for value in exact)
        return self

    def forward(self, image: Tensor) -> Tensor:
        mean = self.mean.to(image.dtype).view(-1, 1, 1)
        scale = self.std.reciprocal().to(image.dtype).view(-1, 1, 1)
        # In place on the difference: one allocation instead of two.
        return (image - mean).mul_(scale)

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class Network(nn.Module):
    """Images in [0, 1] to an ``Output``.

    state_dict keys: ``normalize.{mean,std}``, ``backbone.<timm's own keys>``, ``head.*``.

    Args:
        backbone: from ``create_backbone``; the model itself becomes ``self.backbone``.
        head: features to outputs.

    Raises:
        ValueError: the head was made for another number of features.

    Example:
        >>> backbone = create_backbone(name="resnet18")
        >>> network = Network(backbone, Linear(backbone.num_features, 10))
        >>> network(torch.rand(2, 3, 64, 64)).logits.shape
        torch.Size([2, 10])
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        if head.in_features != backbone.num_features:
            raise ValueError(
                f"the head takes {head.in_features} features, backbone {backbone.name} gives {backbone.num_features}; "
                f"build the head with in_features={backbone.num_features}"
            )
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.backbone: Any = backbone.model
        self.head = head
        self.backbone_name = backbone.name
        self.backbone_kwargs: dict[str, Any] = dict(backbone.kwargs)
        self.in_channels = backbone.in_channels
        self.num_features = backbone.num_features
        self.headless = backbone.headless
        # What was done to the backbone, to be taken out again at export, and the configuration that says so.
        self.surgeries: dict[str, Surgery] = {}
        self.surgery_config: dict[str, Any] = {}

    def forward(
        self,
        image: Tensor | None,
        label: Tensor | None = None,
        mix_map: Callable[[Tensor], Tensor] | None = None,
        want_maps: Collection[str] = (),
        from_map: Tensor | None = None,
    ) -> Output:
        """Normalize, extract features, pool them, apply the head.

        Args:
            image: ``[B, in_channels, H, W]`` in [0, 1], of the parameters' dtype (or float32 under autocast).
            label: ``[B]``, for margin heads.
            mix_map: applied to the unpooled feature map.
            want_maps: ``("final",)`` puts the map that is pooled (after ``mix_map``) into ``Output.maps``.
            from_map: a map like ``final``, in place of the image: only pooling and head run.

        Returns:
            What the head gives, with the maps that were asked for.

        Raises:
            ValueError: other shape or channels of the image; a map that does not exist.
            TypeError: an integer image; ``mix_map`` with a backbone that gives several maps.
        """
        if from_map is not None:
            return self.head(self.pool(from_map), label)
        self._check(image, want_maps)
        feature_map = self.backbone.forward_features(self.normalize(image))
        if mix_map is not None:
            feature_map = mix_map(self._single(feature_map, "mix_map"))
        output = self.head(self.pool(feature_map), label)
        if want_maps:
            output.maps["final"] = self._single(feature_map, "want_maps")
        return output

    def with_head(self, head: Head) -> Network:
        """The same network, its weights shared, behind another head."""
        other = copy.copy(self)
        other._modules = {**self._modules, "head": head}
        return other

    def pool(self, feature_map: Tensor | list[Tensor]) -> Tensor:
        """The unpooled map as ``forward_features`` gives it -> pooled features ``[B, D]``."""
        if self.headless:
            return _average_positions(self._single(feature_map, "pooling"), self.num_features)
        features_BD = self.backbone.forward_head(feature_map, pre_logits=True)
        if features_BD.ndim != 2 or features_BD.shape[1] != self.num_features:
            raise ValueError(
                f"backbone {self.backbone_name} gives features of shape {list(features_BD.shape)} instead of "
                f"[B, {self.num_features}]; leave global_pool out of backbone.kwargs, or choose one that pools"
            )
        return features_BD

    def _check(self, image: Tensor | None, want_maps: Collection[str]) -> None:
        if image is None:
            raise ValueError("the network got neither an image nor from_map; give one of them")
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"image of shape {list(image.shape)}: the network takes [B, {self.in_channels}, H, W]; "
                f"set backbone.in_channels to the number of channels of the data"
            )
        if not image.is_floating_point():
            raise TypeError(f"image of dtype {image.dtype}: the network takes floats in [0, 1]; divide by 255")
        if unknown := set(want_maps) - {"final"}:
            raise ValueError(f"want_maps={sorted(unknown)}: the only map is 'final', the one that is pooled")

    def _single(self, feature_map: Tensor | list[Tensor], what: str) -> Tensor:
        if not isinstance(feature_map, Tensor):
            raise TypeError(
                f"{what} needs one feature map, backbone {self.backbone_name} gives a {type(feature_map).__name__} of "
                f"{len(feature_map)}; choose another backbone"
            )
        return feature_map


def _average_positions(feature_map: Tensor, num_features: int) -> Tensor:
    """``[B, D, H, W]``, ``[B, H, W, D]`` or ``[B, N, D]`` -> ``[B, D]``."""
    if feature_map.ndim == 4 and feature_map.shape[1] == num_features:
        return feature_map.mean((2, 3))
    return feature_map.flatten(1, -2).mean(1)
