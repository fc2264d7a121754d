"""Weight standardization as surgery: what it selects, that it is right inside networks, and that it comes off again."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from kernels.weight_standardization import standardize_weight
from lightning_modules.average import Average
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.base import check_together, operate
from lightning_modules.surgery.batch_channel_norm import BatchChannelNorm
from lightning_modules.surgery.weight_standardization import StandardizedWeight, WeightStandardization
from lightning_modules.surgery.weights import computed_once, parametrized


class Small(nn.Module):
    """Every kind of convolution that the selection decides about."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm_depthwise = nn.BatchNorm2d(8)
        self.scale = nn.Conv2d(8, 8, 1, groups=8)
        self.norm_scale = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_depthwise(self.depthwise(self.norm(self.stem(x)).relu())).relu()
        return self.last(self.norm_scale(self.scale(x)))

    forward = forward_features


def small(dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype)


def images(count: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def chosen(name: str, **keys) -> int:
    return len(parametrized(operated(timm.create_model(name, num_classes=0), **keys)))


def operated(backbone: nn.Module, size: int = 32, **keys) -> nn.Module:
    operate(backbone, {"ws": WeightStandardization(**keys)}, size)
    return backbone


@pytest.mark.parametrize(
    ("name", "normed", "everything"),
    [
        ("resnet18", 20, 20),
        ("seresnet18", 20, 20),
        ("mobilenetv3_small_050", 23, 23),
        ("resnetv2_18", 8, 20),
        ("regnety_002", 44, 44),
        ("cifar_resnet20", 19, 19),
    ],
)
def test_selection_in_timm_models(name, normed, everything):
    assert chosen(name) == normed and chosen(name, select="all") == everything


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "nf_resnet26", "vit_tiny_patch16_224"])
def test_nothing_to_do_is_an_error(name):
    backbone = timm.create_model(name, num_classes=0, depth=1) if "vit" in name else timm.create_model(name)
    with pytest.raises(ValueError, match=r"matches no module.*(itself|PatchEmbed)"):
        operate(backbone, {"ws": WeightStandardization(select="all")})


def test_the_report_has_a_reason_for_every_convolution():
    lines = operate(small(), {"ws": WeightStandardization()}, 8)
    assert lines[0] == "ws: 1 modules changed, 4 left as they are"
    assert "  changed stem: weight standardized over 27 inputs" in lines
    text = "\n".join(lines)
    assert "left depthwise: depthwise: standardized it could only take differences" in text
    assert "left scale: a filter of one weight" in text
    assert "left last: no norm reads its output" in text
    assert "left unused: forward_features never calls it" in text
    assert "warning: weights trained without weight standardization" in text


def test_options_of_the_selection():
    assert set(parametrized(operated(small(), depthwise=True))) == {"stem", "depthwise"}
    assert set(parametrized(operated(small(), select="all"))) == {"stem", "last"}
    assert set(parametrized(operated(small(), select="all", exclude=["st*"]))) == {"last"}
    backbone = small()
    backbone.stem.owns_weight_gradient = True
    with pytest.raises(ValueError, match="TrAct computes its weight gradient"):
        operated(backbone)
    assert set(parametrized(operated(backbone, with_tract=True))) == {"stem"}
    lines = operate(small(), {"ws": WeightStandardization(select="all")}, 8)
    assert any(line.startswith("  1 of them feed no norm directly") for line in lines)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"select": "some"}, "'normed' or 'all', got 'some'"),
        ({"eps": 0.0}, "eps=0.0 is out of range; allowed: eps > 0"),
        ({"ddof": 2}, r"ddof=2 is out of range; allowed: 0 <= ddof <= 1 \(int\)"),
        ({"eps_mode": "out"}, "'inside' or 'added', got 'out'"),
    ],
)
def test_refuses_values(keys, match):
    with pytest.raises(ValueError, match=match):
        WeightStandardization(**keys)


def test_refuses_a_second_time_and_a_learned_scale():
    backbone = operated(small())
    with pytest.raises(ValueError, match="applied before, to stem"):
        operated(backbone)
    learned = BatchChannelNorm()
    learned.does = frozenset({"learns_weight_scale"})
    with pytest.raises(ValueError, match="learned scale in front of it cancels"):
        check_together({"ws": WeightStandardization(), "other": learned})


