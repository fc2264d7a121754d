"""Steps onto a hyperplane: a linear program, a bisection, and what cannot be reached."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from kernels.hyperplane import onto_hyperplane

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def drawn(count=40, numbers=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(count, numbers, generator=generator, dtype=torch.float64)
    point[:, :2] = point[:, :2].round()  # on the border of the box
    normal = torch.randn(count, numbers, generator=generator, dtype=torch.float64)
    normal[:, 3] = 0
    value = torch.randn(count, generator=generator, dtype=torch.float64)
    return point, normal, value


def reach(point, normal, value):
    """How far the box lets each function go towards zero."""
    towards = -value.sign()[:, None] * normal
    return (normal.abs() * torch.where(towards > 0, 1 - point, point)).sum(1)


@NORMS
def test_on_the_plane_in_the_box_and_only_as_near_as_possible_where_it_is_not_reached(norm):
    point, normal, value = drawn()
    value[::2] *= 3
    step = onto_hyperplane(point, normal, value, norm)
    ends = point + step
    reached = reach(point, normal, value) >= value.abs()
    assert 5 < reached.sum() < 40
    assert ends.min() >= -1e-15 and ends.max() <= 1 + 1e-15
    left = value + (normal * step).sum(1)
    torch.testing.assert_close(left[reached], torch.zeros_like(left[reached]), rtol=0, atol=1e-12)
    expected = (value.abs() - reach(point, normal, value)) * value.sign()
    torch.testing.assert_close(left[~reached], expected[~reached], rtol=0, atol=1e-12)
    assert not step[:, 3].any(), "what does not matter stays"


def test_shortest_linf_step_is_that_of_a_linear_program():
    point, normal, value = drawn()
    step = onto_hyperplane(point, normal, value, "linf")
    for row in np.flatnonzero((reach(point, normal, value) >= value.abs()).numpy()):
        x, w = point[row].numpy(), normal[row].numpy()
        size = len(x)  # the step d and its length t: minimize t with |d| <= t
        less = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
        equal = np.append(w, 0)[None]
        found = linprog(
            np.append(np.zeros(size), 1), less, np.zeros(2 * size), equal, [-value[row].item()], bounds=bounds
        )
        assert found.fun == pytest.approx(step[row].abs().max().item(), abs=1e-9)


def test_shortest_l2_step_is_that_of_a_bisection():
    """Stationary: the step is a multiple of the normal, clipped to the box."""
    point, normal, value = drawn()
    step = onto_hyperplane(point, normal, value, "l2")
    for row in (reach(point, normal, value) >= value.abs()).nonzero().flatten():
        low, high = -1e4, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            moved = (point[row] + middle * normal[row]).clamp(0, 1) - point[row]
            low, high = (middle, high) if value[row] + normal[row] @ moved < 0 else (low, middle)
        torch.testing.assert_close(step[row], moved, rtol=0, atol=1e-9)


@NORMS
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30])
def test_the_scale_of_the_function_does_not_matter(norm, scale):
    point, normal, value = drawn()
    step = onto_hyperplane(point, normal, value, norm)
    if norm == "linf" or scale != 1e-200:  # squares of such numbers are zero
        torch.testing.assert_close(onto_hyperplane(point, normal * scale, value * scale, norm), step)
    assert onto_hyperplane(point, normal * scale, value * scale, norm).isfinite().all()


@NORMS
def test_a_function_that_is_zero_or_constant_is_not_stepped_for(norm):
    point, normal, value = drawn(3)
    assert not onto_hyperplane(point, normal, value * 0, norm).any()
    assert not onto_hyperplane(point, normal * 0, value, norm).any()


def test_float32_is_computed_in_float64():
    point, normal, value = (t.float() for t in drawn())
    torch.testing.assert_close(
        onto_hyperplane(point, normal, value, "l2"),
        onto_hyperplane(point.double(), normal.double(), value.double(), "l2"),
        rtol=0,
        atol=0,
    )
