"""Contrastive representation distillation.

Tian, Krishnan, Isola. "Contrastive Representation Distillation". ICLR 2020, arXiv 1910.10699. Official code:
HobbitLong/RepDistiller.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step, Update
from kernels.crd import OtherClasses, bank_scores, contrastive_nce
from kernels.pairs import unit
from lightning_modules.distributed import gather, total_over_processes
from lightning_modules.part import Context, TrainingData, split_view
from lightning_modules.regularizers.distilling import Distilling, at_home, drawn_apart
from lightning_modules.teaching.given import width_of


class CRD(Distilling):
    """``weight * (h_s + h_t)``: each network is to find the other one's vector of a sample among those of others.

    Two linear maps, trained with the network and dropped with this part, embed the features of student and teacher as
    unit vectors. Two banks hold such a vector for every training sample; the student's is compared with the teacher's
    bank and the other way round (``kernels.crd``). Negatives are samples of other classes, and as many for every
    sample: ``num_negatives``, or what the data has beside its largest class. After an update the rows of its samples
    move, ``unit(momentum * row + (1 - momentum) * vector)``.

    The constants Z are those of the first update, over all processes, so that micro-batches are refused. Negatives are
    functions of (seed, update, index).

    Memory: ``2 * num_train * dim`` numbers for the banks, which are in every checkpoint (51 MB for CIFAR, 1.3 GB for
    ImageNet), and ``4 * batch * num_train`` for the scores of a step.

    Departures from the official code: rows start with length 1, and negatives are drawn one from each of
    ``num_negatives`` equal pieces of the samples of other classes, cut from a random place on, not all from the whole.

    Classes are those of the training labels before the first update; a plain loop that does not call ``prepare`` learns
    them as they come.

    Args:
        weight: 0.8 in the paper.
        dim: E of the vectors.
        num_negatives: K at most.
        temperature: tau.
        momentum: of the banks.
        keys: ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see ``Distilling``).
    """

    per_sample = False
    needs = frozenset({"index"})
    refuses = {
        **Distilling.refuses,
        "mixes_labels": "the banks hold a vector for each training image, and a mixed one is none of them and has no "
        "class that its negatives could lack; remove it with ~mixing, or take +regularizer=rkd",
    }

    embed_student: nn.Linear
    embed_teacher: nn.Linear
    bank_student: Tensor
    bank_teacher: Tensor
    constants: Tensor
    labels: Tensor

    def __init__(
        self,
        *,
        weight: Annotated[float, "x >= 0"] = 0.8,
        dim: Annotated[int, "1 <= x <= 65536"] = 128,
        num_negatives: Annotated[int, "x >= 1"] = 16384,
        temperature: Annotated[float, "x > 0"] = 0.07,
        momentum: Annotated[float, "0 <= x < 1"] = 0.5,
        **keys: Any,
    ) -> None:
        super().__init__(weight=weight, **keys)
        self.dim, self.num_negatives, self.temperature, self.momentum = dim, num_negatives, temperature, momentum
        self._prepared = self._fixed = False
        self._others: OtherClasses | None = None  # made of the labels, and no state of its own
        self._update, self._seen, self._constants = -1, list[tuple[Tensor, Tensor]](), torch.zeros(2)  # of one update

    def begin_with(self, context: Context, teacher: Any) -> None:
        super().begin_with(context, teacher)
        student = context.network_of(split_view(self.view)[0])
        with drawn_apart(context.seed, "crd"):  # the numbers of the network stay those of the run without it
            self.embed_student = nn.Linear(width_of(student), self.dim)
            self.embed_teacher = nn.Linear(width_of(teacher), self.dim)
            for name in ("bank_student", "bank_teacher"):
                self.register_buffer(name, unit(torch.rand(context.num_train, self.dim) * 2 - 1))
        self.register_buffer("constants", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("labels", torch.full((context.num_train,), -1))

    def prepare(self, data: TrainingData) -> None:
        """Look at the labels once.

        Raises:
            ValueError: all are of one class.
        """
        if self.weight == 0:
            return
        for batch in data.batches():
            self.labels[batch.index.to(self.labels.device)] = batch.label.to(self.labels.device)
        self._prepared, self._others = True, None
        if OtherClasses(self.labels).fewest == 0:
            raise ValueError(
                "crd: the negatives of a sample are those of other classes, and all training samples are of one; take "
                "a term that reads no class, such as rkd"
            )

    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        assert student.features is not None and teacher.features is not None
        with torch.autocast(student.features.device.type, enabled=False):
            own_BE = unit(self.embed_student(at_home(self.embed_student, student.features)))
            other_BE = unit(self.embed_teacher(at_home(self.embed_teacher, teacher.features.detach())))
        index_BJ = self.candidates(batch, step)
        scores = [
            bank_scores(rows_BE, bank_NE, index_BJ, self.temperature)
            for rows_BE, bank_NE in ((own_BE, self.bank_teacher), (other_BE, self.bank_student))
        ]
        self._see(own_BE, other_BE, scores, step)
        constants = self.constants if self._fixed else self._constants
        parts = [
            contrastive_nce(scores_BJ, constant, len(self.labels))
            for scores_BJ, constant in zip(scores, constants, strict=True)
        ]
        return parts[0] + parts[1]

    def candidates(self, batch: Batch, step: Step) -> Tensor:
        """``[B, 1 + K]`` rows of the banks for each sample: its own, then negatives."""
        others = self._others
        if others is None or others.device != batch.label.device:
            others = self._others = OtherClasses(self._labels_with(batch, step))
        count = min(self.num_negatives, others.fewest)
        negatives = others.draw(count, batch.label, step.seed, step.update, batch.index)
        if not self._prepared:
            self._others = None  # the next update knows more
        return torch.cat([batch.index[:, None], negatives], 1)

    def _labels_with(self, batch: Batch, step: Step) -> Tensor:
        """The labels that are known, with those of this update where nothing was prepared."""
        if self._prepared:
            return self.labels
        return self.labels.index_copy(0, gather(batch.index, step.batch_size), gather(batch.label, step.batch_size))

    @torch.no_grad()
    def _see(self, own_BE: Tensor, other_BE: Tensor, scores: list[Tensor], step: Step) -> None:
        """Keep for ``commit`` what the first pass of an update saw; an update that never happens is forgotten."""
        if step.pass_number:
            return
        if self._update != step.update:
            self._update, self._seen = step.update, []
            if not self._fixed:
                count = scores[0].new_tensor(scores[0].numel(), dtype=torch.float64)
                sums = [score_BJ.double().exp().sum() for score_BJ in scores]
                *total, count = total_over_processes(torch.stack([*sums, count]))
                # Of no sample there is no mean; 1 stands for it, and is not kept.
                self._constants = torch.where(
                    count > 0, len(self.labels) * torch.stack(total) / count.clamp_min(1), 1.0
                )
        self._seen.append((own_BE.detach(), other_BE.detach()))

    def commit(self, result: Update, step: Step) -> None:
        """Move the rows of the update's samples."""
        if self.weight == 0:
            return
        super().commit(result, step)
        if self._update != step.update or not step.batch_size:
            return
        index_B = gather(result.batch.index, step.batch_size)
        if not self._fixed and len(index_B):
            self.constants.copy_(self._constants)
            self._fixed = True
        if not self._prepared:
            self.labels[index_B] = gather(result.batch.label, step.batch_size)
        for bank_NE, vectors in zip((self.bank_student, self.bank_teacher), zip(*self._seen, strict=True), strict=True):
            rows_BE = gather(torch.cat(vectors), step.batch_size).to(bank_NE.dtype)
            moved_BE = self.momentum * bank_NE[index_B] + (1 - self.momentum) * rows_BE
            bank_NE[index_B] = unit(moved_BE).to(bank_NE.dtype)
        self._update, self._seen = -1, []

    def get_extra_state(self) -> Tensor:
        """Whether labels were looked at, and the constants fixed: a step must not wait for the device to read it."""
        return torch.tensor([self._prepared, self._fixed])

    def set_extra_state(self, state: Tensor) -> None:
        self._prepared, self._fixed = (bool(value) for value in state)
        self._others, self._update, self._seen = None, -1, []
