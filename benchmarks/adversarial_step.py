"""What adversarial training costs: its step over the plain one, against the passes that it cannot do without.

    python -m benchmarks.adversarial_step [--batch 64] [--steps 10] [--repeats 7] [--threads 2]

A pass forward costs one unit, a backward two; a gradient of the image alone is one forward and one backward of the
images, which is counted as two. So PGD with K steps takes (2 K + 3) / 3 of a plain step, TRADES (2 K + 7) / 3. Prints
and keeps the step's ratio over that, and the DRO coefficients alone over the step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import arguments, interleave, ratio, save
from kernels.batch import Batch, Step
from lightning_modules.attacks.pgd import PGD
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.trades import TRADES
from lightning_modules.network import Network
from lightning_modules.part import Attack, Loss, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.reweightings.kl_dro import KLDRO
from lightning_modules.step import run_step
from lightning_modules.surgery.base import Surgery, operate
from lightning_modules.surgery.tract import TrAct
from lightning_modules.surgery.weight_compander import WeightCompander
from lightning_modules.surgery.weight_standardization import WeightStandardization

CLASSES = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def one_step(
    batch: Batch,
    loss: Loss,
    attack: Attack | None = None,
    reweighting: Reweighting | None = None,
    surgery: Surgery | None = None,
) -> Callable[[], None]:
    """A training step of a fresh ResNet-18 for 32 px."""
    torch.manual_seed(0)
    body = create_backbone(name="resnet18_small")
    network = Network(body, Linear(body.num_features, CLASSES))
    if surgery is not None:
        operate(network.backbone, {"it": surgery}, 32)
    network = network.to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = Parts(loss, attack=attack, reweighting=reweighting).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    named = dict(network.named_parameters())

    def run() -> None:
        optimizer.zero_grad()
        step = Step(0, 0, 0, network, network, len(batch))
        result = run_step(parts, batch, step, parameters=named)
        optimizer.step()
        parts.commit(result.whole(), step)

    return run


def coefficients_alone(batch: Batch) -> Callable[[], None]:
    """What KL-DRO adds to a step."""
    reweighting, loss_B = KLDRO(), torch.rand(len(batch), device=DEVICE)
    step = Step(0, 0, 0, torch.nn.Identity(), torch.nn.Identity(), len(batch))

    def run() -> None:
        reweighting({"cross_entropy": loss_B}, {}, batch, step)

    return run


def main() -> None:
    options = arguments(batch=64, steps=10, repeats=7, threads=torch.get_num_threads())
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)
    pgd, kl = PGD(steps=options.steps), PGD(steps=options.steps, objective="kl", start="normal")
    surgeries: dict[str, Surgery] = {
        "ws": WeightStandardization(),
        "tract": TrAct(),
        "compander": WeightCompander(),
    }
    cases = {
        "plain": one_step(batch, CrossEntropy()),
        "plain again": one_step(batch, CrossEntropy()),
        "pgd": one_step(batch, CrossEntropy(), pgd),
        "pgd, kl_dro": one_step(batch, CrossEntropy(), pgd, KLDRO()),
        "trades": one_step(batch, TRADES(), kl),
    }
    for name, surgery in surgeries.items():
        cases[f"{name}, plain"] = one_step(batch, CrossEntropy(), surgery=surgery)
        cases[f"{name}, pgd"] = one_step(batch, CrossEntropy(), pgd, surgery=surgery)
    times = interleave(cases, options.repeats)
    needed = {"pgd": (2 * options.steps + 3) / 3, "trades": (2 * options.steps + 7) / 3}
    rows: dict[str, object] = {"A/A": [round(value, 4) for value in ratio(times, "plain again", "plain")]}
    for name in cases:
        if name not in ("plain", "plain again") and not name.endswith("plain"):
            base = f"{name.partition(',')[0]}, plain" if name.endswith(", pgd") else "plain"
            share = needed["trades" if name == "trades" else "pgd"]
            rows[f"{name} / plain"] = [round(value, 3) for value in ratio(times, name, base)]
            rows[f"{name} / plain, over {share:.3f}"] = [round(value / share, 4) for value in ratio(times, name, base)]
    alone = interleave({"coefficients": coefficients_alone(batch)}, 50)["coefficients"]
    rows["kl_dro coefficients alone over a plain step"] = round(
        statistics.median(alone) / statistics.median(times["plain"]), 6
    )
    save(f"adversarial_step_{options.batch}_{options.steps}", rows)


if __name__ == "__main__":
    main()
