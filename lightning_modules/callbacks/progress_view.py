"""How progress is shown: ``Snapshot`` says what is known at one moment, ``Lines`` and ``Bar`` write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown at one moment; None where it is not known."""

    epoch: int
    epochs: int | None = None
    share: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    accuracy: float | None = None

    def facts(self) -> list[str]:
        """The known ones as short texts, the time left first: a narrow terminal cuts the others off."""
        facts = []
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            hours, minutes = divmod(minutes, 60)
            facts.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
        if self.images_per_second is not None:
            facts.append(f"{self.images_per_second:,.0f} images/s")
        if self.loss is not None:
            facts.append(f"loss {self.loss:.4g}")
        if self.accuracy is not None:
            facts.append(f"val {100 * self.accuracy:.1f} %")
        return facts

    def title(self) -> str:
        """``epoch 3/25``."""
        return f"epoch {self.epoch}" + (f"/{self.epochs}" if self.epochs else "")


class View(Protocol):
    """Where snapshots go."""

    def show(self, snapshot: Snapshot, ended: bool) -> None:
        """Show it; ``ended`` at the end of an epoch."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class Lines:
    """One plain line a snapshot, flushed, for log files and pipes."""

    def show(self, snapshot: Snapshot, ended: bool) -> None:
        share = "" if ended or snapshot.share is None else f"{100 * snapshot.share:.0f} % of the run"
        print(" | ".join(filter(None, [snapshot.title(), share, *snapshot.facts()])), flush=True)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Bar:
    """A rich bar over the whole run. Drawn by our calls only: no thread competes with training."""

    bar: Any = None
    task: Any = None

    def show(self, snapshot: Snapshot, ended: bool) -> None:
        if self.bar is None:
            self._open()
        share = None if snapshot.share is None else 1000 * snapshot.share
        text = " · ".join(snapshot.facts())
        self.bar.update(self.task, total=share and 1000, completed=share or 0, title=snapshot.title(), facts=text)
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _open(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        facts = TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        bar = BarColumn(bar_width=16, complete_style="cyan", finished_style="green")
        columns = TextColumn("{task.fields[title]}"), bar, facts
        self.bar = RichProgress(*columns, auto_refresh=False)
        self.task = self.bar.add_task("", total=None, title="", facts="")
        self.bar.start()
