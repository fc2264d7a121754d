"""The compander against its formulas through autograd in float64, closed gradients and its properties."""

from math import pi

import pytest
import torch

from kernels.weight_compander import compand, expand, limit

SCALES = [(0.3, 0.3), (0.3, 0.1), (0.05, 0.4), (2.0, 0.7)]
KINDS = ["arctan", "tanh"]
PLAIN = {"arctan": torch.arctan, "tanh": torch.tanh}
EVERY = pytest.mark.parametrize("kind", KINDS)


def make(a, b, shape=(5, 3, 3, 3), dtype=torch.float64, layout=torch.contiguous_format):
    """v, upstream gradient, a, b."""
    generator = torch.Generator().manual_seed(7)
    v, grad = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    v = v.contiguous(memory_format=layout) if len(shape) == 4 else v
    return v.requires_grad_(), grad, *(torch.tensor(s, dtype=dtype, requires_grad=True) for s in (a, b))


@EVERY
@pytest.mark.parametrize(("a", "b"), SCALES)
@pytest.mark.parametrize(("shape", "layout"), [((4, 6), None), ((5, 3, 3, 3), torch.channels_last), ((7,), None)])
def test_values_and_gradients_are_those_of_the_plain_formula(kind, a, b, shape, layout):
    v, grad, a, b = make(a, b, shape, layout=layout or torch.contiguous_format)
    w = compand(v, a, b, kind)
    expected = a * PLAIN[kind](v / b)
    torch.testing.assert_close(w, expected, rtol=1e-13, atol=1e-15)
    assert w.stride() == v.stride()
    for upstream in (grad, grad.to(memory_format=layout) if layout else grad, grad.new_ones(()).expand_as(w)):
        found = torch.autograd.grad(w, (v, a, b), upstream, retain_graph=True)
        plain = torch.autograd.grad(expected, (v, a, b), upstream, retain_graph=True)
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


@EVERY
def test_closed_gradients_and_gradcheck(kind):
    v, grad, a, b = make(0.4, 0.15)
    w = compand(v, a, b, kind)
    x = v / b
    slope = (a / b) / (1 + x**2) if kind == "arctan" else (a / b) * (1 - (w / a) ** 2)
    expected = grad * slope, (grad * w / a).sum(), -(grad * slope * v / b).sum()
    torch.testing.assert_close(torch.autograd.grad(w, (v, a, b), grad), expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: compand(*given, kind), (v[0], a, b))


@EVERY
def test_odd_increasing_bounded_with_its_slope_at_zero(kind):
    a, b = 0.3, 0.1
    v = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    w = compand(v, a, b, kind)
    assert torch.equal(compand(-v, a, b, kind), -w) and float(compand(0 * v, a, b, kind).abs().max()) == 0.0
    assert bool((w.diff() > 0).all()) and float(w.abs().max()) < a * limit(kind)
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert float(torch.autograd.grad(compand(zero, a, b, kind), zero)[0]) == pytest.approx(a / b, rel=1e-14)
    assert limit(kind) == (pi / 2 if kind == "arctan" else 1.0)


@EVERY
@pytest.mark.parametrize(("a", "b"), SCALES)
def test_inverse_up_to_098_of_the_bound(kind, a, b):
    w = 0.98 * a * limit(kind) * torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(compand(expand(w, a, b, kind), a, b, kind), w, rtol=1e-12, atol=1e-12)


@EVERY
def test_slope_one_and_a_large_bound_is_the_identity(kind):
    v = torch.linspace(-1, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(compand(v, 1e6, 1e6, kind), v, rtol=1e-11, atol=1e-11)


@EVERY
def test_a_common_factor_scales_the_weight(kind):
    v, *_ = make(0.3, 0.1)
    torch.testing.assert_close(compand(7 * v, 2.1, 0.7, kind), 7 * compand(v, 0.3, 0.1, kind), rtol=1e-13, atol=1e-13)


@EVERY
def test_a_step_of_sgd_at_zero_moves_the_weight_by_the_square_of_the_slope(kind):
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    lr, a, b = 1e-6, 0.5, 0.1
    gradient = torch.autograd.grad(compand(v, a, b, kind), v)[0]  # G = 1
    moved = compand(v - lr * gradient, a, b, kind) - compand(v, a, b, kind)
    assert float(moved.detach()) / lr == pytest.approx(-25.0, abs=1e-6)


@EVERY
def test_three_steps_of_a_convolution_equal_those_of_the_plain_formula(kind):
    v, _, a, b = make(0.3, 0.2, (4, 3, 3, 3))
    image = torch.randn(2, 3, 6, 6, dtype=v.dtype, generator=torch.Generator().manual_seed(1))
    ends = []
    for function in (lambda *s: compand(*s, kind), lambda v, a, b: a * PLAIN[kind](v / b)):
        now = [p.detach().clone().requires_grad_() for p in (v, a, b)]
        for _ in range(3):
            loss = torch.conv2d(image, function(*now)).square().mean()
            now = [
                (p - 0.1 * g).detach().requires_grad_()
                for p, g in zip(now, torch.autograd.grad(loss, now), strict=True)
            ]
        ends.append(now)
    torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-12)


@EVERY
def test_float32_under_autocast_and_for_narrow_weights(kind):
    v, grad, a, b = make(0.3, 0.1, dtype=torch.float32)
    exact = torch.autograd.grad(compand(v, a, b, kind), (v, a, b), grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = compand(v, a, b, kind)
        found = torch.autograd.grad(w, (v, a, b), grad)
    assert w.dtype == torch.float32 and torch.equal(w, compand(v, a, b, kind))
    assert all(torch.equal(x, y) for x, y in zip(found, exact, strict=True))
    narrow = compand(v.bfloat16(), a, b, kind)
    assert torch.equal(narrow, compand(v.bfloat16().float(), a, b, kind).bfloat16())


@EVERY
def test_saturated_weights_stay_finite(kind):
    v = torch.tensor([0.0, 1e30, -1e30, float("inf")], requires_grad=True)
    w = compand(v, 0.3, 0.1, kind)
    w.sum().backward()
    torch.testing.assert_close(w, 0.3 * limit(kind) * torch.tensor([0.0, 1, -1, 1]))
    torch.testing.assert_close(v.grad, torch.tensor([3.0, 0, 0, 0]))


def test_errors():
    v = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="kind must be one of arctan, tanh, got 'sigmoid'"):
        compand(v, 1.0, 1.0, "sigmoid")
    with pytest.raises(ValueError, match="kind must be one of"):
        expand(v, 1.0, 1.0, "sigmoid")
    with pytest.raises(ValueError, match=r"one number each for a whole weight, got shapes \(2, 1\) and \(\)"):
        compand(v, torch.ones(2, 1), 1.0, "tanh")
