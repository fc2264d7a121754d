"""The progress display: what it says when, on a fake clock in a real Trainer run, and what a step pays for it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from kernels.batch import Batch
from lightning_modules.callbacks import progress as module
from lightning_modules.callbacks.progress import Pace, Progress


class Tiny(LightningModule):
    """Two epochs of three batches of four images; a step takes two seconds and a validation ten, on the fake clock."""

    def __init__(self, clock: SimpleNamespace) -> None:
        super().__init__()
        self.layer, self.clock, self.reads = torch.nn.Linear(1, 1), clock, 0
        self.last_loss: torch.Tensor | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.clock.now += 2.0
        loss = self.layer(batch.image.flatten(1)[:, :1]).square().mean() * 0 + 1.25
        self.last_loss = loss.detach()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 10.0
        self.log("val/accuracy", 0.5, batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def collate(indices: list[int]) -> Batch:
    count = len(indices)
    return Batch(torch.zeros(count, 3, 2, 2), torch.zeros(count, dtype=torch.long), torch.tensor(indices))


def fit(callback: Progress, folder: Path, validate: bool = True, **settings: Any) -> None:
    clock = SimpleNamespace(now=100.0)
    callback.clock = lambda: clock.now
    loader: Any = DataLoader(list(range(12)), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    one: Any = DataLoader(list(range(4)), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
                      num_sanity_val_steps=0, **settings)  # fmt: skip
    trainer.fit(Tiny(clock), loader, one if validate else None)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]


def test_one_plain_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Progress(), tmp_path)
    # 12 images in 6 s; the validation's 10 s count for the time left (16 s an epoch), not for the speed.
    assert lines(capsys) == [
        "epoch 1/2 | 0:00:16 left | 2 images/s | loss 1.25 | val 50.0 %",
        "epoch 2/2 | 0:00:00 left | 2 images/s | loss 1.25 | val 50.0 %",
    ]


def test_a_long_epoch_writes_a_line_at_most_every_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 4.0)
    fit(Progress(refresh_seconds=0.0), tmp_path, validate=False)
    # Steps end at 2, 4 | 6 (epoch) | 8, 10 | 12 (epoch) seconds: a line inside at 4 and at 10.
    assert [re.split(r" \| \d:", line)[0] for line in lines(capsys)] == [
        "epoch 1/2 | 33 % of the run", "epoch 1/2", "epoch 2/2 | 83 % of the run", "epoch 2/2"]  # fmt: skip


def test_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    callback = Progress(refresh_seconds=2.0)
    fit(callback, tmp_path)
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "epoch 1/2" in drawn and "0:00:10 left · 2 images/s · loss 1.25" in drawn  # after the first of six steps
    assert "epoch 2/2" in drawn and "0:00:00 left · 2 images/s · loss 1.25 · val 50.0 %" in drawn
    assert callback._view is None  # closed


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = Progress(refresh_seconds=0.0)
    trainer: Any = SimpleNamespace(is_global_zero=False, world_size=2)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_batch_end(trainer, None, None, [0], 0)  # type: ignore[arg-type]
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_time_left_is_never_negative_and_starts_where_the_run_was_resumed() -> None:
    pace = Pace(start=100.0, last=100.0, done_at_start=50.0)
    assert pace.seconds_left(60.0, 100.0, 120.0) == pytest.approx(80.0)  # 10 batches in 20 s, 40 to go
    assert pace.seconds_left(60.0, 100.0, 90.0) is None  # the clock went back
    assert pace.seconds_left(110.0, 100.0, 120.0) == 0.0
    assert pace.seconds_left(50.0, 100.0, 120.0) is None and pace.seconds_left(60.0, None, 120.0) is None
    pace.measure(10, 90.0)
    assert pace.images_per_second is None


def test_a_run_without_a_planned_end_shows_no_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Endless(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            yield from range(12)

    clock = SimpleNamespace(now=0.0)
    callback = Progress()
    callback.clock = lambda: clock.now
    loader: Any = DataLoader(Endless(), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(Tiny(clock), loader)
    assert lines(capsys) == ["epoch 1/2 | 2 images/s | loss 1.25", "epoch 2/2 | 2 images/s | loss 1.25"]


def test_a_step_between_refreshes_is_cheap_and_reads_no_loss() -> None:
    class Untouchable:
        @property
        def last_loss(self) -> None:
            raise AssertionError("the loss was read between two refreshes")

    callback, batch = Progress(refresh_seconds=60.0), collate([0, 1])
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1, num_training_batches=9, current_epoch=0)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for i in range(1000):
            callback.on_train_batch_end(trainer, Untouchable(), None, batch, i)  # type: ignore[arg-type]
        times.append((time.perf_counter() - start) / 1000)
    assert min(times) < 20e-6


def test_bad_refresh_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh_seconds=-1 is out of range; allowed: refresh_seconds >= 0"):
        Progress(refresh_seconds=-1)
