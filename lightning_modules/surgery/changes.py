"""What a surgery did, as a record and as text. Imports no torch: reports read it too."""

from __future__ import annotations

from dataclasses import dataclass, field

_MODULE = ("  changed ", "  left ")


@dataclass(slots=True)
class Changes:
    """What a surgery did, for the report.

    Attributes:
        changed: {module name: what it is now}.
        skipped: {module name: why it was left}.
        notes: sentences about the whole, warnings included.
    """

    changed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self, name: str) -> list[str]:
        """The report as text, one line a module.

        Args:
            name: of the surgery.
        """
        head = f"{name}: {len(self.changed)} modules changed, {len(self.skipped)} left as they are"
        changed = [f"{_MODULE[0]}{module}: {what}" for module, what in self.changed.items()]
        skipped = [f"{_MODULE[1]}{module}: {why}" for module, why in self.skipped.items()]
        return [head, *(f"  {note}" for note in self.notes), *changed, *skipped]


def is_module_line(line: str) -> bool:
    """Whether a line of the report is about one module; the others are about the whole."""
    return line.startswith(_MODULE)
