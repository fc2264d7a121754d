"""Proxy losses against plain loops over proxies and samples, and their properties."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from kernels.margin_softmax import margin_softmax_loss
from kernels.proxy import proxy_anchor_loss, proxy_nca_pp_loss

LABELS = torch.tensor([0, 3, -1, 1, 1, 3])  # nobody of class 2 and 4
LOSSES = pytest.mark.parametrize("loss", [proxy_anchor_loss, proxy_nca_pp_loss])


def points(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x, proxies = (torch.randn(n, 6, generator=generator, dtype=torch.float64).to(dtype) for n in (6, 5))
    return x.requires_grad_(), proxies.requires_grad_()


def anchor_by_loops(x, labels, proxies, alpha, delta):
    pull, push = [], []
    for c, proxy in enumerate(proxies):
        own, others = [], []
        for row, y in zip(x, labels.tolist(), strict=True):
            s = row @ proxy / (row.norm() * proxy.norm())
            if y == c:
                own.append(torch.exp(-alpha * (s - delta)))
            elif y >= 0:
                others.append(torch.exp(alpha * (s + delta)))
        pull += [torch.log(1 + sum(own))] if own else []
        push.append(torch.log(1 + sum(others)))
    return sum(pull) / len(pull) + sum(push) / len(proxies)


def nca_by_loops(x, labels, proxies, temperature):
    losses = []
    for row, y in zip(x, labels.tolist(), strict=True):
        weights = [
            torch.exp(-(normalize(row, dim=0) - normalize(p, dim=0)).square().sum() / temperature) for p in proxies
        ]
        losses.append(-torch.log(weights[y] / sum(weights)) if y >= 0 else row.sum() * 0)
    return torch.stack(losses)


@pytest.mark.parametrize(("alpha", "delta"), [(32.0, 0.1), (3.0, 0.4)])
def test_proxy_anchor_is_that_of_the_loops_for_every_sample(alpha, delta):
    x, proxies = points()
    found_B = proxy_anchor_loss(x, LABELS, proxies, alpha=alpha, delta=delta)
    expected = anchor_by_loops(x, LABELS, proxies, alpha, delta)
    torch.testing.assert_close(found_B, expected.expand(6), rtol=1e-12, atol=0)
    found, plain = (torch.autograd.grad(value, (x, proxies)) for value in (found_B.mean(), expected))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1 / 9, 0.7])
def test_proxy_nca_is_that_of_the_loops(temperature):
    x, proxies = points()
    found_B = proxy_nca_pp_loss(x, LABELS, proxies, temperature=temperature)
    expected_B = nca_by_loops(x, LABELS, proxies, temperature)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-12, atol=0)
    found, plain = (torch.autograd.grad(value.mean(), (x, proxies)) for value in (found_B, expected_B))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
    softmax_B = margin_softmax_loss(x, LABELS, proxies, kind="none", scale=2 / temperature)
    torch.testing.assert_close(found_B, softmax_B)


def test_proxy_nca_is_that_of_vectors_of_length_three():
    x, proxies = points()
    squared = (3 * normalize(x)[:, None] - 3 * normalize(proxies)).square().sum(2)
    expected_B = torch.nn.functional.cross_entropy(-squared, LABELS, reduction="none", ignore_index=-1)
    torch.testing.assert_close(proxy_nca_pp_loss(x, LABELS, proxies), expected_B)


def test_parts_of_a_gathered_batch_give_its_proxy_anchor_once():
    x, proxies = points()
    whole_B = proxy_anchor_loss(x, LABELS, proxies)
    parts = [
        proxy_anchor_loss(x[r], LABELS[r], proxies, columns=x, column_labels=LABELS) for r in ([0, 1], [2, 3, 4, 5])
    ]
    torch.testing.assert_close(torch.cat(parts), whole_B)
    grads = [
        torch.autograd.grad(value, (x, proxies)) for value in (sum(part.sum() for part in parts) / 6, whole_B.mean())
    ]
    torch.testing.assert_close(*grads)


@LOSSES
def test_scale_invariance_and_orthogonal_gradients(loss):
    x, proxies = points()
    value = loss(x, LABELS, proxies).sum()
    factors = torch.linspace(0.1, 9, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(factors * x, LABELS, factors[1:] * proxies).sum(), value)
    for given, gradient in zip((x, proxies), torch.autograd.grad(value, (x, proxies)), strict=True):
        assert float((gradient * given.detach()).sum(1).abs().max()) < 1e-11 and float(gradient.norm()) > 0.01


@LOSSES
def test_an_ignored_sample_changes_nothing(loss):
    x, proxies = points()
    known = LABELS >= 0
    torch.testing.assert_close(loss(x, LABELS, proxies)[known], loss(x[known], LABELS[known], proxies))
    assert float(torch.autograd.grad(loss(x, LABELS, proxies).sum(), x)[0][~known].abs().max()) == 0.0


@LOSSES
@pytest.mark.parametrize("labels", [[-1, -1], [0, 0], [0, 1]])
@pytest.mark.parametrize("vectors", ["aligned", "opposite", "zeros"])
def test_degenerate_batches_are_finite_with_their_gradient(loss, labels, vectors):
    proxies = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sign = {"aligned": 3.0, "opposite": -3.0, "zeros": 0.0}[vectors]
    x = (sign * proxies.detach()[labels]).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = loss(x, torch.tensor(labels), proxies)
        gradients = torch.autograd.grad(loss_B.sum(), (x, proxies))
    assert bool(loss_B.isfinite().all()) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    if labels[0] == -1:
        assert float(loss_B.detach().abs().max()) == 0.0


def test_proxies_without_a_sample_only_widen_the_mean_of_the_push():
    axes = torch.eye(4, dtype=torch.float64)
    found = proxy_anchor_loss(axes[:1], torch.tensor([0]), axes, alpha=2.0, delta=0.1)
    expected = math.log1p(math.exp(-2 * 0.9)) + 3 / 4 * math.log1p(math.exp(2 * 0.1))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(loss, dtype):
    x, proxies = points(dtype)
    with torch.autocast("cpu", dtype):
        loss_B = loss(x, LABELS, proxies)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, loss(x.float(), LABELS, proxies.float()), rtol=1e-5, atol=1e-5)
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all()) and bool(proxies.grad.isfinite().all())


def test_errors():
    x, proxies = points()
    with pytest.raises(ValueError, match="columns and column_labels belong together"):
        proxy_anchor_loss(x, LABELS, proxies, columns=x)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        proxy_nca_pp_loss(x, LABELS, proxies, temperature=0)
    for loss in (proxy_anchor_loss, proxy_nca_pp_loss):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            loss(x, LABELS.double(), proxies)
        with pytest.raises(ValueError, match=r"must be \[B, D\] and \[N, D\]"):
            loss(x, LABELS, proxies[:, :2])
