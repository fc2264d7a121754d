"""What weight standardization costs: whole steps against plain convolutions and timm's batch-norm form, and alone.

    python -m benchmarks.weight_standardization [--backbone resnet18] [--batch 16] [--repeats 15]

The same network four times: as it is, again as it is (A/A), standardized by the surgery inside ``computed_once`` as the
training step opens it, and with the weights standardized by ``F.batch_norm`` on ``[1, O, n]``, as timm's ``StdConv2d``
does. The transforms alone, forward and backward over all layers, are timed beside them: one by one, timm's form, and
one call for all layers of a fan-in (joined, which the library does not do).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from benchmarks.timing import arguments, interleave, ratio, ratios, save
from kernels.weight_standardization import standardize_weight
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.surgery.base import operate
from lightning_modules.surgery.weight_standardization import WeightStandardization
from lightning_modules.surgery.weights import computed_once, parametrized

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch_norm_form(weight: Tensor) -> Tensor:
    """timm's: the filters are the channels of one image."""
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(weight)


class BatchNormForm(nn.Module):
    """timm's form as a parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return batch_norm_form(weight)


def joined(weights: list[Tensor]) -> list[Tensor]:
    """All filters of equal fan-in as rows of one tensor."""
    groups: dict[int, list[int]] = {}
    for position, weight in enumerate(weights):
        groups.setdefault(weight[0].numel(), []).append(position)
    result = list(weights)
    for positions in groups.values():
        rows = standardize_weight(torch.cat([weights[position].flatten(1) for position in positions]))
        for position, part in zip(positions, rows.split([len(weights[p]) for p in positions]), strict=True):
            result[position] = part.view(weights[position].shape)
    return result


def network(backbone: str, form: str) -> nn.Module:
    """The backbone with its weights as they are, or standardized in one of two ways."""
    torch.manual_seed(0)
    model: nn.Module = create_backbone(name=backbone).model.to(DEVICE)
    if form == "surgery":
        operate(model, {"ws": WeightStandardization()}, 32)
    elif form == "batch norm":
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                parametrize.register_parametrization(module, "weight", BatchNormForm())
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # as the recipes do


def step(model: nn.Module, image: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        model.zero_grad()
        with computed_once(model):
            model(image).square().mean().backward()

    return run


def transform(weights: list[Tensor], function: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[], None]:
    """The transforms alone, forward and backward."""
    gradients = [torch.randn_like(weight) for weight in weights]

    def run() -> None:
        torch.autograd.grad(function(weights), weights, gradients)

    return run


def main() -> None:
    options = arguments(backbone="resnet18", batch=16, size=64, repeats=15)
    keep_freed_memory()  # as the trainer does
    image = torch.rand(options.batch, 3, options.size, options.size, device=DEVICE)
    image = image.contiguous(memory_format=torch.channels_last)
    networks = {name: network(options.backbone, name) for name in ("plain", "plain again", "surgery", "batch norm")}
    times = interleave({name: step(model, image) for name, model in networks.items()}, options.repeats)
    modules = parametrized(networks["surgery"]).values()
    weights = [module.parametrizations["weight"].original for module in modules]  # type: ignore[index, union-attr]
    alone = interleave(
        {
            "surgery": transform(weights, lambda all_: [standardize_weight(weight) for weight in all_]),
            "batch norm": transform(weights, lambda all_: [batch_norm_form(weight) for weight in all_]),
            "joined": transform(weights, joined),
        },
        3 * options.repeats,
    )
    save(
        f"weight_standardization_{options.backbone}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "size": options.size,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * statistics.median(times["plain"]), 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
            "surgery_step_over_batch_norm_form_step": [
                round(value, 4) for value in ratio(times, "surgery", "batch norm")
            ],
            "transforms_alone_ms": {
                name: round(1e3 * statistics.median(seconds), 3) for name, seconds in alone.items()
            },
            "transforms_alone_over_batch_norm_form": {
                name: [round(value, 4) for value in ratio(alone, name, "batch norm")] for name in ("surgery", "joined")
            },
        },
    )


if __name__ == "__main__":
    main()
