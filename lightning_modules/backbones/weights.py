"""Weights from a safetensors file in timm's key names, into a model without its classifier."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.models import _builder, adapt_input_conv
from torch import Tensor, nn

from lightning_modules.state.state_fit import kind_problem, value_problems
from lightning_modules.weights_file import read_weights


def load_weights(model: nn.Module, path: str, *, name: str, in_channels: int, kwargs: dict[str, Any]) -> None:
    """Load a safetensors file in timm's key names into ``model``; every key must fit.

    The file takes the way that timm's own weights take: timm's filter of the model, which brings older key names into
    today's form and resamples position embeddings of another image size (with a warning here), then the first
    convolution, which is adapted to ``in_channels`` (summed for one channel, repeated and rescaled for others). The
    classifier in the file is left out, whatever its number of classes. Convolutions that a small-image stem replaced
    (``model.small_stem_new``) keep their initialization where their shape differs, with a warning.

    Args:
        model: timm's ``name`` with ``num_classes=0``.
        path: the file.
        name: timm's name, for messages and to tell the classifier's keys.
        in_channels: channels of the image.
        kwargs: what the model was created with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file; missing or unexpected keys, other shapes or kinds of numbers, of which a few
            are listed; numbers that are not finite, or negative variances.
    """
    target = model.state_dict()
    read = read_file(path)
    state = converted(model, read, name=name, in_channels=in_channels, kwargs=kwargs)
    if changed := [key for key in state if key in read and state[key].shape != read[key].shape]:
        key = changed[0]
        warnings.warn(
            f"{name}: timm resamples {_some(changed)} of {path} ({key} from {list(read[key].shape)} to "
            f"{list(state[key].shape)}), because the file is of another size of images or patches",
            stacklevel=2,
        )
    adapt_input(model, state, in_channels)
    for key in classifier_keys(name, in_channels, kwargs):
        state.pop(key, None)
    replaced: tuple[str, ...] = getattr(model, "small_stem_new", ())
    new = [key for key in replaced if key in state and state[key].shape != target[key].shape]
    for key in new:
        del state[key]
    _check(target, state, new, f"{path} does not fit the timm model {name} (in_channels={in_channels})")
    model.load_state_dict(state, strict=False)
    if new:
        warnings.warn(
            f"{name}: {_some(new)} has another shape in {path} and keeps its new initialization", stacklevel=2
        )


def _check(target: dict[str, Tensor], state: dict[str, Tensor], new: list[str], message: str) -> None:
    # Public conversions often lack BatchNorm's update counters; PyTorch fills them in.
    missing = [k for k in target if k not in state and k not in new and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in target]
    pairs = [(k, v, target[k]) for k, v in state.items() if k in target]
    shapes = [
        f"{k} {list(v.shape)} in the file, {list(ours.shape)} in the model"
        for k, v, ours in pairs
        if v.shape != ours.shape
    ]
    kinds = [f"{k}: {problem}" for k, v, ours in pairs if (problem := kind_problem(v, ours))]
    found = {"missing": missing, "unexpected": unexpected, "other shape": shapes, "other numbers": kinds}
    if any(found.values()):
        problems = "; ".join(f"{what}: {_some(keys)}" for what, keys in found.items() if keys)
        raise ValueError(
            f"{message}: {problems}. "
            f"The file must hold timm's own key names, all of them; a classifier may be there and is left out"
        )
    if wrong := value_problems(target, state):
        raise ValueError(f"{message}: {_some(wrong)}; the file is damaged, or was saved by a training that failed")


def timms_filter(name: str, in_channels: int, kwargs: dict[str, Any]) -> Callable[..., dict[str, Tensor]] | None:
    """The function by which timm brings weights of another form into that of its model ``name``; None for none.

    timm keeps no record of it in the model: it is what the model's builder hands to timm's loader, seen here.
    """
    found: list[Any] = []

    def loader(*_: Any, filter_fn: Any = None, **__: Any) -> None:
        found.append(filter_fn)

    with torch.device("meta"), patch.object(_builder, "load_pretrained", loader), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_channels, **kwargs)
    return found[0] if found else None


def converted(
    model: nn.Module, state: dict[str, Tensor], *, name: str, in_channels: int, kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """A copy in the form of ``model``: older key names and another size of images or patches as timm brings them."""
    convert = timms_filter(name, in_channels, kwargs)
    if convert is None:
        return dict(state)
    try:
        try:
            return dict(convert(dict(state), model))
        except TypeError:  # timm still has filters that take no model, and tries them in this order too
            return dict(convert(dict(state)))  # type: ignore[call-arg]
    except Exception:  # made for files of one model; what does not fit another is listed later
        return dict(state)


def classifier_keys(name: str, in_channels: int, kwargs: dict[str, Any], num_classes: int = 2) -> dict[str, torch.Size]:
    """state_dict keys, with shapes, that timm's ``name`` has only because of its classifier."""
    with_classes = _shapes(name, num_classes, in_channels, kwargs)
    without = _shapes(name, 0, in_channels, kwargs)
    return {key: shape for key, shape in with_classes.items() if key not in without}


def _shapes(name: str, num_classes: int, in_channels: int, kwargs: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):  # names and shapes only: no memory, no random numbers drawn
        model = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **kwargs)
    return {key: value.shape for key, value in model.state_dict().items()}


def read_file(path: str) -> dict[str, Tensor]:
    """The tensors of ``backbone.pretrained=path``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise FileNotFoundError(
            f"backbone.pretrained={path!r}: no such file ({file.resolve()}); give the path of a safetensors file, "
            f"or true for timm's weights from its hub, or false for none"
        )
    try:
        return read_weights(file)[0]
    except ValueError as error:
        raise ValueError(
            f"backbone.pretrained={path!r}: {error}; convert it with safetensors.torch.save_file(state_dict, PATH), in "
            "timm's key names"
        ) from error


def adapt_input(model: nn.Module, state: dict[str, Tensor], in_channels: int) -> None:
    """Bring the first convolutions to ``in_channels``, where they are those of timm's own number of channels."""
    config: Any = model.pretrained_cfg
    first, base = _builder.get_model_traits(model).get("first_conv", config.get("first_conv")), config["input_size"][0]
    for name in (first,) if isinstance(first, str) else first or ():
        key, module = f"{name}.weight", model.get_submodule(name)
        if in_channels == base or key not in state or not isinstance(module, nn.Conv2d):
            continue
        given, channels = state[key], module.weight.shape[1]
        if given.ndim != 4 or given.shape[1] == channels:  # a file of a model with these in_channels already fits
            continue
        if given.shape[1] * in_channels == base * channels:  # a stem may fold pixels into channels, or have groups
            with suppress(NotImplementedError):  # which timm cannot adapt: refused for its shape
                state[key] = adapt_input_conv(in_channels, given, base_chans=base)


def _some(items: Iterable[str], limit: int = 4) -> str:
    found = list(items)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")
