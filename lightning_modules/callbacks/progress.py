"""``Progress``: a bar with the time left where there is a terminal, a few plain lines where there is none."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kernels.ranges import RangeChecked
from lightning_modules.callbacks.progress_view import Bar, Lines, Snapshot, View

LINE_SECONDS = 10.0  # between two plain lines inside an epoch


class Progress(RangeChecked, Callback):
    """Shows epoch, images per second, loss, validation accuracy and the time left, on rank zero.

    The loss is that of the last update, of its whole batch: the processes agree on it in the collective with which they
    decide on every update, so showing it adds none.

    A training step pays for an addition and a comparison of times. The loss is read from the device, which waits
    for it, only when the display is refreshed. Switch Lightning's own bar off (``enable_progress_bar=False``).

    Args:
        refresh_seconds: least time between two refreshes of the bar. Without a terminal a line is written at the end
            of each epoch, and inside an epoch when the last one is 10 seconds old.

    Raises:
        ValueError: ``refresh_seconds`` is negative or not finite.
    """

    def __init__(self, *, refresh_seconds: Annotated[float, "x >= 0"] = 0.5) -> None:
        self.refresh_seconds = refresh_seconds
        self.clock: Callable[[], float] = time.monotonic  # never set back; a test puts its own here
        self._view: View | None = None
        self._interval = refresh_seconds
        self._next, self._images = math.inf, 0
        self._pace = Pace()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        terminal = sys.stdout.isatty()
        self._view = Bar() if terminal else Lines()
        self._interval = self.refresh_seconds if terminal else max(self.refresh_seconds, LINE_SECONDS)
        now = self.clock()
        self._pace = Pace(start=now, last=now, done_at_start=_done(trainer, 0))
        self._images, self._next = 0, now + self._interval

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch)
        now = self.clock()
        if now >= self._next:
            self._show(trainer, pl_module, batch_idx + 1, now, ended=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Images per second is the speed of training: the time of a validation in between is no part of it.
        self._pace.measure(self._take_images(trainer), self.clock())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.last = self.clock()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._view is not None:
            self._show(trainer, pl_module, 0, self.clock(), ended=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()  # so that the traceback does not fight with the bar for the lines

    def _show(self, trainer: Trainer, pl_module: LightningModule, batches: int, now: float, *, ended: bool) -> None:
        if self._view is None:
            self._next = math.inf
            return
        self._pace.measure(self._take_images(trainer), now)
        done, total = _done(trainer, batches), _total(trainer)
        if ended:
            done = _done(trainer, 0) + _batches(trainer)
        loss, accuracy = getattr(pl_module, "last_loss", None), trainer.callback_metrics.get("val/accuracy")
        snapshot = Snapshot(
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None,
            share=min(done / total, 1.0) if total else None,
            images_per_second=self._pace.images_per_second,
            seconds_left=self._pace.seconds_left(done, total, now),
            loss=None if loss is None else float(loss),
            accuracy=None if accuracy is None else float(accuracy),
        )
        self._view.show(snapshot, ended)
        self._next = self.clock() + self._interval

    def _take_images(self, trainer: Trainer) -> int:
        images, self._images = self._images * trainer.world_size, 0
        return images

    def _close(self) -> None:
        if self._view is not None:
            self._view.close()
        self._view, self._next = None, math.inf


@dataclass(slots=True)
class Pace:
    """How fast training goes; times in seconds of a monotonic clock, progress in batches."""

    start: float = 0.0
    last: float = 0.0
    done_at_start: float = 0.0
    images_per_second: float | None = None

    def measure(self, images: int, now: float) -> None:
        """Count ``images`` trained since the last call; smoothed, so that one slow batch does not shake the display."""
        elapsed, self.last = now - self.last, now
        if images and elapsed > 0:
            rate = images / elapsed
            old = self.images_per_second
            self.images_per_second = rate if old is None else 0.7 * old + 0.3 * rate

    def seconds_left(self, done: float, total: float | None, now: float) -> float | None:
        """Time for the rest at the mean pace since the start, validation included; None while unknown."""
        progress, elapsed = done - self.done_at_start, now - self.start
        if total is None or progress <= 0 or elapsed <= 0:
            return None
        return max(0.0, elapsed / progress * (total - done))


def _batches(trainer: Trainer) -> float:
    """Batches of an epoch; infinite where the loader has no length."""
    return float(trainer.num_training_batches)


def _done(trainer: Trainer, batches: int) -> float:
    """Batches done since epoch 0, ``batches`` of them in this epoch."""
    return (trainer.current_epoch * _batches(trainer) if trainer.current_epoch else 0.0) + batches


def _total(trainer: Trainer) -> float | None:
    """Batches of the whole run; None where it has no planned end."""
    epochs, batches = trainer.max_epochs or -1, _batches(trainer)
    return epochs * batches if epochs > 0 and 0 < batches < math.inf else None
