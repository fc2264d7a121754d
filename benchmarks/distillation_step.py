"""What a teacher costs: the step of a student with a live one, and with one whose outputs are all kept.

    python -m benchmarks.distillation_step [--student cifar_resnet20] [--teacher cifar_resnet56] [--batch 32]

Prints and keeps ratios against the plain step, interleaved. A live teacher adds one forward to a forward and a backward
of the student, which is about two forwards: the bar is ``1 + F_teacher / (3 F_student) + 0.02``, with F measured as the
time of a forward. A full cache may add 3 %. What it adds is timed alone as well, since the bar is tighter than the
noise of whole steps.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable

import torch

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.regularizers.kd import KD
from lightning_modules.step import run_step
from lightning_modules.teaching.base import Teaching
from lightning_modules.teaching.cached import Cached, CachedTeacher
from lightning_modules.teaching.live import Live
from lightning_modules.teaching.training_images import TrainingImages

CLASSES = 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network_of(backbone: str) -> Network:
    torch.manual_seed(0)
    body = create_backbone(name=backbone)
    network = Network(body, Linear(body.num_features, CLASSES)).to(DEVICE)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # as the recipes do


def one_step(student: str, batch: Batch, teacher: str = "", teaching: Teaching | None = None) -> Callable[[], None]:
    """A training step of a fresh student; with a teaching, beside this teacher."""
    network = network_of(student)
    networks = {"teacher": teaching.teacher([network_of(teacher)], [None])} if teaching else {}
    parts = Parts(CrossEntropy(), {"kd": KD()} if teaching else {}, networks=networks).to(DEVICE)
    known = networks.get("teacher")
    if known is not None:
        known.begin(parts, TrainingImages(lambda: "benchmark", batch.index.cpu(), augmented=False))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    named = dict(network.named_parameters())

    def run() -> None:
        optimizer.zero_grad()
        run_step(parts, batch, Step(0, 0, 0, network, network, len(batch)), parameters=named)
        optimizer.step()

    if isinstance(known, CachedTeacher):
        run(), run()  # it is filled, and the batch that is checked is behind it
    return run


def forward(backbone: str, batch: Batch) -> Callable[[], object]:
    network = network_of(backbone).eval()

    @torch.no_grad()
    def run() -> object:
        return network(batch.image)

    return run


def reading(teacher: str, batch: Batch, folder: str) -> Callable[[], object]:
    """A batch of rows from a file that is full."""
    known = Cached(folder=folder).teacher([network_of(teacher)], [None])
    parts = Parts(CrossEntropy(), {"kd": KD()}, networks={"teacher": known})
    known.begin(parts, TrainingImages(lambda: "benchmark", batch.index.cpu(), augmented=False))
    run = lambda: known(batch.image, batch=batch)  # noqa: E731
    run(), run()
    return run


def main() -> None:
    options = arguments(student="cifar_resnet20", teacher="cifar_resnet56", batch=32, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index, augmentation=0 * index).to(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        taught = {"live": Live(), "cached": Cached(folder=folder)}
        steps: dict[str, Callable[[], object]] = {name: one_step(options.student, batch) for name in ("plain", "again")}
        steps |= {name: one_step(options.student, batch, options.teacher, how) for name, how in taught.items()}
        forwards = {name: forward(getattr(options, name), batch) for name in ("student", "teacher")}
        alone = {f"forward {name}": run for name, run in forwards.items()}
        times = interleave({**steps, **alone, "read": reading(options.teacher, batch, folder)}, options.repeats)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    share = seconds["forward teacher"] / seconds["forward student"]
    save(
        f"distillation_step_{options.student}_{options.batch}",
        {
            "student": options.student,
            "teacher": options.teacher,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * seconds["plain"], 3),
            "forward_ms": {name: round(1e3 * seconds[f"forward {name}"], 3) for name in forwards},
            "ratio_to_plain (median, quartiles)": ratios({name: times[name] for name in steps}, "plain"),
            "bar": {"live": round(1 + share / 3 + 0.02, 4), "cached": 1.03},
            "read_over_step": round(seconds["read"] / seconds["plain"], 5),
        },
    )


if __name__ == "__main__":
    main()
