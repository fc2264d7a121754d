"""What a part costs: whole steps beside an A/A ratio, and the added operations alone over the step.

    python -m benchmarks.step [--backbone cifar_resnet20] [--batch 128] [--repeats 15]

Prints and keeps ratios against the plain step: A/A (the plain step against itself), SAF while active, MESA while
active, both before they start. The SAF bar is tighter than the noise of whole steps, so its added operations (read of
the store, divergence with its backward, write) are timed alone as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch, Step, Update
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.part import Context, Regularizer
from lightning_modules.parts import Parts
from lightning_modules.regularizers.mesa import MESA
from lightning_modules.regularizers.saf import SAF
from lightning_modules.step import run_step

CLASSES, TRAIN = 10, 50_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def one_step(backbone: str, batch: Batch, regularizers: dict[str, Regularizer], epoch: int) -> Callable[[], None]:
    """A training step in ``epoch`` of a fresh network with these regularizers."""
    torch.manual_seed(0)
    body = create_backbone(name=backbone)
    network = Network(body, Linear(body.num_features, CLASSES)).to(DEVICE)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the recipes do
    parts = Parts(CrossEntropy(), regularizers)
    parts.setup(Context(CLASSES, TRAIN, 10, 100, network))
    parts.to(DEVICE)
    stores = [part for part in parts.regularizers.values() if isinstance(part, SAF) and part.weight > 0]
    for saf in stores:
        saf.written.fill_(epoch - saf.lag)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        step = Step(epoch, 0, 0, network, network, len(batch))
        result = run_step(parts, batch, step)
        optimizer.step()
        parts.commit(result.whole(), step)
        for saf in stores:
            saf.written[epoch % saf.lag].index_fill_(0, batch.index, epoch - saf.lag)  # fresh again

    return run


def saf_alone(batch: Batch) -> Callable[[], None]:
    """SAF's operations without a network: read, divergence, its backward, write."""
    saf = SAF(lag=3, start_epoch=0)
    saf.setup(Context(CLASSES, TRAIN, 10, 100, torch.nn.Identity()))
    saf.to(DEVICE)
    from kernels.batch import Output

    logits = torch.randn(len(batch), CLASSES, device=DEVICE, requires_grad=True)
    step = Step(5, 0, 0, torch.nn.Identity(), torch.nn.Identity(), len(batch))

    def run() -> None:
        outputs = {"main": Output(logits=logits)}
        term = saf(outputs, batch, step)
        assert term is not None
        (term.sum() / len(batch)).backward()
        saf.commit(Update({"main": Output(logits=logits.detach())}, batch), step)

    return run


def main() -> None:
    options = arguments(backbone="cifar_resnet20", batch=128, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.randperm(TRAIN)[: options.batch]
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)

    def make(regularizers: dict[str, Regularizer], epoch: int) -> Callable[[], None]:
        return one_step(options.backbone, batch, regularizers, epoch)

    times = interleave(
        {
            "plain": make({}, 5),
            "plain again": make({}, 5),
            "saf active": make({"saf": SAF(lag=3, start_epoch=0)}, 5),
            "saf waiting": make({"saf": SAF(lag=3, start_epoch=7)}, 5),
            "mesa active": make({"mesa": MESA(start_epoch=0)}, 5),
            "weight 0": make({"saf": SAF(weight=0.0), "mesa": MESA(weight=0.0)}, 5),
        },
        options.repeats,
    )
    alone = statistics.median(interleave({"saf": saf_alone(batch)}, 200, warmup=20)["saf"])
    plain = statistics.median(times["plain"])
    save(
        f"step_{options.backbone}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * plain, 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
            "saf_added_operations_ms": round(1e3 * alone, 4),
            "saf_added_over_step": round(alone / plain, 5),
        },
    )


if __name__ == "__main__":
    main()
