"""The weight compander as a surgery: unchanged functions, bounds, learned scales, folding and refusals."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_modules.optimization import create_optimizer, create_schedule, parameter_groups
from lightning_modules.surgery.anatomy import Anatomy
from lightning_modules.surgery.base import check_together
from lightning_modules.surgery.weight_compander import WeightCompander, companders
from lightning_modules.surgery.weight_standardization import WeightStandardization
from lightning_modules.surgery.weights import computed_once

PLAIN = {"arctan": torch.arctan, "tanh": torch.tanh}


class Backbone(nn.Module):
    """A convolution, a batch norm and a linear layer, in timm's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward_features(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))

    forward = forward_features


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone().double()


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def operate(backbone, **keys):
    surgery = WeightCompander(**keys)
    return surgery, surgery.apply(backbone, Anatomy.of(backbone, 32))


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(("kind", "bound_of", "bound"), [("arctan", "std", 4.0), ("tanh", "max", 1.25)])
def test_the_function_is_unchanged_and_folding_bakes_it_in(backbone, images, kind, bound_of, bound, learnable):
    before = copy.deepcopy(backbone)
    surgery, changes = operate(backbone, kind=kind, slope=2.0, bound=bound, bound_of=bound_of, learnable=learnable)
    assert list(changes.changed) == ["conv", "linear"] and list(companders(backbone)) == ["conv", "linear"]
    torch.testing.assert_close(backbone.eval()(images), before.eval()(images), rtol=1e-12, atol=1e-12)
    original = backbone.conv.parametrizations.weight.original
    assert not torch.allclose(original, before.conv.weight)
    with torch.no_grad():
        original.mul_(1.3)
    expected = backbone(images)
    folded = copy.deepcopy(backbone)
    assert surgery.fold(folded) == [] and torch.equal(folded(images), expected)
    assert torch.equal(backbone(images), expected), "folding a copy leaves the original as it is"
    assert surgery.fold(backbone) == []
    assert torch.equal(backbone(images), expected) and repr(backbone) == repr(before)
    assert list(backbone.state_dict()) == list(before.state_dict())
    assert type(backbone.conv.weight) is nn.Parameter and backbone.conv.weight.requires_grad


