"""Weights from a safetensors file in timm's key names, into a model without its classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn


def load_weights(model: nn.Module, path: str, *, name: str, in_channels: int, kwargs: dict[str, Any]) -> None:
    """Load a safetensors file in timm's key names into ``model``; every key must fit.

    The classifier in the file is left out, whatever its number of classes. The first convolution is adapted to
    ``in_channels`` as timm adapts it (summed for one channel, repeated and rescaled for others). Convolutions that a
    small-image stem replaced (``model.small_stem_new``) keep their initialization where their shape differs, with
    a warning.

    Args:
        model: timm's ``name`` with ``num_classes=0``.
        path: the file.
        name: timm's name, for messages and to tell the classifier's keys.
        in_channels: channels of the image.
        kwargs: what the model was created with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or missing keys, unexpected keys or other shapes; a few are listed.
    """
    state = _adapt_input(model, _read(path), in_channels)
    target = model.state_dict()
    for key in classifier_keys(name, in_channels, kwargs):
        state.pop(key, None)
    replaced: tuple[str, ...] = getattr(model, "small_stem_new", ())
    new = [key for key in replaced if key in state and state[key].shape != target[key].shape]
    for key in new:
        del state[key]
    # Public conversions often lack BatchNorm's update counters; PyTorch fills them in.
    missing = [k for k in target if k not in state and k not in new and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in target]
    other = [
        f"{k} {list(v.shape)} in the file, {list(target[k].shape)} in the model"
        for k, v in state.items()
        if k in target and v.shape != target[k].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "other shape": other}
    if any(found.values()):
        problems = "; ".join(f"{what}: {_some(keys)}" for what, keys in found.items() if keys)
        raise ValueError(
            f"{path} does not fit the timm model {name} (in_channels={in_channels}): {problems}. "
            f"The file must hold timm's own key names, all of them; a classifier may be there and is left out"
        )
    model.load_state_dict(state, strict=False)
    if new:
        warnings.warn(
            f"{name}: {_some(new)} has another shape in {path} and keeps its new initialization", stacklevel=2
        )


def classifier_keys(name: str, in_channels: int, kwargs: dict[str, Any], num_classes: int = 2) -> dict[str, torch.Size]:
    """state_dict keys, with shapes, that timm's ``name`` has only because of its classifier."""
    with_classes = _shapes(name, num_classes, in_channels, kwargs)
    without = _shapes(name, 0, in_channels, kwargs)
    return {key: shape for key, shape in with_classes.items() if key not in without}


def _shapes(name: str, num_classes: int, in_channels: int, kwargs: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):  # names and shapes only: no memory, no random numbers drawn
        model = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **kwargs)
    return {key: value.shape for key, value in model.state_dict().items()}


def _read(path: str) -> dict[str, Tensor]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"backbone.pretrained={path!r}: no such file ({file.resolve()}); give the path of a safetensors file, "
            f"or true for timm's weights from its hub, or false for none"
        )
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise ValueError(
            f"backbone.pretrained={path!r} is not a safetensors file ({error}); convert it with "
            f"safetensors.torch.save_file(state_dict, PATH), in timm's key names"
        ) from error


def _adapt_input(model: nn.Module, state: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    config: Any = model.pretrained_cfg
    first, base = config.get("first_conv") or (), config["input_size"][0]
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        # A file that was saved from a model with these in_channels already fits.
        fits = key not in state or state[key].shape[1] == model.get_parameter(key).shape[1]
        if in_channels != base and not fits and state[key].ndim == 4:
            state[key] = adapt_input_conv(in_channels, state[key], base_chans=base)
    return state


def _some(items: Iterable[str], limit: int = 4) -> str:
    found = list(items)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")
