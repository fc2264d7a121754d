"""Any timm model as a backbone: the model without its classifier, and the constants that belong to its input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any

import timm
from torch import nn

from kernels.ranges import range_checked
from lightning_modules.backbones.small_stem import STEMS, base_name
from lightning_modules.backbones.weights import load_weights
from lightning_modules.names import unknown_name
from lightning_modules.norm_statistics import norm_modules

IF_REACHABLE = "if_reachable"
# Keys of create_backbone, or of the network around it: a second value in ``kwargs`` would silently win or lose.
_RESERVED = {
    "num_classes": "the head sets it; leave it out",
    "in_chans": "use in_channels",
    "pretrained": "use the key pretrained beside kwargs",
    "checkpoint_path": "use pretrained: PATH",
    "cache_dir": "timm's weights go to the cache of its hub; set HF_HOME to move it",
    "pretrained_cfg": "use mean and std",
    "pretrained_cfg_overlay": "use mean and std",
    "features_only": "the network needs pooled features; ask for maps with want_maps",
}


@dataclass(slots=True)
class Backbone:
    """What a network needs to know about its backbone.

    Attributes:
        model: the timm model with ``num_classes=0``; its module names and state_dict keys are timm's.
        name: timm's name, with the pretrained tag where one was given.
        num_features: D of the pooled features ``[B, D]``.
        in_channels: channels of the image.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        kwargs: further arguments the model was created with.
        headless: the model has no pooling of its own (timm's ``*_enc`` encoders): its map is averaged over positions.
    """

    model: nn.Module
    name: str
    num_features: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    headless: bool = False


@range_checked
def create_backbone(
    *,
    name: str,
    pretrained: bool | str = False,
    in_channels: Annotated[int, "1 <= x <= 10000"] = 3,
    freeze: bool = False,
    freeze_norm: bool = False,
    mean: list[Annotated[float, "finite"]] | None = None,
    std: list[Annotated[float, "x > 0"]] | None = None,
    kwargs: dict | None = None,
) -> Backbone:
    """A timm model without its classifier.

    Args:
        name: any name of ``timm.list_models()``, also with a pretrained tag (``resnet50.a1_in1k``).
        pretrained: False; True for timm's weights from its hub; ``if_reachable`` for these where they are in its cache
            or can be fetched, and none, with a warning, otherwise; or the path of a safetensors file in timm's key
            names, whose classifier is left out and whose first convolution is adapted to ``in_channels`` as timm does.
        in_channels: channels of the image.
        freeze: parameters get no gradient and the model stays in eval mode, so norm statistics stay as they are.
        freeze_norm: the same for norms with running statistics alone, which fine-tuning on small batches would spoil.
        mean: per channel for images in [0, 1]; None takes the model's own (their average, where channels differ).
        std: as ``mean``.
        kwargs: further arguments of the timm model, such as ``drop_path_rate`` or ``img_size``.

    Returns:
        The model and its constants; give it to ``Network``.

    Raises:
        ValueError: a name, argument, weight or constant that does not fit; the message says what does.
        FileNotFoundError: no file at the path given as ``pretrained``, or no way to timm's weights.

    Example:
        >>> create_backbone(name="resnet18").num_features
        512
    """
    check_name(name)
    kwargs = dict(kwargs or {})
    for key in _RESERVED.keys() & kwargs.keys():
        raise ValueError(f"backbone.kwargs.{key}={kwargs[key]!r} is not allowed: {_RESERVED[key]}")
    model = _start(name, pretrained, in_channels, kwargs)
    if isinstance(pretrained, str) and pretrained != IF_REACHABLE:
        load_weights(model, pretrained, name=name, in_channels=in_channels, kwargs=kwargs)
    if freeze:
        freeze_module(model)
    if freeze_norm:
        _freeze_norms(model, name)
    config = model.pretrained_cfg
    headless = name.split(".")[0].endswith("_enc")
    return Backbone(
        model=model,
        name=name,
        num_features=model.num_features if headless else getattr(model, "head_hidden_size", model.num_features),
        in_channels=in_channels,
        mean=_per_channel("mean", mean, config["mean"], in_channels),
        std=_per_channel("std", std, config["std"], in_channels),
        kwargs=kwargs,
        headless=headless,
    )


def _start(name: str, pretrained: bool | str, in_channels: int, kwargs: dict[str, Any]) -> Any:
    """The model with timm's weights where they were asked for."""
    try:
        return create_timm(name, pretrained in (True, IF_REACHABLE), in_channels, kwargs)
    except FileNotFoundError as error:
        if pretrained != IF_REACHABLE:
            raise
        warnings.warn(f"training from scratch: {error}", stacklevel=3)
        return create_timm(name, False, in_channels, kwargs)


def _freeze_norms(model: nn.Module, name: str) -> None:
    norms = norm_modules(model)
    if not norms:
        raise ValueError(f"backbone.freeze_norm=true: {name} has no norm with running statistics; leave it out")
    for norm in norms:
        freeze_module(norm)


def check_name(name: str) -> None:
    """Refuse what is not a name of a registered timm model (with or without a pretrained tag of it)."""
    if ":" in name or "/" in name:
        raise ValueError(
            f"backbone.name={name!r}: hub and folder sources are not allowed, because they bring an architecture that "
            f"the recipe does not state; name the timm model and give its weights as pretrained: FILE.safetensors"
        )
    arch, _, tag = name.partition(".")
    models = timm.list_models()
    if arch not in models:
        if arch.endswith("_small") and arch.removesuffix("_small") in models:
            raise ValueError(
                f"backbone.name={name!r}: there is no small-image stem for {arch.removesuffix('_small')}; supported "
                f"are timm's families {', '.join(STEMS)}"
            )
        raise ValueError(unknown_name("backbone.name", arch, models))
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_models(base_name(arch), include_tags=True)]
        if tag not in tags:
            raise ValueError(f"backbone.name={name!r}: {arch} has no weights {tag!r}; choose from {', '.join(tags)}")


