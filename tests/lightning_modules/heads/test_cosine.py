"""The cosine head."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lightning_modules.heads.cosine import Cosine


def by_hand(features: torch.Tensor, weight: torch.Tensor, scale: float) -> list[list[float]]:
    f, w = features.double().tolist(), weight.detach().double().tolist()
    return [
        [scale * sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y)) for y in w]
        for x in f
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_by_loops(dtype: torch.dtype) -> None:
    head = Cosine(6, 3, scale=7.0).to(dtype)
    features = torch.randn(5, 6).to(dtype)
    output = head(features)
    assert output.features is features
    assert output.logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor(by_hand(features, head.weight, 7.0), dtype=torch.float64)
    torch.testing.assert_close(output.logits.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_norms_carry_no_information() -> None:
    head = Cosine(6, 3).double()
    features = torch.randn(5, 6, dtype=torch.float64)
    before = head(features).logits
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [3.0], [100.0]], dtype=torch.float64))
    torch.testing.assert_close(head(features * 50).logits, before)


def test_stays_float32_under_autocast() -> None:
    head, features = Cosine(64, 5), torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(features).logits)


def test_gradients() -> None:
    head = Cosine(4, 3).double()
    features = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x).logits, features)
    head(features).logits.sum().backward()
    assert head.scale.grad is not None and head.weight.grad is not None
    # The gradient is orthogonal to what it cannot change: the length of the features.
    assert (features.grad * features).sum(1).abs().max() < 1e-12


def test_fixed_scale_is_saved_and_not_trained() -> None:
    head = Cosine(4, 3, scale=5.0, learn_scale=False)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    other = Cosine(4, 3, learn_scale=False)
    other.load_state_dict(head.state_dict())
    assert other.scale.item() == 5.0
    x = torch.randn(1, 4)
    assert torch.equal(copy.deepcopy(head)(x).logits, other(x).logits)


def test_zero_features_are_finite() -> None:
    features = torch.zeros(1, 4, requires_grad=True)
    logits = Cosine(4, 3)(features).logits
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(1, 3)) and torch.isfinite(features.grad).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="scale=0 is out of range; allowed: scale > 0"):
        Cosine(4, 3, scale=0)
