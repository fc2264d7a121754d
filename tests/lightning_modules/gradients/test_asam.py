"""ASAM against its formula, and the invariance that it is made for."""

import pytest
import torch
from torch import nn

from kernels.batch import Batch, Output, Step
from lightning_modules.gradients.asam import ASAM, is_weight
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


class Two(nn.Module):
    """Two linear layers, the first without a bias."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(12, 5, bias=False).double(), nn.Linear(5, 3).double()
        with torch.no_grad():
            self.one.weight.mul_(scale)
            self.two.weight.div_(scale)

    def forward(self, image, **keys):
        return Output(logits=self.two(self.one(image.flatten(1)).relu()))


def batch():
    torch.manual_seed(1)
    return Batch(torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.arange(6) % 3, torch.arange(6))


def seen_at(network, gradient):
    """The weights at which the second pass looked, and the gradient that it left."""
    where = []

    class Watched(CrossEntropy):
        def forward(self, outputs, batch, step):
            where.append({name: p.detach().clone() for name, p in network.named_parameters()})
            return super().forward(outputs, batch, step)

    run_step(Parts(Watched(), gradient=gradient), batch(), Step(0, 0, 0, network, network, 6))
    return where[1], {name: p.grad.clone() for name, p in network.named_parameters()}


def test_the_point_is_that_of_the_formula():
    network, plain, rho, eta = Two(), Two(), 0.3, 0.02
    where, _ = seen_at(network, ASAM(rho=rho, eta=eta))
    data = batch()
    torch.nn.functional.cross_entropy(plain(data.image).logits, data.label).backward()
    named = dict(plain.named_parameters())
    t = {name: p.abs() + eta if "weight" in name else torch.ones_like(p) for name, p in named.items()}
    norm = torch.sqrt(sum(((t[name] * p.grad) ** 2).sum() for name, p in named.items())) + 1e-12
    for name, p in named.items():
        torch.testing.assert_close(where[name], p + rho * t[name] ** 2 * p.grad / norm, rtol=0, atol=1e-12)


def test_scaling_one_layer_against_the_next_changes_nothing():
    """With eta = 0 the function in the ball is the same, and so is the gradient up to that scale."""
    (_, one), (_, other) = (seen_at(Two(scale), ASAM(rho=0.3, eta=0.0)) for scale in (1.0, 4.0))
    torch.testing.assert_close(other["one.weight"] * 4.0, one["one.weight"], rtol=0, atol=1e-12)
    torch.testing.assert_close(other["two.weight"] / 4.0, one["two.weight"], rtol=0, atol=1e-12)
    torch.testing.assert_close(other["two.bias"], one["two.bias"], rtol=0, atol=1e-12)


def test_what_is_called_a_weight():
    assert all(map(is_weight, ("network.head.weight", "parts.loss.proxies.weight", "attention.in_proj_weight")))
    assert is_weight("network.backbone.conv.parametrizations.weight.original")
    others = ("conv.bias", "conv.parametrizations.weight.0.log_a", "parts.reweighting.rate", "cls_token")
    assert not any(map(is_weight, others))


def test_values_outside_their_range():
    with pytest.raises(ValueError, match="eta=-1 is out of range; allowed: eta >= 0"):
        ASAM(eta=-1)
