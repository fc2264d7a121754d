"""Optimizer and learning-rate schedule from timm's factories."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import timm
import timm.optim
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.wsd_lr import WSDLRScheduler
from torch import nn
from torch.optim import Optimizer

from kernels.ranges import range_checked
from lightning_modules.names import unknown_name, values_for

Group = dict[str, Any]
NOT_TRIED = ("bnb", "fused", "kron")  # those that need a GPU for a step, or compile for seconds


@range_checked
def create_optimizer(
    network: nn.Module,
    parts: nn.Module | None = None,
    *,
    name: str,
    lr: Annotated[float, "x >= 0"],
    weight_decay: Annotated[float, "x >= 0"] = 0.0,
    momentum: Annotated[float, "0 <= x < 1"] | None = None,
    layer_decay: Annotated[float, "0 < x <= 1"] | None = None,
    decay_norm_and_bias: bool = False,
    kwargs: dict | None = None,
) -> Optimizer:
    """Any optimizer of timm over the network and the trained modules of its parts.

    Args:
        network: a ``Network`` with ``backbone`` and ``head``.
        parts: modules owned by parts (projectors), whose trainable parameters get a group of their own; further
            networks among them are grouped as the main one.
        name: a name of ``timm.optim.list_optimizers()``.
        lr: base learning rate.
        weight_decay: in the units of the optimizer (coupled for SGD, decoupled for AdamW).
        momentum: for those that take one; None is timm's 0.9 there, and nothing elsewhere.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below; the head keeps
            ``lr`` (Bao et al. 2022, BEiT, arXiv 2106.08254).
        decay_norm_and_bias: weight decay also on norm weights and biases, which is off by default.
        kwargs: further arguments of the optimizer, by its own names.

    Raises:
        ValueError: unknown name, a value out of range, an argument of another optimizer, or nothing to train.
    """
    known = [str(choice) for choice in timm.optim.list_optimizers()]
    if name.lower() not in known:
        raise ValueError(unknown_name("optimizer.name", name, known))
    _refuse_unused(name, momentum, kwargs or {})
    groups = parameter_groups(network, parts, weight_decay, layer_decay, decay_norm_and_bias)
    if not any(group["params"] for group in groups):
        raise ValueError("no parameter requires a gradient; set backbone.freeze=false or give the head parameters")
    if name.lower() == "sgd" and momentum == 0:
        name = "momentum"  # timm's sgd is Nesterov's, which PyTorch refuses without momentum
    given: Group = {} if momentum is None else {"momentum": momentum}
    given |= kwargs or {}
    if not name.lower().startswith(NOT_TRIED):
        _try_out(name, lr, weight_decay, given)
    with values_for("timm", _said("optimizer", {"name": name, "lr": lr, "weight_decay": weight_decay, **given})):
        return timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **given)


def _try_out(name: str, lr: float, weight_decay: float, given: Group) -> None:
    """Two steps on a weight that nobody needs: many optimizers look at their arguments only then, or never."""
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.ones(4, 4)
    with (
        values_for(f"timm's optimizer {name}", _said("optimizer.kwargs", given) or f"optimizer.name={name}"),
        torch.random.fork_rng(devices=[]),
    ):
        optimizer = timm.optim.create_optimizer_v2([weight], opt=name, lr=lr, weight_decay=weight_decay, **given)
        for _ in range(2):
            optimizer.step()


def _said(group: str, values: Group) -> str:
    return ", ".join(f"{group}.{key}={value}" for key, value in values.items() if value is not None)


def _refuse_unused(name: str, momentum: float | None, kwargs: Group) -> None:
    """timm drops momentum, eps and betas without a word where the optimizer has no such argument."""
    info = timm.optim.get_optimizer_info(name.lower())
    if momentum is not None and not info.has_momentum:
        betas = "its momentum is optimizer.kwargs.betas; " if info.has_betas else ""
        raise ValueError(
            f"optimizer.momentum={momentum}: {name} takes no momentum; {betas}leave it out (optimizer.momentum=null)"
        )
    for key, has in {"eps": info.has_eps, "betas": info.has_betas}.items():
        if key in kwargs and not has:
            raise ValueError(f"optimizer.kwargs.{key}={kwargs[key]}: {name} takes no {key}; leave it out")


def parameter_groups(
    network: nn.Module,
    parts: nn.Module | None,
    weight_decay: float,
    layer_decay: float | None,
    decay_norm_and_bias: bool,
) -> list[Group]:
    """Groups with weight decay on matrices only, and a learning-rate scale for each depth where asked."""
    networks: list[Any] = [network, *getattr(parts, "trained", [])]
    groups = [group for one in networks for group in _of_network(one, weight_decay, layer_decay)]
    if parts is not None:
        seen = {id(p) for one in networks for p in one.parameters()}
        owned = param_groups_weight_decay(parts, weight_decay=weight_decay)
        groups += [{**group, "params": [p for p in group["params"] if id(p) not in seen]} for group in owned]
    if decay_norm_and_bias:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    return _split(groups, [*networks, *([parts] if parts is not None else [])])


def _of_network(network: Any, weight_decay: float, layer_decay: float | None) -> list[Group]:
    """Groups of one network: of its backbone, by depth where asked, and of its head."""
    backbone = network.backbone
    no_weight_decay: Any = getattr(backbone, "no_weight_decay", set)
    skip = no_weight_decay()
    if layer_decay is not None:
        groups = param_groups_layer_decay(
            backbone, weight_decay=weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay
        )
        if _head_is_a_layer(network):
            for group in groups:  # the head, not the last layer of the backbone, is the top
                group["lr_scale"] *= layer_decay
    else:
        groups = param_groups_weight_decay(backbone, weight_decay=weight_decay, no_weight_decay_list=skip)
    return [*groups, *param_groups_weight_decay(network.head, weight_decay=weight_decay)]


def _split(groups: list[Group], modules: list[Any]) -> list[Group]:
    """Own parameters of a module with ``group_options`` (a dict of group keys) leave for groups with these options.

    Their ``lr_scale`` multiplies that of the group they leave.
    """
    own: dict[int, Group] = {
        id(parameter): options
        for root in modules
        for module in root.modules()
        if (options := getattr(module, "group_options", None))
        for parameter in module.parameters(recurse=False)
    }
    result: list[Group] = []
    for group in groups:
        apart: dict[str, Group] = {}
        for parameter in group["params"]:
            options = own.get(id(parameter), {})
            scale = group.get("lr_scale", 1.0) * options.get("lr_scale", 1.0)
            new = {**group, **options, **({"lr_scale": scale} if "lr_scale" in options else {}), "params": []}
            apart.setdefault(repr(sorted(options.items())), new)["params"].append(parameter)
        result += apart.values()
    return result


def _head_is_a_layer(network: Any) -> bool:
    """Whether timm counts the classifier as a layer above the backbone; it joins the last norm in ConvNeXt or BEiT."""
    if not hasattr(network.backbone, "group_matcher"):
        return True
    with torch.device("meta"):  # names only: no memory, no random numbers drawn
        full: Any = timm.create_model(
            network.backbone_name, num_classes=2, in_chans=network.in_channels, **network.backbone_kwargs
        )
    layers = [group_parameters(m, m.group_matcher(coarse=False), reverse=True) for m in (full, network.backbone)]
    return max(layers[0].values()) > max(layers[1].values())


@range_checked
def create_schedule(
    optimizer: Optimizer,
    total_updates: int,
    *,
    name: Literal["cosine", "step", "wsd", "constant"] = "cosine",
    warmup_fraction: Annotated[float, "0 <= x <= 1"] = 0.0,
    min_lr: Annotated[float, "x >= 0"] | None = None,
    milestones: list[Annotated[float, "0 <= x <= 1"]] | None = None,
    decay_rate: Annotated[float, "0 <= x <= 1"] | None = None,
    decay_fraction: Annotated[float, "0 <= x <= 1"] | None = None,
) -> Scheduler:
    """A schedule that depends on the share of the run that is done, so that it scales with ``trainer.max_epochs``.

    ``schedule.step_update(u)`` sets the learning rate of update u (0-based): a function of u and nothing else.

    Args:
        optimizer: whose groups it drives.
        total_updates: of the whole run.
        name: cosine to ``min_lr``; step at ``milestones``; wsd (warm up, stay, decay over the last share); constant.
        warmup_fraction: share of the run with a linear warm-up from ``lr / (warmup updates + 1)``.
        min_lr: where the rate ends (cosine and wsd only); None is 0.
        milestones: shares of the run after which the rate is multiplied by ``decay_rate`` (step only); None is
            [0.5, 0.75].
        decay_rate: for step only; None is 0.1.
        decay_fraction: share of the run that decays (wsd only); None is 0.1.

    Raises:
        ValueError: a value out of range, a key of another schedule, or ``min_lr`` above the learning rate.
    """
    own = {"cosine": ("min_lr",), "wsd": ("min_lr", "decay_fraction"), "step": ("milestones", "decay_rate")}
    keys = {"min_lr": min_lr, "milestones": milestones, "decay_rate": decay_rate, "decay_fraction": decay_fraction}
    for key, value in keys.items():
        if value is not None and key not in own.get(name, ()):
            others = " or ".join(f"schedule={other}" for other, theirs in own.items() if key in theirs)
            raise ValueError(f"schedule.{key}={value} has no effect on {name}; it belongs to {others}; leave it out")
    min_lr = 0.0 if min_lr is None else min_lr
    decay_rate = 0.1 if decay_rate is None else decay_rate
    decay_fraction = 0.1 if decay_fraction is None else decay_fraction
    lr = optimizer.param_groups[0]["lr"]
    if min_lr > lr:
        raise ValueError(f"schedule.min_lr={min_lr} is above optimizer.lr={lr}, where the rate starts; lower it")
    warmup = round(warmup_fraction * total_updates)
    common: Group = {
        "warmup_t": warmup,
        "warmup_lr_init": lr / (warmup + 1),
        "t_in_epochs": False,
    }
    rest = max(total_updates - warmup, 1)
    # timm applies milestone m at t = m - 1, hence the + 1
    shares_done = sorted([0.5, 0.75] if milestones is None else milestones) if name == "step" else []
    steps = [round(share * total_updates) + 1 for share in shares_done]
    with values_for("timm", _said("schedule", {"name": name, "warmup_fraction": warmup_fraction, **keys})):
        if name == "cosine":
            return CosineLRScheduler(optimizer, rest, lr_min=min_lr, warmup_prefix=True, **common)
        if name == "wsd":
            decay = max(round(decay_fraction * total_updates), 1)
            return WSDLRScheduler(optimizer, max(rest, decay), lr_min=min_lr, decay_t=decay, **common)
        return MultiStepLRScheduler(optimizer, steps, decay_rate=decay_rate, warmup_prefix=False, **common)
