"""Windows of Square Attack: the schedule of the paper, its bumps by its sum, and places that are equally likely."""

import pytest
import torch

from kernels.square_windows import bumps, pixels, places, share, side


def test_the_schedule_is_that_of_the_paper():
    """Halved at 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000."""
    for query in range(10_000):
        halvings = sum(query > at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        assert share(query, 0.8) == 0.8 / 2**halvings


@pytest.mark.parametrize(
    ("portion", "height", "width", "least", "expected"),
    [(0.8, 32, 32, 1, 29), (0.8, 8, 50, 1, 8), (0.0001, 32, 32, 1, 1), (0.0001, 32, 32, 3, 3), (0.5, 2, 2, 3, 2)],
)
def test_sides(portion, height, width, least, expected):
    assert side(portion, height, width, least) == expected


def by_the_paper(height, width):
    """Equation 2: sum over k = 0 .. M(r, s) of 1 / (n + 1 - k)^2, with n of the longer side, 1-based."""
    n, rows = max(height, width) // 2, []
    for r in range(1, height + 1):
        row = []
        for s in range(1, width + 1):
            last = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            row.append(sum(1 / (n + 1 - k) ** 2 for k in range(last + 1)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 11, 20, 31])
def test_bumps_are_those_of_the_paper(size):
    upper, lower = (by_the_paper(height, size) for height in (size // 2, size - size // 2))
    both = torch.cat([upper / upper.norm(), -lower / lower.norm()])
    torch.testing.assert_close(bumps(size), both / both.norm(), rtol=1e-12, atol=0)


def test_one_pixel_is_one_bump():
    torch.testing.assert_close(bumps(1), -torch.ones(1, 1, dtype=torch.float64))


def test_places_are_equally_likely_and_reach_both_ends():
    number = (torch.arange(1000) + 0.5) / 1000
    assert places(number, 12, 3).bincount().tolist() == [100] * 10
    assert places(torch.tensor([0.0, 1.0]), 12, 3).tolist() == [0, 9], "1.0 is what float32 rounds to"
    assert places(number, 5, 5).max() == 0


def test_pixels_of_a_window():
    image = torch.arange(4 * 6).view(1, 4, 6)
    top, left = torch.tensor([1, 2]), torch.tensor([3, 0])
    found = image.flatten()[pixels(top, left, 2, 6)]
    assert found.tolist() == [image[0, 1:3, 3:5].flatten().tolist(), image[0, 2:4, 0:2].flatten().tolist()]
