"""What a backbone is made of, read from one forward: every surgery selects from the same list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import GroupNorm, GroupNorm1, LayerNorm, LayerNorm2d, PatchEmbed, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn

from lightning_modules.norm_statistics import norm_statistics_kept

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, GroupNorm, GroupNorm1, LayerNorm, LayerNorm2d)
STANDARDIZED = (StdConv2d, ScaledStdConv2d)  # and their "Same" variants, which derive from neither
DEFAULT_SIZE = 224


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution, linear layer or norm.

    Attributes:
        name: dotted, relative to the backbone.
        module: itself.
        order: of its first call in the forward, from 0.
        norm: name of the norm whose input is exactly this layer's output; None where something else reads it.
        calls: how often one forward calls it.
    """

    name: str
    module: nn.Module
    order: int
    norm: str | None = None
    calls: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether a convolution sees one input channel for each group, and there are several."""
        groups = getattr(self.module, "groups", 1)
        return groups > 1 and groups == getattr(self.module, "in_channels", 0)

    @property
    def fan_in(self) -> int:
        """Number of weights of one output."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight[0].numel()

    @property
    def standardized(self) -> bool:
        """Whether the layer standardizes its own weight already (timm's StdConv2d and relatives)."""
        return isinstance(self.module, STANDARDIZED) or "StdConv2d" in type(self.module).__name__


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Layers of a backbone in the order of their first call; layers that the forward never calls are not in it.

    Attributes:
        convs: every ``nn.Conv2d``.
        linears: every ``nn.Linear``.
        norms: every norm.
        stem: names of the first layer: timm's ``first_conv``, else the first convolution or linear layer called.
        image_size: side of the image of the forward that this was read from.
    """

    convs: tuple[Layer, ...]
    linears: tuple[Layer, ...]
    norms: tuple[Layer, ...]
    stem: tuple[str, ...]
    image_size: int

    @staticmethod
    def of(backbone: nn.Module, image_size: int | None = None) -> Anatomy:
        """Read the anatomy from one forward of a black image, which leaves no trace.

        Args:
            backbone: a timm model.
            image_size: side of the image; None for that of the model's own configuration.
        """
        config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
        size = image_size or _own_size(backbone, config)
        channels = _channels(backbone)
        trace = _Trace(backbone)
        weight = next(backbone.parameters())
        image = torch.zeros(2, channels, size, size, device=weight.device, dtype=weight.dtype)
        with trace.recording(), norm_statistics_kept(backbone), _eval(backbone), torch.no_grad():
            backbone.forward_features(image)  # type: ignore[operator]
        layers = trace.layers()
        convs = tuple(layer for layer in layers if isinstance(layer.module, nn.Conv2d))
        linears = tuple(layer for layer in layers if isinstance(layer.module, nn.Linear))
        norms = tuple(layer for layer in layers if isinstance(layer.module, NORMS))
        return Anatomy(convs, linears, norms, _stem(config, layers), size)


class _Trace:
    """Hooks on layers and norms that note who was called when, and whose output a norm reads."""

    def __init__(self, backbone: nn.Module) -> None:
        kinds = (nn.Conv2d, nn.Linear, *NORMS)
        self.modules: dict[nn.Module, str] = {
            module: name for name, module in backbone.named_modules() if isinstance(module, kinds)
        }
        self.calls: dict[str, int] = {}
        self.norm: dict[str, str] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}  # outputs are kept, so that no id is used twice

    @contextmanager
    def recording(self) -> Iterator[None]:
        hooks = [module.register_forward_hook(self._called) for module in self.modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._made.clear()

    def _called(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = self.modules[module]
        self.calls[name] = self.calls.get(name, 0) + 1
        if isinstance(module, NORMS) and inputs and id(inputs[0]) in self._made:
            self.norm[self._made[id(inputs[0])][0]] = name
        elif not isinstance(module, NORMS) and isinstance(output, Tensor):
            self._made[id(output)] = (name, output)

    def layers(self) -> list[Layer]:
        modules = {name: module for module, name in self.modules.items()}
        return [
            Layer(name, modules[name], order, self.norm.get(name), calls)
            for order, (name, calls) in enumerate(self.calls.items())
        ]


@contextmanager
def _eval(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, the mode of every module as it was afterwards."""
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


def _own_size(backbone: nn.Module, config: dict[str, Any]) -> int:
    """The image size a model was made for; transformers take no other."""
    for module in backbone.modules():
        if isinstance(module, PatchEmbed) and module.img_size is not None:
            return int(module.img_size[0])
    return int((config.get("input_size") or (3, DEFAULT_SIZE, DEFAULT_SIZE))[-1])


def _channels(backbone: nn.Module) -> int:
    """Input channels, from the first convolution's weight."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _stem(config: dict[str, Any], layers: list[Layer]) -> tuple[str, ...]:
    """timm's name of the first layer (several for RepVGG), where it is among the layers that were called."""
    named = config.get("first_conv") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    called = {layer.name for layer in layers if not isinstance(layer.module, NORMS)}
    if names and set(names) <= called:
        return names
    first = next((layer.name for layer in layers if not isinstance(layer.module, NORMS)), None)
    return () if first is None else (first,)
