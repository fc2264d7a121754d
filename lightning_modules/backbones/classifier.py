"""The classifier that timm's weights bring along, as a head behind the backbone."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from lightning_modules.backbones.timm_backbone import IF_REACHABLE, Backbone, create_timm
from lightning_modules.backbones.weights import classifier_keys, converted, read_file
from lightning_modules.heads.linear import Linear
from lightning_modules.state.state_fit import value_problems


def own_classifier(backbone: Backbone, pretrained: bool | str) -> Linear | None:
    """The classifier that belongs to a backbone's weights.

    Args:
        backbone: from ``create_backbone``.
        pretrained: what it was created with.

    Returns:
        None where there are no weights, where they are of a backbone alone, and where timm's classifier is more than
        one linear layer behind the pooled features (several heads of a distilled model).

    Raises:
        ValueError: weights that cannot be computed with.
    """
    if pretrained is False or backbone.headless:
        return None
    name, channels, kwargs = backbone.name, backbone.in_channels, backbone.kwargs
    if isinstance(pretrained, str) and pretrained != IF_REACHABLE:
        read = read_file(pretrained)
        state = converted(backbone.model, read, name=name, in_channels=channels, kwargs=kwargs)
    else:
        try:
            state = create_timm(name, True, channels, kwargs, classifier=True).state_dict()
        except FileNotFoundError:
            if pretrained != IF_REACHABLE:
                raise
            return None
    keys = classifier_keys(name, channels, kwargs)
    tensors = [state[key].detach() for key in keys if key in state]
    return _linear(backbone, tensors) if len(tensors) == len(keys) else None


def _linear(backbone: Backbone, tensors: list[Tensor]) -> Linear | None:
    matrices = [tensor for tensor in tensors if tensor.ndim > 1]
    biases = [tensor for tensor in tensors if tensor.ndim == 1]
    if len(matrices) != 1 or len(biases) > 1:
        return None
    weight, classes = matrices[0], len(matrices[0])
    if weight.numel() != classes * backbone.num_features or any(len(bias) != classes for bias in biases):
        return None
    with torch.random.fork_rng(devices=[]):  # its own initialization is written over
        head = Linear(backbone.num_features, classes, bias=bool(biases))
    state = {"weight": weight.reshape(classes, -1), **({"bias": biases[0]} if biases else {})}
    if wrong := value_problems(head.state_dict(), state):
        raise ValueError(f"the classifier of {backbone.name} cannot be computed with: {'; '.join(wrong)}")
    head.load_state_dict(state)
    return head


def class_names(backbone: Backbone, count: int) -> tuple[str, ...] | None:
    """Names of a classifier's classes where timm tells them: WordNet ids of ImageNet (``n01440764``); else None."""
    config: dict[str, Any] = backbone.model.pretrained_cfg  # type: ignore[assignment]
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None or config.get("num_classes") != count:
        return None
    return tuple(ImageNetInfo(subset).label_names())


def preprocessing_of(backbone: Backbone) -> dict[str, Any]:
    """The images that timm's weights were made for, in the words of ``ImageData.preprocessing``."""
    config: dict[str, Any] = backbone.model.pretrained_cfg  # type: ignore[assignment]
    size = config["input_size"][-1] if not isinstance(given := backbone.kwargs.get("img_size"), int) else given
    interpolation = config.get("interpolation")
    return {
        "image_size": size,
        "resize_size": max(size, round(size / (config.get("crop_pct") or 1.0))),
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        "channels": "RGB" if backbone.in_channels == 3 else f"{backbone.in_channels} channels",
        "range": [0.0, 1.0],
    }
