"""How a run looks at its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from kernels.ranges import RangeChecked
from lightning_modules.network import Network
from lightning_modules.teaching.teacher import Ensemble, Teacher


class Teaching(RangeChecked):
    """How the networks that ``teacher=`` names see the images of a run, and how they are computed.

    Args:
        image_size: side in pixels of the images a teacher is given: ``own`` for the size it was made for (they are
            resized, bicubic), ``data`` for those of the run as they are, or a number.
        precision: ``bf16`` or ``fp16`` for half precision; None for that of the run.
        compile: run it through ``torch.compile``.
        check: measure its accuracy on the validation part before the first epoch, and refuse one at chance level.
    """

    def __init__(
        self,
        *,
        image_size: Annotated[int, "1 <= x <= 65536"] | Literal["own", "data"] = "own",
        precision: Literal["bf16", "fp16"] | None = None,
        compile: bool = False,
        check: bool = True,
    ) -> None:
        self.image_size, self.precision, self.compile, self.check = image_size, precision, compile, check

    def size(self, own: int | None) -> int | None:
        """The side a teacher is given, of one that was made for ``own``; None for the images as they are."""
        if self.image_size == "own":
            return own
        return None if self.image_size == "data" else self.image_size

    def teacher(self, networks: Sequence[Network], sizes: Sequence[int | None]) -> Teacher:
        """One frozen network of all.

        Args:
            networks: in the order of ``teacher=``.
            sizes: sides in pixels that they are given.
        """
        return Teacher(Ensemble(networks, sizes, self.precision, self.compile), self.check)
