"""What aligned gradients cost: their step over the plain one with the same terms.

    python -m benchmarks.aligned_gradient [--backbone cifar_resnet20] [--batch 128] [--repeats 15]

The plain step is that of dual-head distillation: cross-entropy on one head, the binary KL against a teacher's logits on
the other. Prints and keeps ratios against it, interleaved: A/A, and each scope. Parameters take one more backward
through the same forward, timed as well: what their step adds is held against it, the bar being 1.3; the bar of features
is 1.15 times the plain step. The teacher's logits are kept, since its forward is no part of what is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch, Output, Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.frozen import Frozen
from lightning_modules.gradients.aligned import Aligned
from lightning_modules.gradients.base import Gradient, Seat, sum_terms
from lightning_modules.gradients.sum import Sum
from lightning_modules.heads.dual import Dual
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.regularizers.binary_kl_norm import BinaryKLNorm
from lightning_modules.step import run_step

CLASSES = 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Twice(Gradient):
    """The sum, and one more backward of it through the same forward."""

    def forward(self, seat: Seat) -> None:
        for one in seat.passes():
            seat.derive(sum_terms(one.terms))
            seat.backward(sum_terms(one.terms))


class Kept(nn.Module):
    """A teacher whose logits are known."""

    def __init__(self, logits_BC: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits_BC", logits_BC)

    def forward(self, image: Tensor, **keys: Any) -> Output:
        return Output(logits=self.logits_BC)  # type: ignore[arg-type]


def one_step(backbone: str, batch: Batch, gradient: Gradient) -> Callable[[], None]:
    """A training step of a fresh network with this gradient."""
    torch.manual_seed(0)
    body = create_backbone(name=backbone)
    network = Network(body, Dual(body.num_features, CLASSES)).to(DEVICE)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the recipes do
    networks = {"teacher": Frozen(Kept(3 * torch.randn(len(batch), CLASSES))).to(DEVICE)}
    terms = {"binary_kl_norm": BinaryKLNorm(head="auxiliary")}
    parts = Parts(CrossEntropy(), terms, gradient=gradient, head=network.head, networks=networks)
    parts.setup(Context(CLASSES, 50_000, 10, 100, network, networks=networks))
    parts.to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    named = dict(network.named_parameters())

    def run() -> None:
        optimizer.zero_grad()
        step = Step(0, 0, 0, network, network, len(batch))
        result = run_step(parts, batch, step, parameters=named)
        optimizer.step()
        parts.commit(result.whole(), step)

    return run


def main() -> None:
    options = arguments(backbone="cifar_resnet20", batch=128, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)
    makers = {
        "plain": Sum(),
        "plain again": Sum(),
        "two backwards": Twice(),
        "feature": Aligned(scope="feature"),
        "backbone": Aligned(scope="backbone"),
        "all": Aligned(scope="all"),
    }
    times = interleave(
        {name: one_step(options.backbone, batch, gradient) for name, gradient in makers.items()}, options.repeats
    )
    plain = times["plain"]
    added = {name: statistics.median([a - b for a, b in zip(times[name], plain, strict=True)]) for name in makers}
    save(
        f"aligned_gradient_{options.backbone}_{options.batch}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * statistics.median(plain), 3),
            "backward_ms": round(1e3 * added["two backwards"], 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
            "added_over_a_backward": {
                name: round(added[name] / added["two backwards"], 3) for name in ("feature", "backbone", "all")
            },
        },
    )


if __name__ == "__main__":
    main()
