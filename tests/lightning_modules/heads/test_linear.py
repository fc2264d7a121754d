"""The linear head."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_modules.heads.base import Head
from lightning_modules.heads.linear import Linear


def test_values_by_loops() -> None:
    head = Linear(4, 3).double()
    features = torch.randn(5, 4, dtype=torch.float64)
    output = head(features)
    assert output.features is features
    for b in range(5):
        for c in range(3):
            expected = sum(features[b, d] * head.weight[c, d] for d in range(4)) + head.bias[c]
            assert output.logits[b, c].item() == pytest.approx(expected.item(), abs=1e-12)


def test_initialization_is_pytorchs() -> None:
    torch.manual_seed(3)
    head = Linear(4, 3)
    torch.manual_seed(3)
    reference = torch.nn.Linear(4, 3)
    assert torch.equal(head.weight, reference.weight) and torch.equal(head.bias, reference.bias)


def test_without_bias() -> None:
    head = Linear(4, 3, bias=False)
    assert list(head.state_dict()) == ["weight"]
    assert torch.equal(head(torch.zeros(1, 4)).logits, torch.zeros(1, 3))


def test_dropout_acts_in_training_only_and_on_logits_only() -> None:
    head = Linear(1000, 2, dropout_prob=0.5)
    features = torch.ones(1, 1000)
    assert torch.equal(head.train()(features).features, features)
    assert not torch.equal(head(features).logits, head.eval()(features).logits)
    assert torch.equal(head(features).logits, head(features).logits)


def test_deepcopy_and_state_round_trip() -> None:
    head, other = Linear(4, 3), Linear(4, 3)
    other.load_state_dict(head.state_dict())
    x = torch.randn(1, 4)
    for copied in (other, copy.deepcopy(head)):
        assert torch.equal(copied(x).logits, head(x).logits)


def test_errors() -> None:
    with pytest.raises(ValueError, match="dropout_prob=1.0 is out of range; allowed: 0 <= dropout_prob < 1"):
        Linear(4, 3, dropout_prob=1.0)
    with pytest.raises(ValueError, match=r"Linear\(in_features=4, num_classes=0\): both must be at least 1"):
        Linear(4, 0)
    with pytest.raises(NotImplementedError, match="Head must define forward"):
        Head(4, 3)(torch.zeros(1, 4))