def freeze_module(module: nn.Module) -> None:
    """No gradients, and eval mode whatever ``train()`` is asked for later, so that norm statistics stay."""
    module.requires_grad_(False)
    module.eval()
    # On the instance, so that the timm class, its module names and isinstance checks stay; survives deepcopy.
    object.__setattr__(module, "train", _StayInEval(module))


class _StayInEval:
    """``train`` of a frozen module: an object, not a closure, so that a deepcopy points at the copied module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self.module).train(self.module, False)


def create_timm(name: str, hub: bool, in_channels: int, kwargs: dict[str, Any], classifier: bool = False) -> Any:
    """The timm model, with timm's weights where ``hub`` says so, and with its own classifier where asked for.

    Raises:
        ValueError: no such weights, or arguments that the model does not take.
        FileNotFoundError: no way to the weights.
    """
    if hub and not timm.models.is_model_pretrained(base_name(name)):
        raise ValueError(
            f"backbone.pretrained=true: timm has no weights for {name}; use pretrained: false, or the path of a "
            f"safetensors file in timm's key names"
        )
    try:
        classes: Any = {} if classifier else {"num_classes": 0}
        return timm.create_model(name, pretrained=hub, in_chans=in_channels, **classes, **kwargs)
    except MemoryError:
        raise
    except Exception as error:
        if hub and not isinstance(error, TypeError):
            raise FileNotFoundError(
                f"could not get timm's weights for {name} ({type(error).__name__}: {error}); without network, save "
                f"them as a safetensors file in timm's key names elsewhere and set backbone.pretrained=FILE"
            ) from error
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "none"
        said = str(error).strip() or type(error).__name__
        raise ValueError(
            f"timm model {name} does not take in_channels={in_channels}, kwargs {given}: {said}"
        ) from error


def _per_channel(what: str, given: list[float] | None, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in (default if given is None else given))
    if given is None and len(values) != channels:
        return (sum(values) / len(values),) * channels
    if len(values) != channels:
        raise ValueError(f"backbone.{what} has {len(values)} values for in_channels={channels}; give one per channel")
    return values
