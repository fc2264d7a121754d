"""Stems for images of 32 to 48 pixels: ``<timm name>_small`` for every model of the convolutional families below.

timm's ImageNet stems reduce the image 2 or 4 times before the first block; of a 32-pixel image little is left. In a
``_small`` model every stem convolution has stride 1 and a kernel of at most 3x3, and stem pooling is gone, as in the
usual CIFAR variants of these nets (He et al. 2016, arXiv:1512.03385, section 4.2, has that stem). Everything
after the stem, module names and state_dict keys are timm's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import timm
from timm.layers import BlurPool2d
from timm.models import model_entrypoint, register_model
from torch import nn

# timm module -> what belongs to its stem
STEMS: dict[str, tuple[str, ...]] = {
    "resnet": ("conv1", "maxpool"),
    "res2net": ("conv1", "maxpool"),
    "resnest": ("conv1", "maxpool"),
    "sknet": ("conv1", "maxpool"),
    "senet": ("layer0", "pool0"),
    "resnetv2": ("stem",),
    "nfnet": ("stem",),
    "densenet": ("features.conv0", "features.conv1", "features.conv2", "features.pool0"),
    "regnet": ("stem",),
    "rexnet": ("stem",),
    "efficientnet": ("conv_stem",),
    "mobilenetv3": ("conv_stem",),
    "hardcorenas": ("conv_stem",),
    "ghostnet": ("conv_stem",),
}
BASES: dict[str, str] = {}  # small name -> timm's name
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.ConstantPad2d, BlurPool2d)


def small_stem(model: nn.Module, parts: Iterable[str]) -> list[str]:
    """Give ``model`` a small-image stem, in place.

    Args:
        model: a timm model.
        parts: names of the modules that make up its stem; those it lacks are passed over.

    Returns:
        Keys of the weights that got another shape and a new initialization; where only a stride changed weights stay.

    Raises:
        ValueError: nothing in the stem reduces the image.
    """
    changed, new = 1, []
    for part in parts:
        for name in _leaves(model, part):
            module = model.get_submodule(name)
            if isinstance(module, _POOLS):
                stride = getattr(module, "stride", 1)  # padding has none
                changed *= stride if isinstance(stride, int) else stride[0]
                _replace(model, name, nn.Identity())
            elif isinstance(module, nn.Conv2d):
                changed *= module.stride[0]
                module.stride = (1, 1)
                if max(module.kernel_size) > 3:
                    _shrink_kernel(module)
                    new.append(f"{name}.weight")
    if changed == 1:
        raise ValueError(f"the stem of this {type(model).__name__} does not reduce the image; take the model as it is")
    feature_info: Any = model.feature_info
    for info in getattr(feature_info, "info", feature_info):
        info["reduction"] = max(1, info["reduction"] // changed)
    return new


def register_small_stems() -> None:
    """Register ``<name>_small`` for every model of the families in ``STEMS``; builds no model."""
    for family, parts in STEMS.items():
        for base in timm.list_models(module=family):
            name = f"{base}_small"
            if not timm.is_model(name):
                BASES[name] = base
                register_model(_entrypoint(name, base, parts))


def base_name(name: str) -> str:
    """timm's own name behind a ``_small`` one (any pretrained tag stays); other names as they are."""
    arch, dot, tag = name.partition(".")
    return BASES.get(arch, arch) + dot + tag


def _entrypoint(name: str, base: str, parts: tuple[str, ...]) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if kwargs.get("features_only"):
            raise ValueError(f"{name} cannot be wrapped by features_only; use forward_features")
        model = model_entrypoint(base)(pretrained=pretrained, **kwargs)
        new = small_stem(model, parts)
        if pretrained and new:
            warnings.warn(f"{name}: {', '.join(new)} has another kernel than {base} and starts anew", stacklevel=2)
        model.small_stem_new = tuple(new)
        config = {k: v for k, v in model.pretrained_cfg.items() if not k.startswith(("test_", "min_"))}
        config |= {"architecture": name, "input_size": (config["input_size"][0], 32, 32), "crop_pct": 1.0}
        model.pretrained_cfg = model.default_cfg = config | {"pool_size": None}
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{base} with a stem for 32 to 48 pixels."
    return create


def _leaves(model: nn.Module, part: str) -> list[str]:
    """Names of the convolutions and poolings in ``part``."""
    try:
        root = model.get_submodule(part)
    except AttributeError:
        return []
    kinds = (nn.Conv2d, *_POOLS)
    return [f"{part}.{name}".rstrip(".") for name, module in root.named_modules() if isinstance(module, kinds)]


def _shrink_kernel(conv: nn.Conv2d) -> None:
    # On the same module, so that its class (weight standardization, padding "same") stays.
    conv.kernel_size = (3, 3)
    if any(conv.padding):
        conv.padding = (1, 1)
    conv.weight = nn.Parameter(conv.weight.new_empty(*conv.weight.shape[:2], 3, 3))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


register_small_stems()
