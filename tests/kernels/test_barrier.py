"""The barrier of a box: closed forms against brute force and autograd, at the border and where a box is degenerate."""

import pytest
import torch

from kernels.barrier import barrier, bounds, inverse_hessian, linear_minimum, moved_inside


def some(seed=0, shape=(4, 3, 2, 2), eps=0.1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator, dtype=torch.float64)
    image[0, 0, 0] = torch.tensor([0.0, 1.0])
    low, high = bounds(image, eps)
    part = torch.rand(shape, generator=generator, dtype=torch.float64)
    return image, low, high, low + (0.05 + 0.9 * part) * (high - low)


def test_bounds_are_the_box_inside_of_the_pixels():
    image, low, high, _ = some()
    for x, a, b in zip(image.flatten().tolist(), low.flatten().tolist(), high.flatten().tolist(), strict=True):
        assert (a, b) == (max(-0.1, -x), min(0.1, 1 - x))
    assert (high - low).min() == 0.1, "at 0 and at 1 half of the box is left"


def test_value_and_curvature_are_those_of_the_formula():
    _, low, high, d = some()
    value = [
        -sum(torch.log(b - x) + torch.log(x - a) for x, a, b in zip(*row, strict=True)) for row in rows(d, low, high)
    ]
    torch.testing.assert_close(barrier(d, low, high), torch.stack(value))
    d = d.requires_grad_(True)
    (slope,) = torch.autograd.grad(0.3 * barrier(d, low, high).sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    torch.testing.assert_close(inverse_hessian(d.detach(), low, high, 0.3), 1 / curvature)


def rows(*tensors):
    return zip(*(tensor.flatten(1) for tensor in tensors), strict=True)


@pytest.mark.parametrize("c", [1e-6, 1e-2, 10.0])
def test_the_linear_minimum_is_one(c):
    _, low, high, d = some()
    gradient = torch.randn(d.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient[0, 0, 0, 0] = 0.0
    found = linear_minimum(gradient, low, high, c)
    assert (found > low).all() and (found < high).all()
    residual = gradient + c / (high - found) - c / (found - low)
    scale = gradient.abs() + c / (high - found) + c / (found - low)
    assert (residual.abs() <= 1e-9 * scale).all()
    torch.testing.assert_close(found[0, 0, 0, 0], (low + high)[0, 0, 0, 0] / 2, rtol=0, atol=0)


def test_a_small_barrier_is_a_sign_step_and_a_large_one_the_middle():
    _, low, high, d = some()
    gradient = torch.randn(d.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    corner = torch.where(gradient > 0, low, high)
    torch.testing.assert_close(linear_minimum(gradient, low, high, 1e-12), corner, rtol=0, atol=1e-8)
    torch.testing.assert_close(linear_minimum(gradient, low, high, 1e9), (low + high) / 2, rtol=0, atol=1e-9)


def test_no_curvature_is_inverted_at_the_border():
    low, high = torch.tensor([[-1.0, -1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0, 0.0]]).double()
    d = torch.tensor([[1.0, 0.0, 0.0]]).double()
    assert inverse_hessian(d, low, high, 0.5).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moved_images_are_strictly_inside(dtype):
    image = some()[0].to(dtype)
    low, high = bounds(image, 0.1)
    for d in (low, high, (low + high) / 2):
        moved = moved_inside(image, d, 0.1)
        assert moved.dtype == dtype
        gap = moved.double() - image.double()
        assert (gap > low).all() and (gap < high).all()
    torch.testing.assert_close(
        moved_inside(image, high, 0.1).double(), image.double() + high, rtol=0, atol=4 * torch.finfo(dtype).eps
    )


def test_a_box_without_numbers_inside_is_the_image():
    image = some()[0].float()
    assert torch.equal(moved_inside(image, torch.zeros_like(image).double(), 0.0), image)
    narrow = moved_inside(image, torch.zeros_like(image).double(), 1e-12)
    assert torch.equal(narrow[image > 0], image[image > 0]) and 0 <= narrow[0, 0, 0, 0] <= 1e-12
