"""What losses on pairs of embeddings share: all samples of the update, a memory of earlier ones, mixed pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from kernels.mixed_pairs import MixedPairs
from kernels.pair_form import clean_loss
from kernels.pairs import pair_masks, similarities, unit
from lightning_modules.distributed import gather, gather_with_gradient, share_of
from lightning_modules.part import Context, Loss


@dataclass(frozen=True, slots=True)
class Candidates:
    """What anchors are compared with.

    Attributes:
        embeddings: ``[N, E]``: the update of all processes, then the memory.
        labels: ``[N]``.
        first_own: the row of the first anchor; the others follow it.
        batch_size: rows that belong to the update.
    """

    embeddings: Tensor
    labels: Tensor
    first_own: int
    batch_size: int

    def keywords(self, anchors: Tensor) -> dict[str, Any]:
        """What the kernels take; nothing where the anchors are all there is."""
        if self.embeddings is anchors:
            return {}
        keywords = {"columns": self.embeddings, "column_labels": self.labels, "first_own": self.first_own}
        return {**keywords, "anchors": self.batch_size}


class PairLoss(Loss):
    """A loss of each anchor over its pairs with all other samples of the update, over all processes.

    Subclasses have a ``pair_form``, with which their pairs can be mixed as well (Metrix), or define ``of_anchors``;
    both where a kernel of their own is faster than the general form.

    Args:
        memory: embeddings of earlier updates that stay candidates, the newest ones: the cross-batch memory of Wang,
            Zhang, Huang, Scott (2020), "Cross-Batch Memory for Embedding Learning", arXiv 1912.06798. 0 for none.
        memory_start: updates before the memory is used; embeddings of an untrained network drift too fast.

    Raises:
        ValueError: a negative number, or a start without a memory.
    """

    needs = frozenset({"embedding", "hard_labels"})
    per_sample = False
    gathers = True
    compares = True
    memory_embedding: Tensor
    memory_label: Tensor

    def __init__(self, *, memory: Annotated[int, "x >= 0"] = 0, memory_start: Annotated[int, "x >= 0"] = 0) -> None:
        super().__init__()
        if memory_start and not memory:
            raise ValueError(
                f"loss.memory_start={memory_start} is when a memory starts, and there is none; set loss.memory"
            )
        self.memory, self.memory_start = memory, memory_start
        self._written = 0

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, *, anchors: int = 0, **candidates: Any) -> Tensor:
        """The loss ``[B]`` of each anchor.

        ``candidates``, where there are others than the anchors, are what the kernels take: ``columns``,
        ``column_labels`` and ``first_own``, and the number of ``anchors`` of the whole update.
        """
        if self.pair_form is None:
            raise NotImplementedError(f"{type(self).__name__} must have a pair_form or define of_anchors")
        similarity_BN = similarities(rows_BE, candidates.get("columns"))
        masks = pair_masks(labels_B, candidates.get("column_labels"), candidates.get("first_own", 0))
        return clean_loss(self.pair_form, similarity_BN, *masks)

    def of_mixed(self, rows_BE: Tensor, labels_B: Tensor, pairs: MixedPairs, **candidates: Any) -> Tensor:
        """The loss ``[B]`` of each anchor over its mixed pairs."""
        assert self.pair_form is not None
        candidates.pop("anchors", None)
        return pairs.loss(self.pair_form, rows_BE, labels_B, **candidates)

    def setup(self, context: Context) -> None:
        refuse_values(self.of_anchors, torch.eye(2), torch.tensor([0, 1]))
        if self.memory:
            head: Any = context.network.head
            dim = head.embedding_dim
            self.register_buffer("memory_embedding", torch.zeros(self.memory, dim))
            self.register_buffer("memory_label", torch.zeros(self.memory, dtype=torch.int64))

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        rows_BE = embedding_of(outputs)
        keywords = self.candidates(rows_BE, batch.label, step).keywords(rows_BE)
        terms = {self.name: self.of_anchors(rows_BE, batch.label, **keywords)}
        if (pairs := batch.extra.get("mixed_pairs")) is not None:
            terms["metrix"] = pairs.weight * self.of_mixed(rows_BE, batch.label, pairs, **keywords)
        return terms

    def candidates(self, rows_BE: Tensor, labels_B: Tensor, step: Step) -> Candidates:
        """The update of all processes, and the memory where it is in use."""
        total = step.batch_size
        embeddings, labels = gather_with_gradient(rows_BE, total), gather(labels_B, total)
        kept = min(self._written, self.memory) if step.update >= self.memory_start else 0
        if kept:
            old = self.memory_embedding[:kept].to(embeddings.dtype)
            embeddings, labels = torch.cat([embeddings, old]), torch.cat([labels, self.memory_label[:kept]])
        return Candidates(embeddings, labels, share_of(total)[0], total)

    def commit(self, result: Update, step: Step) -> None:
        """Put the update into the memory, in place of the oldest."""
        if not self.memory:
            return
        rows_BE = gather(unit(embedding_of(result.outputs)), step.batch_size)[-self.memory :]
        labels_B = gather(result.batch.label, step.batch_size)[-self.memory :]
        place = (torch.arange(len(rows_BE), device=rows_BE.device) + self._written) % self.memory
        self.memory_embedding[place] = rows_BE.to(self.memory_embedding.dtype)
        self.memory_label[place] = labels_B
        self._written += len(rows_BE)

    def get_extra_state(self) -> Tensor:
        """How many embeddings the memory has seen: no buffer, since a step must not wait for the device to read it."""
        return torch.tensor(self._written)

    def set_extra_state(self, state: Tensor) -> None:
        self._written = int(state)


def refuse_values(function: Callable[..., Tensor], *example: Tensor) -> None:
    """Let a kernel refuse the values of a loss now, by an example, and not in the first step."""
    try:
        function(*example)
    except ValueError as error:
        raise ValueError(f"loss: {error}") from error


def embedding_of(outputs: dict[str, Output]) -> Tensor:
    """The embedding ``[B, E]`` of the main view."""
    embedding = outputs["main"].embedding
    assert embedding is not None  # a loss that needs one is refused beside a head that gives none
    return embedding
