"""The finite guard: nothing that is not a number reaches the weights, and what happens instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn, get_args

from torch import Tensor, nn

from kernels.batch import Step
from lightning_modules.finite.batch import save_batch
from lightning_modules.finite.check import NonFiniteError, Verdict, check_finite
from lightning_modules.finite.report import describe
from lightning_modules.norm_statistics import BufferCopy, norm_buffers
from lightning_modules.parts import Parts
from lightning_modules.step import StepResult

Policy = Literal["raise", "skip", "rollback"]
DEFAULT_IN_A_ROW = 3


class FiniteGuard:
    """Judges every update before it happens, and acts where one is not finite.

    Each step: ``before`` ahead of the forward, ``check`` ahead of the optimizer, and ``act`` instead of the update
    where the verdict is not ok; it returns when training goes on with the next batch.

    Args:
        policy: ``raise`` ends the run; ``skip`` leaves the batch out and puts the network's buffers (norm statistics)
            back; ``rollback`` goes back to the newest good checkpoint and on with the batches that follow.
        max_in_row: largest number of batches left out in a row, or of rollbacks to the same checkpoint; then the guard
            raises. None: 3, for the policies that count.

    Raises:
        ValueError: an unknown policy, or a ``max_in_row`` below 1 or without effect.

    Example:
        >>> guard = FiniteGuard("skip", max_in_row=5)
    """

    def __init__(self, policy: Policy = "raise", max_in_row: int | None = None) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"nonfinite={policy!r} is not known; allowed: {', '.join(get_args(Policy))}")
        if policy == "raise" and max_in_row is not None:
            raise ValueError(
                f"max_nonfinite={max_in_row} has no effect with nonfinite=raise, which ends the run at the first one; "
                "leave it out, or set task.nonfinite=skip or rollback"
            )
        self.policy, self.max_in_row = policy, DEFAULT_IN_A_ROW if max_in_row is None else max_in_row
        self._copy: BufferCopy | None = None
        self._in_row = self._in_epoch = self._total = 0
        self._restored_from, self._advanced = -1, False

    def prepare(self, network: nn.Module, parts: nn.Module) -> None:
        """Allocate room for the buffers, on the device they train on; needed for ``skip`` alone."""
        if self.policy == "skip":
            self._copy = BufferCopy([*network.buffers(), *norm_buffers(parts)])

    def before(self) -> None:
        """Keep the buffers as they are ahead of the forward."""
        if self._copy is not None:
            self._copy.save()

    def check(self, result: StepResult, gradient_norms: Sequence[Tensor], stop: bool = False) -> Verdict:
        """``check_finite``, and an end to the row of left-out batches where it is ok."""
        verdict = check_finite(result, gradient_norms, stop)
        if verdict.ok and self.policy == "skip":
            self._in_row = 0
        self._advanced = self._advanced or verdict.ok
        return verdict

    def act(
        self,
        verdict: Verdict,
        result: StepResult,
        step: Step,
        parts: Parts,
        *,
        restore_good: Callable[[], int | None] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Say what happened, save the batch, and follow the policy.

        Args:
            verdict: that was not ok.
            result: of the step.
            step: where training stands.
            parts: the composed parts.
            restore_good: loads the newest good checkpoint and returns the update it is from, or None where there is
                none; the counts of this guard are kept.
            directory: where the batch is saved; None for nowhere.

        Raises:
            NonFiniteError: naming term, step, sample indices, the first non-finite layer and the saved file.
        """
        message = describe(result, step, parts, verdict.rank)
        message += save_batch(directory, result, step, message)
        if self.policy == "raise":
            self._fail(message, "task.nonfinite=skip leaves such batches out")
        self._in_epoch += 1
        self._total += 1
        if self.policy == "skip":
            self._skip(message)
        else:
            self._roll_back(message, restore_good)

    def _skip(self, message: str) -> None:
        assert self._copy is not None, "prepare() comes before the first step"
        self._copy.restore()
        self._in_row += 1
        if self._in_row > self.max_in_row:
            self._fail(message, f"{self.max_in_row} batches in a row were left out before (task.max_nonfinite)")
        warnings.warn(f"{message} The batch is left out ({self._in_row} in a row, {self._total} in all)", stacklevel=3)

    def _roll_back(self, message: str, restore_good: Callable[[], int | None] | None) -> None:
        counts = self.state()
        try:
            update = None if restore_good is None else restore_good()
        except Exception as error:
            raise NonFiniteError(f"{message} Going back to a good checkpoint failed: {error}") from error
        self.load(counts)  # a checkpoint brings older ones
        if update is None:
            self._fail(message, "task.nonfinite=rollback finds no good checkpoint yet to go back to")
        # A failed batch counts as an update too: the same weights may be saved again under another number.
        self._in_row = 1 if self._advanced and update != self._restored_from else self._in_row + 1
        self._restored_from, self._advanced = update, False
        if self._in_row > self.max_in_row:
            times = f"{self.max_in_row} times before (task.max_nonfinite)"
            self._fail(message, f"training already went back to the checkpoint of update {update} {times}")
        warnings.warn(f"{message} Training goes on from the checkpoint of update {update}", stacklevel=3)

    def _fail(self, message: str, why: str) -> NoReturn:
        advice = "Lower optimizer.lr, clip with task.clip_norm=1.0, or look at these images"
        raise NonFiniteError(f"{message} {advice}; {why}")

    def _named(self, count: int) -> dict[str, float]:
        names = {"skip": "nonfinite_skipped", "rollback": "nonfinite_rollbacks"}
        return {names[self.policy]: count} if self.policy in names else {}

    @property
    def lost_in_epoch(self) -> int:
        """Batches of this epoch that made no update."""
        return self._in_epoch

    def end_epoch(self) -> dict[str, float]:
        """How many batches of the epoch were left out, or rollbacks; starts the next epoch. Empty for ``raise``."""
        count, self._in_epoch = self._in_epoch, 0
        return self._named(count)

    def report(self) -> dict[str, float]:
        """The same over the whole run."""
        return self._named(self._total)

    def state(self) -> dict[str, int]:
        """The counts as plain values, for a checkpoint."""
        return {
            "in_row": self._in_row,
            "in_epoch": self._in_epoch,
            "total": self._total,
            "restored_from": self._restored_from,
            "advanced": int(self._advanced),
        }

    def load(self, state: dict[str, int]) -> None:
        """The inverse of ``state``."""
        self._in_row, self._in_epoch = state["in_row"], state["in_epoch"]
        self._total, self._restored_from = state["total"], state["restored_from"]
        self._advanced = bool(state["advanced"])