def test_a_pretrained_shape_keeps_its_outputs_in_float32():
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0).eval()
    image = torch.randn(2, 3, 64, 64)
    expected = backbone(image)
    _, changes = operate(backbone, bound=1.25, bound_of="max", slope=2.0)
    assert len(changes.changed) == 20 and not any("clamped" in note for note in changes.notes)
    torch.testing.assert_close(backbone(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["arctan", "tanh"])
def test_bound_and_slope_are_those_of_the_keys(backbone, kind):
    std = float(backbone.conv.weight.detach().std())
    _, changes = operate(backbone, kind=kind, slope=3.0, bound=4.0, exclude=["linear"])
    function = companders(backbone)["conv"]
    assert function.bound() == pytest.approx(4 * std, rel=1e-12)
    a, b = function.scales()
    assert float(a / b) == pytest.approx(3.0, rel=1e-12)
    assert changes.skipped == {"linear": "in exclude"}
    v = backbone.conv.parametrizations.weight.original
    torch.testing.assert_close(backbone.conv.weight, a * PLAIN[kind](v / b), rtol=1e-12, atol=0)
    assert isinstance(backbone.linear.weight, nn.Parameter)


def test_weights_beyond_the_bound_are_clamped_and_reported(backbone):
    with torch.no_grad():
        backbone.conv.weight.view(-1)[:3] = torch.tensor([9.0, -9.0, 8.0])
    before = backbone.conv.weight.detach().clone()
    _, changes = operate(backbone, bound=2.0)
    bound = companders(backbone)["conv"].bound()
    torch.testing.assert_close(backbone.conv.weight.detach(), before.clamp(-0.98 * bound, 0.98 * bound))
    assert int((before.abs() > 0.98 * bound).sum()) == 3
    assert any("3 weights lay beyond 0.98 of their bound and were clamped (conv 3)" in note for note in changes.notes)
    assert "the largest is at 0.98 of it" in changes.changed["conv"]


def test_direct_start_takes_the_weights_as_parameters(backbone):
    before = backbone.conv.weight.detach().clone()
    _, changes = operate(backbone, slope=2.0, init="direct")
    a, b = companders(backbone)["conv"].scales()
    assert torch.equal(backbone.conv.parametrizations.weight.original.detach(), before)
    torch.testing.assert_close(backbone.conv.weight, a * torch.arctan(before / b))
    assert any("init=direct" in note for note in changes.notes)


def test_the_report_measures_the_weights(backbone):
    _, changes = operate(backbone)
    weight, function = backbone.linear.weight.detach(), companders(backbone)["linear"]
    found = function.diagnostics(weight)
    assert found["largest"] == pytest.approx(float(weight.abs().max()) / function.bound())
    assert found["small"] == pytest.approx(float((weight.abs() < 0.1 * weight.std()).double().mean()))
    a = float(function.scales()[0])
    assert found["saturated"] == float((torch.cos(weight / a) ** 2 < 0.05).double().mean())
    assert f"{100 * found['small']:.1f} % are below 0.1 std" in changes.changed["linear"]


@pytest.mark.parametrize("kind", ["arctan", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_learning_rate_moves_a_weight_to_the_bound(backbone, images, kind, dtype):
    backbone.to(dtype)
    operate(backbone, kind=kind, slope=2.0)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e4, momentum=0.9)
    bound = companders(backbone)["conv"].bound()
    for _ in range(5):
        optimizer.zero_grad()
        backbone(images.to(dtype)).square().mean().backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
    most = float(backbone.conv.weight.detach().abs().max())
    assert 0.99 * bound < most < bound


def test_with_slope_one_and_a_far_bound_training_is_that_of_the_plain_network(backbone, images):
    plain = copy.deepcopy(backbone)
    operate(backbone, bound=1e5)
    for network in (plain, backbone):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            network.train()(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(backbone.conv.weight, plain.conv.weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(backbone.linear.weight, plain.linear.weight, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("kind", "learnable"), [("arctan", False), ("arctan", True), ("tanh", True)])
def test_ten_steps_against_a_plain_loop(backbone, images, kind, learnable):
    """The formula of the page, its parameters and autograd, without any module of the surgery."""
    plain = copy.deepcopy(backbone)
    operate(backbone, kind=kind, slope=2.0, learnable=learnable, exclude=["linear"])
    a, b = (scale.detach() for scale in companders(backbone)["conv"].scales())
    v = (b * (torch.tan if kind == "arctan" else torch.atanh)(plain.conv.weight.detach() / a)).requires_grad_()
    logs = [a.log().requires_grad_(learnable), b.log().requires_grad_(learnable)]
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    trained = [v, *plain.parameters(), *(logs if learnable else [])]
    reference = torch.optim.SGD([p for p in trained if p is not plain.conv.weight], lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        with computed_once(backbone):
            backbone(images).square().mean().backward()
        optimizer.step()
        reference.zero_grad()
        weight = logs[0].exp() * PLAIN[kind](v / logs[1].exp())
        torch.func.functional_call(plain, {"conv.weight": weight}, (images,)).square().mean().backward()
        reference.step()
    weight = logs[0].exp() * PLAIN[kind](v / logs[1].exp())
    torch.testing.assert_close(backbone.conv.weight, weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(backbone.linear.weight, plain.linear.weight, rtol=1e-9, atol=1e-9)
    if learnable:
        moved = torch.stack([logs[0] - a.log(), logs[1] - b.log()])
        function = companders(backbone)["conv"]
        torch.testing.assert_close(torch.stack([function.log_a, function.log_b]), moved, rtol=1e-9, atol=1e-9)
        assert float(moved.detach().abs().min()) > 1e-6


class Whole(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head, self.headless = backbone, nn.Linear(5, 2).double(), True


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_learned_scales_have_a_group_of_their_own(backbone, penalty, everywhere):
    operate(backbone, learnable=True, penalty=penalty)
    network = Whole(backbone)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = {
        names[id(p)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in parameter_groups(network, None, 0.3, None, everywhere)
        for p in group["params"]
    }
    assert set(groups) == set(names.values())
    scales = {name for name in groups if "log_" in name}
    assert len(scales) == 4 and all(groups[name] == (2 * penalty, 0.1) for name in scales)
    assert groups["backbone.conv.parametrizations.weight.original"] == (0.3, 1.0)
    assert groups["backbone.norm.weight"] == (0.3 if everywhere else 0.0, 1.0)
    optimizer = create_optimizer(network, name="sgd", lr=0.5, momentum=0.0)
    schedule = create_schedule(optimizer, 10, name="constant")
    schedule.step_update(0)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[name] == pytest.approx(0.05 if "log_" in name else 0.5) for name in rates)


def test_the_penalty_is_that_of_the_formula_with_sgd(backbone):
    """mu (log a - log a0)^2 + mu (log b - log b0)^2 and nothing else in the loss."""
    mu, lr = 0.02, 0.5
    operate(backbone, learnable=True, penalty=mu)
    function = companders(backbone)["conv"]
    with torch.no_grad():
        function.log_a.fill_(0.3), function.log_b.fill_(-0.7)
    a0, b0 = function.a0, function.b0
    logs = [scale.detach().log().requires_grad_() for scale in function.scales()]
    term = mu * (logs[0] - a0.log()) ** 2 + mu * (logs[1] - b0.log()) ** 2
    expected = [log.detach() - 0.1 * lr * g for log, g in zip(logs, torch.autograd.grad(term, logs), strict=True)]
    optimizer = create_optimizer(Whole(backbone), name="sgd", lr=lr, momentum=0.0, weight_decay=0.3)
    create_schedule(optimizer, 10, name="constant").step_update(0)
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = [scale.log() for scale in function.scales()]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_learned_scales_stay_positive_and_survive_a_checkpoint(backbone, images):
    operate(backbone, learnable=True)
    function = companders(backbone)["conv"]
    for value in (1e4, -1e4):
        with torch.no_grad():
            function.log_a.fill_(value), function.log_b.fill_(-value)
        backbone.float()
        assert all(0 < float(scale.detach()) < float("inf") for scale in function.scales())
        assert bool(backbone.conv.weight.isfinite().all())
    with torch.no_grad():
        function.log_a.fill_(0.2), function.log_b.fill_(0.1)
    state = backbone.double().state_dict()
    assert {"conv.parametrizations.weight.0.log_a", "conv.parametrizations.weight.0.a0"} <= set(state)
    torch.manual_seed(5)
    other = Backbone().double()
    operate(other, learnable=True)
    other.load_state_dict(state)
    assert torch.equal(other.eval()(images), backbone.eval()(images))
    twin = copy.deepcopy(other)
    with torch.no_grad():
        twin.conv.parametrizations.weight[0].log_a.fill_(0.0)
    assert torch.equal(other(images), backbone(images)) and not torch.equal(twin.eval()(images), backbone(images))


def test_scales_of_the_start_survive_another_dtype(backbone):
    operate(backbone)
    function = companders(backbone)["conv"]
    a0 = float(function.a0)
    backbone.to(torch.bfloat16)
    assert function.a0.dtype == torch.float64 and float(function.a0) == a0
    assert backbone.conv.weight.dtype == torch.bfloat16


def test_assigning_a_weight_is_the_inverse(backbone):
    operate(backbone, slope=2.0)
    weight = 0.9 * backbone.conv.weight.detach()
    backbone.conv.weight = weight
    torch.testing.assert_close(backbone.conv.weight.detach(), weight, rtol=1e-12, atol=1e-12)


def test_what_is_left_alone(backbone):
    backbone.conv.owns_weight_gradient = True
    _, changes = operate(backbone)
    assert list(changes.changed) == ["linear"] and "TrAct" in changes.skipped["conv"]
    assert not parametrize.is_parametrized(backbone.conv)
    torch.manual_seed(0)
    frozen = Backbone()
    frozen.conv.weight.requires_grad_(False)
    assert operate(frozen)[1].skipped == {"conv": "its weight is frozen"}
    flat = Backbone()
    nn.init.zeros_(flat.linear.weight)
    assert operate(flat)[1].skipped == {"linear": "its weights are all the same, so they give no bound"}
    tied = Backbone()
    tied.other = nn.Linear(4, 5)
    tied.other.weight = tied.linear.weight
    assert "shares its weight" in operate(tied)[1].skipped["linear"]


def test_a_learned_scale_in_front_of_a_norm_is_noted(backbone):
    _, changes = operate(backbone, learnable=True)
    assert any("the output of 1 of them goes into a norm" in note for note in changes.notes)


def test_refusals(backbone):
    operate(backbone)
    with pytest.raises(ValueError, match=r"weights are companded already \(conv, linear\); apply it once"):
        operate(backbone)
    with pytest.raises(ValueError, match="WeightCompander matches no module of this backbone: in exclude"):
        operate(Backbone(), exclude=["*"])
    other = Backbone()
    WeightStandardization().apply(other, Anatomy.of(other, 32))
    with pytest.raises(ValueError, match="the weight of conv is a function already.*put compander before it"):
        operate(other)
    with pytest.raises(ValueError, match="ws cannot be combined with compander: .*a learned scale"):
        check_together({"ws": WeightStandardization(), "compander": WeightCompander(learnable=True)})
    check_together({"ws": WeightStandardization(), "compander": WeightCompander()})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "sigmoid"}, "kind must be 'arctan' or 'tanh', got 'sigmoid'"),
        ({"bound_of": "mean"}, "bound_of must be 'std' or 'max', got 'mean'"),
        ({"init": "zero"}, "init must be 'inverse' or 'direct', got 'zero'"),
        ({"slope": 0.0}, "slope=0.0 is out of range; allowed: slope > 0"),
        ({"bound": 0.0}, "bound=0.0 is out of range; allowed: bound > 0"),
        ({"bound": 1.0, "bound_of": "max"}, r"bound must be above 1 with bound_of='max', got 1\.0"),
        ({"penalty": -1.0, "learnable": True}, "penalty=-1.0 is out of range; allowed: penalty >= 0"),
        ({"penalty": 1e-3}, r"penalty=0\.001 holds learned scales near their start; set learnable=true"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        WeightCompander(**keys)


def test_fixed_scales_under_weight_standardization_fold_to_the_same(backbone, images):
    surgery, _ = operate(backbone, slope=2.0)
    standardization = WeightStandardization()
    standardization.apply(backbone, Anatomy.of(backbone, 32))
    expected = backbone.eval()(images)
    assert standardization.fold(backbone) == [] and surgery.fold(backbone) == []
    assert not parametrize.is_parametrized(backbone.conv) and torch.equal(backbone(images), expected)