def test_over_another_function_it_comes_last():
    class Cube(nn.Module):
        def forward(self, weight):
            return weight**3

    backbone = small()
    original = backbone.stem.weight.detach().clone()
    parametrize.register_parametrization(backbone.stem, "weight", Cube())
    operated(backbone)
    torch.testing.assert_close(backbone.stem.weight, standardize_weight(original**3))
    with computed_once(backbone):
        torch.testing.assert_close(backbone.stem.weight, standardize_weight(original**3))


def test_a_copy_has_weights_of_its_own_while_the_original_has_computed_its():
    """A teacher or an average beside the network in training, which reads its weights from the same pass."""
    backbone = operated(small())
    copied = deepcopy(backbone)
    with torch.no_grad():
        copied.stem.parametrizations.weight.original.mul_(torch.linspace(-1, 1, 9).view(3, 3))
    alone = copied.stem.weight.detach()
    with computed_once(backbone):
        torch.testing.assert_close(copied.stem.weight, alone)
        assert not torch.equal(backbone.stem.weight, copied.stem.weight)
    with computed_once(copied) as renew:
        for _ in range(2):  # each backward uses up the graph of the weights
            copied(images()).sum().backward()
            renew()


@pytest.mark.parametrize("keys", [{}, {"ddof": 1, "eps": 1e-5, "eps_mode": "added"}])
def test_weights_are_the_function_and_gradients_reach_the_original(keys):
    backbone = operated(small(), **keys)
    original = backbone.stem.parametrizations.weight.original
    with computed_once(backbone):
        backbone(images()).square().sum().backward()
    plain = small()
    weight = original.detach().clone().requires_grad_()
    state = {name: value for name, value in plain.named_parameters() if name != "stem.weight"}
    output = torch.func.functional_call(plain, {**state, "stem.weight": standardize_weight(weight, **keys)}, images())
    torch.testing.assert_close(original.grad, torch.autograd.grad(output.square().sum(), weight)[0])
    assert isinstance(backbone.stem, nn.Conv2d)


def test_computing_all_equals_one_by_one():
    backbone = operated(timm.create_model("resnet18", num_classes=0))
    functions = [module.parametrizations["weight"][0] for module in parametrized(backbone).values()]
    originals = [module.parametrizations["weight"].original for module in parametrized(backbone).values()]
    together = StandardizedWeight.compute_all(functions, originals)
    cots = [torch.randn_like(weight) for weight in together]
    gradients = torch.autograd.grad(together, originals, cots)
    for original, weight, cot, gradient in zip(originals, together, cots, gradients, strict=True):
        alone = standardize_weight(original)
        torch.testing.assert_close(weight, alone, rtol=0, atol=0)
        torch.testing.assert_close(gradient, torch.autograd.grad(alone, original, cot)[0], rtol=0, atol=0)


def test_an_assigned_weight_is_the_original_and_its_memory_is_its_own():
    backbone = operated(small())
    weight = torch.randn_like(backbone.stem.weight)
    kept = weight.clone()
    backbone.stem.weight = weight
    weight.zero_()
    assert torch.equal(backbone.stem.parametrizations.weight.original, kept)
    standard = backbone.stem.weight.detach().clone()
    backbone.stem.weight = standard
    torch.testing.assert_close(backbone.stem.weight, standard, rtol=1e-5, atol=0)


def test_fold_leaves_a_plain_backbone_that_computes_the_same():
    backbone, surgery = small().eval(), WeightStandardization()
    operate(backbone, {"ws": surgery}, 8)
    expected, kept = backbone(images()), backbone
    backbone = deepcopy(kept)
    assert surgery.fold(backbone) == []
    assert not parametrized(backbone) and set(backbone.state_dict()) == set(small().state_dict())
    assert torch.equal(backbone(images()), expected) and type(backbone.stem) is nn.Conv2d
    assert torch.equal(kept(images()), expected) and set(parametrized(kept)) == {"stem"}  # the original of the copy
    plain = small().eval()
    plain.load_state_dict(backbone.state_dict())
    assert torch.equal(plain(images()), expected)


