"""Lifted structure loss."""

from __future__ import annotations

from typing import Annotated, Any

from kernels import pair_form
from lightning_modules.losses.pairs import PairLoss


class Lifted(PairLoss):
    """``max(log sum_p exp(-s) + log sum_n exp(s - margin), 0)`` of each anchor, on cosine similarities.

    Oh Song, Xiang, Jegelka, Savarese. "Deep Metric Learning via Lifted Structured Feature Embedding". CVPR 2016, arXiv
    1511.06452; in the form for each anchor of Hermans, Beyer, Leibe (2017), arXiv 1703.07737, and Venkataramanan et al.
    (2022), arXiv 2106.04990.

    Args:
        margin: similarity of negatives that balances positives at 0.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(self, *, margin: Annotated[float, "finite"] = 0.5, **memory: Any) -> None:
        super().__init__(**memory)
        self.pair_form = pair_form.lifted(margin)
