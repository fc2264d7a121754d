"""A teacher that is computed in every update."""

from __future__ import annotations

from lightning_modules.teaching.base import Teaching


class Live(Teaching):
    """One forward of the teacher beside each of the network in training; the default where there is a teacher."""
