"""The contract of diagnostics: parts that only observe training."""

from __future__ import annotations

from lightning_modules.part import Reader


class Diagnostics(Reader):
    """Observes one view in ``commit``, after each successful update, and changes nothing: training goes on bit for bit
    as without it.

    What it keeps is in buffers, per-sample state keyed by ``batch.index``, so that a run resumes exactly. It speaks
    through ``end_epoch`` (columns), ``report`` (results.json) and ``files``.
    """
