"""The implicit gradient against finite differences of the lower level solved again, on a smooth network in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kernels.barrier import bounds, linear_minimum
from kernels.implicit_gradient import cross_term, implicit_gradient, solve

B, PIXELS, HIDDEN, CLASSES, EPS = 4, 6, 4, 3, 0.2
P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)  # coefficients


class Toy:
    """One hidden layer of tanh on flat images, theta one vector; derivatives by the perturbation in closed form."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.shapes = [(HIDDEN, PIXELS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,)]
        numbers = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes]
        self.theta = torch.cat([number.flatten() for number in numbers])
        self.image = torch.rand(B, PIXELS, generator=generator, dtype=torch.float64)
        self.image[0, 0], self.image[1, 1] = 0.0, 1.0
        self.label = torch.arange(B) % CLASSES
        self.low, self.high = bounds(self.image, EPS)

    def layers(self, theta):
        pieces = theta.split([torch.Size(shape).numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def loss(self, theta):
        w, b, v, a = self.layers(theta)
        return lambda d: cross_entropy(((self.image + d) @ w.T + b).tanh() @ v.T + a, self.label, reduction="none")

    def derivatives(self, theta, d):
        """``[B, P]`` gradient and ``[B, P, P]`` Hessian of the loss by d."""
        w, b, v, a = self.layers(theta)
        t = ((self.image + d) @ w.T + b).tanh()
        q = (t @ v.T + a).softmax(1)
        wrong = (q - torch.eye(CLASSES, dtype=torch.float64)[self.label]) @ v
        inner = v * (1 - t[:, None] ** 2) @ w  # logits by d
        softmax = torch.diag_embed(q) - q[:, :, None] * q[:, None]
        bend = torch.diag_embed(-2 * t * (1 - t**2) * wrong)
        return ((1 - t**2) * wrong) @ w, inner.transpose(1, 2) @ softmax @ inner + w.T @ bend @ w

    def solved(self, theta, c, start=None):
        """The minimum of the lower level: damped steps in closed form, then Newton."""
        d = (self.low + self.high) / 2 if start is None else start
        for _ in range(60 if start is None else 0):
            d = d + 0.3 * (linear_minimum(-self.derivatives(theta, d)[0], self.low, self.high, c) - d)
        for _ in range(5):
            above, below = self.high - d, d - self.low
            gradient, network = self.derivatives(theta, d)
            whole = torch.diag_embed(c / above**2 + c / below**2) - network
            d = d - torch.linalg.solve(whole, -gradient + c / above - c / below)
        assert (d > self.low).all() and (d < self.high).all(), "strictly inside"
        assert (torch.linalg.solve(whole, -gradient + c / above - c / below).abs() < 1e-12).all(), "solved"
        assert torch.linalg.eigvalsh(whole).min() > 0, "a minimum"
        return d

    def differences(self, value, step=1e-6):
        """``d value / d theta``, by central differences."""
        moves = step * torch.eye(len(self.theta), dtype=torch.float64)
        return torch.stack([(value(self.theta + e) - value(self.theta - e)) / (2 * step) for e in moves])


def gradients(toy, c, d, steps):
    theta = toy.theta.clone().requires_grad_(True)
    (direct,) = torch.autograd.grad((P * toy.loss(theta)(d)).sum(), theta)
    (cross,) = implicit_gradient(toy.loss(theta), [theta], d, toy.low, toy.high, c, P, solver_steps=steps)
    return direct, cross


@pytest.mark.parametrize("c", [5e-2, 1e-2, 1e-3])
def test_with_the_whole_hessian_it_is_what_finite_differences_give(c):
    toy = Toy()
    d = toy.solved(toy.theta, c)
    direct, cross = gradients(toy, c, d, steps=PIXELS)
    expected = toy.differences(lambda theta: (P * toy.loss(theta)(toy.solved(theta, c, d))).sum())
    torch.testing.assert_close(direct + cross, expected, rtol=0, atol=1e-8)
    assert (direct - expected).norm() > 1e5 * 1e-8, "the direct gradient alone is not it"


def test_the_barriers_hessian_is_the_formula():
    """Sample by sample: the mixed derivative (differences of closed forms), times a diagonal, times a gradient."""
    toy, c = Toy(), 1e-2
    d = toy.solved(toy.theta, c)
    _, cross = gradients(toy, c, d, steps=0)
    inverse = 1 / (c / (toy.high - d) ** 2 + c / (d - toy.low) ** 2)
    step = 1e-6 * torch.eye(len(toy.theta), dtype=torch.float64)
    mixed = [(toy.derivatives(toy.theta + e, d)[0] - toy.derivatives(toy.theta - e, d)[0]) / 2e-6 for e in step]
    gradient, _ = toy.derivatives(toy.theta, d)
    expected = [sum(P[i] * one[i] @ (inverse[i] * gradient[i]) for i in range(B)) for one in mixed]
    torch.testing.assert_close(cross, torch.stack(expected), rtol=0, atol=1e-8)


def test_it_vanishes_with_the_barrier():
    """As on the page: the norm falls with c, and the cosine of the gradients with and without it goes to 1. That of the
    barrier's Hessian alone does not vanish: where a solution is inside of the box, the network is what bends."""
    toy, norms, cosines = Toy(), [], []
    for c in (5e-2, 1e-2, 1e-3, 1e-4, 1e-6):
        d = toy.solved(toy.theta, c)
        direct, cross = gradients(toy, c, d, steps=PIXELS)
        assert gradients(toy, c, d, steps=0)[1].norm() > 0.02 * direct.norm()
        norms.append(float(cross.norm() / direct.norm()))
        cosines.append(float(torch.cosine_similarity(direct, direct + cross, 0)))
    assert norms == sorted(norms, reverse=True) and norms[0] > 0.05 and norms[-1] < 1e-4
    assert cosines == sorted(cosines) and cosines[0] < 0.9995 and cosines[-1] > 1 - 1e-8


def test_another_lower_level():
    """The attack raises another loss than the one that is trained on."""
    toy, c = Toy(), 1e-2
    d = toy.solved(toy.theta, c)
    theta = toy.theta.clone().requires_grad_(True)

    def outer(d):
        return toy.loss(theta)(d) ** 2

    (cross,) = implicit_gradient(
        outer, [theta], d, toy.low, toy.high, c, P, raised=toy.loss(theta), solver_steps=PIXELS
    )
    (direct,) = torch.autograd.grad((P * outer(d)).sum(), theta)

    expected = toy.differences(lambda theta: (P * toy.loss(theta)(toy.solved(theta, c, d)) ** 2).sum())
    torch.testing.assert_close(direct + cross, expected, rtol=0, atol=1e-8)


def test_a_parameter_that_nothing_depends_on_has_zeros():
    toy = Toy()
    theta, other = toy.theta.clone().requires_grad_(True), torch.ones(2, requires_grad=True)
    d = (toy.low + toy.high) / 2
    found = implicit_gradient(toy.loss(theta), [theta, other], d, toy.low, toy.high, 0.1, P)
    assert found[0].norm() > 0 and torch.equal(found[1], torch.zeros(2))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_conjugate_gradients_solve_each_sample(steps):
    """Exact after as many steps as a sample has unknowns; a sample that is no minimum keeps the diagonal's answer."""
    generator = torch.Generator().manual_seed(3)
    diagonal = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    root = 0.1 * torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    matrix = root @ root.transpose(1, 2)
    matrix[2] = 1e3 * torch.eye(5)
    outer = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    def curvature(vector):
        return (matrix @ vector[..., None])[..., 0]

    found = solve(curvature, diagonal, outer, steps)
    exact = torch.linalg.solve(torch.diag_embed(1 / diagonal) - matrix, outer)
    error = (found - exact).norm(dim=1)[:2]
    assert (error < 1e-10).all() if steps == 5 else (error > 1e-6).all()
    torch.testing.assert_close(found[2], diagonal[2] * outer[2])
    alone = solve(lambda vector: (matrix[1:2] @ vector[..., None])[..., 0], diagonal[1:2], outer[1:2], steps)
    torch.testing.assert_close(alone[0], found[1])
    assert torch.equal(solve(curvature, diagonal, 0 * outer, 5), 0 * outer), "nothing to solve is no 0 / 0"


def test_a_linear_lower_level_has_the_barriers_hessian():
    toy = Toy()
    theta = torch.linspace(-1, 1, PIXELS, dtype=torch.float64).requires_grad_(True)
    d = (toy.low + toy.high) / 2
    one, other = (
        implicit_gradient(lambda d: d @ theta, [theta], d, toy.low, toy.high, 0.1, P, solver_steps=steps)[0]
        for steps in (0, PIXELS)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    inverse = 1 / (0.1 / (toy.high - d) ** 2 + 0.1 / (d - toy.low) ** 2)
    torch.testing.assert_close(one, (P[:, None] * inverse * theta).sum(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 1, PIXELS])
def test_a_sample_that_is_not_finite_is_left_out_alone(steps):
    toy, c = Toy(), 1e-2
    d = toy.solved(toy.theta, c)
    outer = torch.rand(B, PIXELS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = []
    for bad in (0.0, torch.inf):
        outer[1] = bad
        theta = toy.theta.clone().requires_grad_(True)
        term, left_out = cross_term(toy.loss(theta), d, toy.low, toy.high, c, outer, steps)
        assert left_out.tolist() == [False, bad > 0, False, False]
        found += torch.autograd.grad(term, theta)
    assert torch.equal(*found) and found[0].isfinite().all() and found[0].norm() > 0


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_curvature_that_is_not_finite_gives_no_solution(steps):
    """However many steps come after it: the others have theirs."""
    generator = torch.Generator().manual_seed(3)
    diagonal, outer = (torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    factor = torch.tensor([[0.3], [torch.nan]], dtype=torch.float64)
    found = solve(lambda vector: factor * vector, diagonal, outer, steps)
    assert found[1].isnan().all()
    assert torch.equal(found[:1], solve(lambda vector: 0.3 * vector, diagonal[:1], outer[:1], steps))
