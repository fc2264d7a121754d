"""What all terms of distillation share: whom they read, when they are on, and what they tell."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step, Update
from kernels.counter_rng import fold
from kernels.distillation import standardize_logits
from lightning_modules.distributed import gather, gather_with_gradient
from lightning_modules.part import Context, Regularizer, Unsuited, split_view
from lightning_modules.regularizers.activity import Activity
from lightning_modules.teaching.given import gives_of


class Distilling(Regularizer):
    """A term between a view of the network in training and one of its teacher.

    Args:
        weight: of the term; 0 is training without it, bit for bit.
        warmup_epochs: the weight grows over so many epochs, ``min(1, (epoch + 1) / warmup_epochs)``; 0 for none.
        stop_epoch: the term is off from this 0-based epoch on; None for never.
        teacher: the view that teaches: a network of the run and an image, such as ``teacher/clean`` under an attack.
        view: the view that learns; None for the prediction of the loss.

    Raises:
        ValueError: a ``stop_epoch`` that leaves no epoch.
    """

    refuses = {"mixes_features": "its teacher would see unmixed feature maps where the network sees mixed ones"}
    #: Per-sample terms are means over the batch; others are of the batch as a whole.
    per_sample: ClassVar[bool] = True
    reads_of_teacher: frozenset[str] = frozenset({"features"})
    #: What helps where the teacher does not give what is read.
    otherwise = "take a term that reads what there is"

    def __init__(
        self,
        *,
        weight: Annotated[float, "x >= 0"] = 1.0,
        warmup_epochs: Annotated[int, "x >= 0"] = 0,
        stop_epoch: Annotated[int, "x >= 1"] | None = None,
        teacher: str = "teacher/main",
        view: str | None = None,
    ) -> None:
        super().__init__(view=view)
        self.weight, self.warmup_epochs, self.stop_epoch, self.teacher = weight, warmup_epochs, stop_epoch, teacher
        self.activity = Activity()

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.view, self.teacher)

    def setup(self, context: Context) -> None:
        """Look at the teacher; nothing is allocated where the weight is 0."""
        if self.weight > 0:
            self.begin_with(context, context.network_of(split_view(self.teacher)[0]))

    def begin_with(self, context: Context, teacher: Any) -> None:
        """Allocate what depends on the teacher, and refuse one that cannot teach this.

        Raises:
            Unsuited: the teacher does not give what the term reads.
        """
        given = gives_of(teacher)
        wanted = {"features" if name == "norms" else name for name in self.reads_of_teacher}
        if lacking := ", ".join(sorted(wanted - given)):
            several = "" if "features" in given else " (several teachers give the mean of their logits alone)"
            raise Unsuited(
                f"it reads {lacking} of the view {self.teacher!r}, and that network gives "
                f"{', '.join(sorted(given)) or 'none that means anything here'}{several}; name one teacher that gives "
                f"{lacking}, or {self.otherwise}"
            )

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch; 0 while the term is off."""
        if self.stop_epoch is not None and epoch >= self.stop_epoch:
            return 0.0
        return self.weight * min(1.0, (epoch + 1) / self.warmup_epochs) if self.warmup_epochs else self.weight

    @abstractmethod
    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        """``[B]``, or a scalar of the batch, before the weight."""

    def rows(self, student_B: Tensor, teacher_B: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Rows of this process, or of all where the term is of the whole batch; those of the teacher are detached."""
        teacher_B = teacher_B.detach()
        if self.per_sample:
            return student_B, teacher_B
        return gather_with_gradient(student_B, step.batch_size), gather(teacher_B, step.batch_size)

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor | None:
        weight = self.weight_at(step.epoch)
        if weight == 0:
            return self.nothing(outputs) if self.weight > 0 else None
        term = self.term(outputs[self.view], outputs[self.teacher], batch, step)
        self.activity.count(step, term.detach().expand(len(batch)))
        return weight * term

    def nothing(self, outputs: dict[str, Output]) -> Tensor | None:
        """The term after its last epoch: None, or 0 where weights that learn from it alone still want a gradient.

        Several processes wait for the gradient of every trained weight in every update.
        """
        own = [p.sum() for p in self.parameters() if p.requires_grad]
        return 0.0 * sum(own[1:], own[0]) if own else None

    def commit(self, result: Update, step: Step) -> None:
        if self.weight > 0:
            self.activity.commit(step)

    def end_epoch(self) -> dict[str, float]:
        """The epoch's mean of the term, before its weight."""
        return {"value": self.activity.read("value", "share")["value"]}

    def report(self) -> dict[str, float]:
        return self.activity.report()

    def acted(self) -> bool:
        return self.weight == 0 or self.activity.acted()


class LogitDistilling(Distilling):
    """A term between logits.

    Args:
        head: whose logits learn: ``main``, which predicts, or ``auxiliary``, the second one of ``head=dual``.
        standardize: z-score the logits of student and teacher first (Sun et al. 2024, arXiv 2403.01427).
        keys: see ``Distilling``.
    """

    reads_of_teacher = frozenset({"logits"})

    def __init__(self, *, head: Literal["main", "auxiliary"] = "main", standardize: bool = False, **keys: Any) -> None:
        super().__init__(**keys)
        self.head, self.standardize = head, standardize
        self.needs = frozenset({"logits", "auxiliary_logits"} if head == "auxiliary" else {"logits"})  # type: ignore[misc]

    def logits_of(self, student: Output) -> Tensor:
        """Those that learn."""
        return student.auxiliary["logits"] if self.head == "auxiliary" else student.class_scores

    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        student_BC, teacher_BC = self.rows(self.logits_of(student), teacher.class_scores, step)
        if self.standardize:
            student_BC, teacher_BC = standardize_logits(student_BC), standardize_logits(teacher_BC)
        return self.of_logits(student_BC, teacher_BC, batch)

    @abstractmethod
    def of_logits(self, student_BC: Tensor, teacher_BC: Tensor, batch: Batch) -> Tensor:
        """``[B]``, or a scalar of the batch, before the weight."""

    def nothing(self, outputs: dict[str, Output]) -> Tensor | None:
        """0 in the graph of the auxiliary head, which nothing else reads."""
        if self.head == "auxiliary":
            return 0.0 * self.logits_of(outputs[self.view]).sum()
        return super().nothing(outputs)


@contextmanager
def drawn_apart(seed: int, name: str) -> Iterator[None]:
    """Inside, what is drawn on the CPU depends on seed and name alone; what is drawn afterwards, on nothing of it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold(seed, *name.encode()))  # torch.manual_seed would seed devices as well
        yield


def at_home(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor in the dtype of a module's weights, which is float32 beside a network of another one."""
    return tensor.to(next(module.parameters()).dtype)
