"""Square Attack: random search by squares, without gradients.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a query-efficient black-box adversarial attack via random
search". ECCV 2020, arXiv 1912.00049, algorithms 1 to 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.adversarial_losses import margin
from kernels.square_windows import bumps, pixels, places, share, side
from lightning_modules.attacks.until_fallen import Standing, UntilFallen
from lightning_modules.attacks.victim import Victim


class Square(UntilFallen[Standing]):
    """Each query changes the best image in a random square, and keeps what lowers the margin of the true class.

    L-inf begins with vertical stripes of height ``+-eps``, and sets each colour of a square to one end of the ball. L2
    begins with tiles of smooth bumps, and moves what a second square holds of the norm into the first. The official
    code of AutoAttack departs from the paper in details, and this follows the paper: each sample has squares of its
    own, they reach the last row and column, and in L2 each colour has a norm of its own.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        queries: tries after the start.
        p_init: share of the pixels in a square at first, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and
            8000 queries.
        rescale: stretch that schedule from 10,000 to ``queries``, as the paper says for other budgets; AutoAttack does
            not, and so do we.
        bf16: forwards of the attack in bfloat16.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        queries: Annotated[int, "x >= 0"] = 5000,
        p_init: Annotated[float, "0 < x <= 1"] = 0.8,
        rescale: bool = False,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, steps=queries, bf16=bf16)
        self.p_init, self.rescale = p_init, rescale

    def start(self, victim: Victim, standing: Standing) -> Standing:
        self._try(victim, standing, self._stripes(standing) if self.norm == "linf" else self._tiles(standing))
        return standing

    def advance(self, victim: Victim, state: Standing, step: int) -> None:
        height, width = state.image.shape[2:]
        portion = share(step * 10_000 // self.steps if self.rescale else step, self.p_init)
        if self.norm == "linf":
            moved = self._square(state, side(portion, height, width), step)
        else:
            size = side(portion, height, width, least=3)
            moved = self._exchange(state, min(size + 1 - size % 2, height, width), step)
        self._try(victim, state, moved)

    def _try(self, victim: Victim, state: Standing, moved: Tensor) -> None:
        logits = victim.logits(moved)
        state.offer(moved, margin(logits, state.label), logits.argmax(1) != state.label)

    def _drawn(self, state: Standing, step: int, count: int) -> Tensor:
        """``[B, count]`` uniform numbers of this query."""
        return state.draw.again(step).uniform(state.image.new_empty((len(state.row), count)), "square.query")

    def _stripes(self, state: Standing) -> Tensor:
        sign = _sign(state.draw.uniform(state.image[:, :, :1], "square.start"))
        return self.project(state, state.image + self.eps * sign)

    def _square(self, state: Standing, size: int, step: int) -> Tensor:
        height, width = state.image.shape[2:]
        drawn = self._drawn(state, step, 2 + state.image.shape[1])
        top, left = places(drawn[:, 0], height, size)[:, None], places(drawn[:, 1], width, size)[:, None]
        row, column = (torch.arange(length, device=top.device)[None] for length in (height, width))
        rows, columns = (row >= top) & (row < top + size), (column >= left) & (column < left + size)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        change = 2 * self.eps * _sign(drawn[:, 2:])[:, :, None, None]
        return self.project(state, state.best + inside * change)

    def _tiles(self, state: Standing) -> Tensor:
        """Bumps of random sign and direction in a grid of tiles, five along the shorter side, of norm eps."""
        image = state.image
        height, width = image.shape[2:]
        size = max(min(height, width) // 5, 1)
        down, across = height // size, width // size
        drawn = state.draw.uniform(image.new_empty((len(image), image.shape[1] + 1, down, across)), "square.start")
        bump = bumps(size).to(image)
        tile = torch.where(drawn[:, :1, :, :, None, None] < 0.5, bump, bump.T)
        change = (_sign(drawn[:, 1:])[..., None, None] * tile).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        free_down, free_across = height - size * down, width - size * across
        above, left = free_down // 2, free_across // 2
        change = pad(change, (left, free_across - left, above, free_down - above))
        return self.project(state, image + self.eps * change / _norm(change, (1, 2, 3)))

    def _exchange(self, state: Standing, size: int, step: int) -> Tensor:
        """Algorithm 3: the first window gets a bump more, and the norm that both windows and the ball had left."""
        image = state.image
        count, colours, height, width = image.shape
        drawn = self._drawn(state, step, 5 + colours)
        first, second = (
            pixels(places(drawn[:, at], height, size), places(drawn[:, at + 1], width, size), size, width)
            for at in (0, 2)
        )
        both = image.new_zeros((count, height * width)).scatter_(1, first, 1.0).scatter_(1, second, 1.0)[:, None]
        first, second = (place[:, None].expand(-1, colours, -1) for place in (first, second))
        change = (state.best - image).flatten(2)
        unused = (self.eps**2 - change.square().sum((1, 2), keepdim=True)).clamp(min=0)
        norm = ((change * both).square().sum(2, keepdim=True) + unused / colours).sqrt()
        bump = bumps(size).to(image)
        bump = torch.where(drawn[:, 4, None] < 0.5, bump.flatten(), bump.T.flatten())[:, None]
        old = change.gather(2, first)
        new = _sign(drawn[:, 5:])[:, :, None] * bump + old / _norm(old, 2)
        change = change.scatter(2, second, 0.0).scatter(2, first, new / _norm(new, 2) * norm)
        return self.project(state, image + change.view_as(image))


def _sign(number: Tensor) -> Tensor:
    return torch.where(number < 0.5, -1.0, 1.0).to(number.dtype)


def _norm(change: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(change, dim=dims, keepdim=True).clamp(min=1e-12)
