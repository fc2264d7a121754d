"""What TrAct costs: the first layer alone, beside the plain one and the official algorithm, and whole training steps.

    python -m benchmarks.tract [--threads 1] [--repeats 15] [--layers-only]

The official algorithm is written here from its description: it keeps all unfolded windows, multiplies them with the
upstream gradient and with themselves, and inverts. Ratios are medians of interleaved rounds in one run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from benchmarks.timing import interleave, ratio, save
from kernels.batch import Batch, Step
from kernels.tract import tract_conv2d
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.base import operate
from lightning_modules.surgery.tract import TrAct

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAM = 0.1
#: (batch, image size, channels out, kernel, stride, padding)
LAYERS = {
    "3x3, 32 px": (128, 32, 64, 3, 1, 1),
    "7x7 stride 2, 224 px": (16, 224, 64, 7, 2, 3),
    "3x3 stride 2, 224 px": (16, 224, 32, 3, 2, 1),
    "patch 16, 224 px": (16, 224, 384, 16, 16, 0),
    "patch 4, 32 px": (128, 32, 192, 4, 4, 0),
}
#: (backbone, its arguments, its first layer as above)
STEPS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "resnet18_small, 32 px, batch 32": ("resnet18_small", {}, (32, 32, 64, 3, 1, 1)),
    "vit_small_patch16_224, batch 4": ("vit_small_patch16_224", {}, (4, 224, 384, 16, 16, 0)),
    "CIFAR ViT (7 layers, 12 heads, width 384, patch 4), batch 32": (
        "vit_small_patch16_224",
        {"img_size": 32, "patch_size": 4, "depth": 7, "num_heads": 12},
        (32, 32, 384, 4, 4, 0),
    ),
}


class Official(torch.autograd.Function):
    """Unfold, two products, inverse; without gradient of the input, which a first layer does not need."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(image, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:  # type: ignore[override]
        image, weight = ctx.saved_tensors
        X = unfold(image, weight.shape[2:], padding=ctx.padding, stride=ctx.stride).transpose(1, 2).flatten(0, 1)
        D = grad.flatten(2).transpose(1, 2).flatten(0, 1)
        A = X.T @ X / len(X) + LAM * torch.eye(X.shape[1], device=X.device)
        return None, (D.T @ X @ torch.inverse(A)).view_as(weight), None, None


def layer(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Forward and backward of one first layer, three ways (and the plain one twice)."""
    batch, size, out, kernel, stride, padding = shape
    image = torch.randn(batch, 3, size, size, device=DEVICE)
    weight = torch.randn(out, 3, kernel, kernel, device=DEVICE, requires_grad=True)
    upstream = torch.randn_like(conv2d(image, weight, None, stride, padding))

    def run(operation: Callable[[], Tensor]) -> Callable[[], None]:
        def forward_backward() -> None:
            weight.grad = None
            operation().backward(upstream)

        return forward_backward

    return {
        "plain": run(lambda: conv2d(image, weight, None, stride, padding)),
        "plain again": run(lambda: conv2d(image, weight, None, stride, padding)),
        "official": run(lambda: Official.apply(image, weight, stride, padding)),  # type: ignore[no-untyped-call]
        "tract": run(lambda: tract_conv2d(image, weight, None, stride, padding, 1, LAM)),
    }


def step(backbone: str, kwargs: dict[str, Any], batch: Batch, surgery: bool) -> Callable[[], None]:
    """A whole training step of a fresh network."""
    torch.manual_seed(0)
    body = create_backbone(name=backbone, kwargs=kwargs)
    network = Network(body, Linear(body.num_features, 10)).to(DEVICE)
    if surgery:
        operate(network.backbone, {"tract": TrAct(lam=LAM)})
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the recipes do
    parts, optimizer = Parts(CrossEntropy()), torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        run_step(parts, batch, Step(0, 0, 0, network, network, len(batch)))
        optimizer.step()

    return run


def steps(name: str, repeats: int) -> dict[str, Any]:
    """Whole steps, and what the first layer alone adds over the step: less noisy than the difference of steps."""
    backbone, kwargs, shape = STEPS[name]
    index = torch.arange(shape[0])
    batch = Batch(torch.rand(shape[0], 3, shape[1], shape[1]), index % 10, index).to(DEVICE)
    made: dict[str, Callable[[], object]] = {
        label: step(backbone, kwargs, batch, surgery)
        for label, surgery in (("plain", False), ("plain again", False), ("tract", True))
    }
    times, alone = interleave(made, repeats), interleave(layer(shape), 5 * repeats)
    added = statistics.median(a - b for a, b in zip(alone["tract"], alone["plain"], strict=True))
    return summary(times, "plain") | {"added by the layer / step": round(added / statistics.median(times["plain"]), 4)}


def summary(times: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Median milliseconds of the base, and ratios to it with their quartiles."""
    ratios = {f"{name} / {base}": ratio(times, name, base) for name in times if name != base}
    if "official" in times:
        ratios["tract / official"] = ratio(times, "tract", "official")
    rounded = {name: [round(value, 3) for value in values] for name, values in ratios.items()}
    return {f"{base}_ms": round(1e3 * statistics.median(times[base]), 2)} | rounded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    rows: dict[str, object] = {"repeats": options.repeats, "ratios": "median, lower and upper quartile"}
    for name, shape in LAYERS.items():
        rows[name] = summary(interleave(layer(shape), options.repeats), "plain")
    for name in () if options.layers_only else STEPS:
        rows[name] = steps(name, options.repeats)
    save("tract", rows)


if __name__ == "__main__":
    main()