def test_copy_average_and_state_round_trip():
    backbone = operated(small())
    copied, average = deepcopy(backbone), Average(backbone)
    assert torch.equal(copied(images()), backbone(images()))
    with torch.no_grad():
        backbone.stem.parametrizations.weight.original.mul_(torch.linspace(0.5, 2, 27).view(3, 3, 3).double())
    average.update(backbone, 0.0)
    assert torch.equal(average.module.stem.weight, backbone.stem.weight)
    assert not torch.equal(copied.stem.weight, backbone.stem.weight)
    fresh = operated(small())
    fresh.load_state_dict(backbone.state_dict())
    assert torch.equal(fresh.eval()(images()), backbone.eval()(images()))


@pytest.mark.parametrize("count", [1, 3])
def test_autocast_and_channels_last_are_finite(count):
    backbone = operated(small(torch.float32)).to(memory_format=torch.channels_last)
    x = images(count, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    assert backbone.stem.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), computed_once(backbone):
        output = backbone(x)
        assert backbone.stem.weight.dtype == torch.float32
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)
    plain = operated(small(torch.float32))
    torch.testing.assert_close(backbone.eval()(x), plain.eval()(x), rtol=1e-2, atol=0.1)


def test_compiled():
    backbone = operated(small())
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), backbone(images()))
    compiled(images()).square().sum().backward()
    assert backbone.stem.parametrizations.weight.original.grad.abs().max() > 0


def plain_loop(network, batches, rate=0.1, eps=1e-5):
    """Ten updates of SGD with standardized weights and estimated batch-channel norm, from the formulas."""
    conv, norm, head = network.backbone.conv, network.backbone.norm, network.head
    sources = (
        conv.parametrizations.weight.original,
        conv.bias,
        norm.weight,
        norm.bias,
        norm.channel_weight,
        norm.channel_bias,
        *head.parameters(),
    )
    values = [value.detach().clone().requires_grad_() for value in sources]
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    for batch in batches:
        w, b, gamma, beta, gamma_g, beta_g, head_w, head_b = values
        centred = w - w.mean((1, 2, 3), keepdim=True)
        w = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        x = F.conv2d((batch.image - 0.5) / 0.25, w, b, padding=1)
        seen = x.detach()
        around = (seen - mean.view(-1, 1, 1)).square().mean((0, 2, 3))
        mean, var = (1 - rate) * mean + rate * seen.mean((0, 2, 3)), (1 - rate) * var + rate * around
        y = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + eps).sqrt()
        y = (gamma.view(-1, 1, 1) * y + beta.view(-1, 1, 1)).unflatten(1, (2, 2))
        z = (y - y.mean((2, 3, 4), keepdim=True)) / (y.var((2, 3, 4), keepdim=True, correction=0) + eps).sqrt()
        out = (gamma_g.view(1, 2, 1, 1, 1) * z + beta_g.view(1, 2, 1, 1, 1)).flatten(1, 2)
        logits = out.tanh().mean((2, 3)) @ head_w.T + head_b
        gradients = torch.autograd.grad(F.cross_entropy(logits, batch.label), values)
        with torch.no_grad():
            for value, gradient in zip(values, gradients, strict=True):
                value -= 0.1 * gradient
    return [*values, mean, var]


@pytest.mark.parametrize("size", [1, 4])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, size):
    network = make_network(batch_norm=True)
    surgeries = {"ws": WeightStandardization(), "bcn": BatchChannelNorm(estimate=True)}
    operate(network.backbone, surgeries, 5)
    batches = [make_batch(list(range(size * n, size * n + size)), seed=n) for n in range(10)]
    expected = plain_loop(network, batches)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for batch in batches:
        optimizer.zero_grad()
        run_step(Parts(CrossEntropy()), batch, make_step(network, batch_size=size))
        optimizer.step()
    conv, norm = network.backbone.conv, network.backbone.norm
    ours = [conv.parametrizations.weight.original, conv.bias, norm.weight, norm.bias, norm.channel_weight]
    ours += [norm.channel_bias, *network.head.parameters(), norm.running_mean, norm.running_var]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_small_batches_behind_bcn():
    backbone = small()
    operate(backbone, {"ws": WeightStandardization(), "bcn": BatchChannelNorm(estimate=True, groups=4)}, 8)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(images(1)).square().sum().backward()
        optimizer.step()
    assert set(parametrized(backbone)) == {"stem"} and backbone(images(1)).isfinite().all()
