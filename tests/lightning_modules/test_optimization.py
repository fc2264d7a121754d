"""Parameter groups against names and against timm's own full model; schedules against their formulas."""

import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.cosine import Cosine
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from lightning_modules.optimization import create_optimizer, create_schedule, parameter_groups


def by_name(network, groups, key, default=None):
    """{parameter name: value of its group}; every parameter once."""
    names = {id(p): name for name, p in network.named_parameters()}
    found = [(names[id(p)], group.get(key, default)) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter lies in two groups"
    return dict(found)


def test_weight_decay_is_for_matrices_only(make_network):
    network = make_network(batch_norm=True)
    decays = by_name(network, parameter_groups(network, None, 0.3, None, False), "weight_decay")
    assert decays == {
        "backbone.conv.weight": 0.3,
        "backbone.conv.bias": 0.0,
        "backbone.norm.weight": 0.0,
        "backbone.norm.bias": 0.0,
        "head.weight": 0.3,
        "head.bias": 0.0,
    }
    everywhere = by_name(network, parameter_groups(network, None, 0.3, None, True), "weight_decay")
    assert everywhere == dict.fromkeys(decays, 0.3)


def test_a_learned_scale_does_not_decay(make_network):
    network = make_network(dtype=torch.float32)
    network.head = Cosine(4, 3)
    decays = by_name(network, parameter_groups(network, None, 0.3, None, False), "weight_decay")
    assert decays["head.scale"] == 0.0 and decays["head.weight"] == 0.3


def test_a_module_can_choose_options_for_the_group_of_its_parameters(make_network):
    network = make_network(batch_norm=True)
    network.backbone.norm.group_options = {"lr_scale": 0.1, "weight_decay": 0.02}
    for everywhere in (False, True):
        groups = parameter_groups(network, None, 0.3, None, everywhere)
        decays, scales = by_name(network, groups, "weight_decay"), by_name(network, groups, "lr_scale", 1.0)
        assert decays["backbone.norm.weight"] == decays["backbone.norm.bias"] == 0.02
        assert decays["backbone.conv.weight"] == 0.3 and decays["backbone.conv.bias"] == 0.3 * everywhere
        assert {name for name, scale in scales.items() if scale == 0.1} == {
            "backbone.norm.weight",
            "backbone.norm.bias",
        }
    assert len(groups) == 5 and set(scales.values()) == {0.1, 1.0}


def test_the_scale_of_a_module_multiplies_that_of_its_depth():
    with torch.device("meta"):
        backbone = create_backbone(name="resnet18")
        network = Network(backbone, Linear(backbone.num_features, 10))
    plain = by_name(network, parameter_groups(network, None, 0.1, 0.5, False), "lr_scale", 1.0)
    network.backbone.layer1[0].bn1.group_options = {"lr_scale": 0.1}
    scaled = by_name(network, parameter_groups(network, None, 0.1, 0.5, False), "lr_scale", 1.0)
    own = {"backbone.layer1.0.bn1.weight", "backbone.layer1.0.bn1.bias"}
    assert all(scaled[name] == scale * (0.1 if name in own else 1.0) for name, scale in plain.items())
    assert all(plain[name] < 1.0 for name in own)


def test_what_a_model_exempts_and_what_is_frozen():
    with torch.device("meta"):
        backbone = create_backbone(name="vit_tiny_patch16_224")
        network = Network(backbone, Linear(backbone.num_features, 10))
    decays = by_name(network, parameter_groups(network, None, 0.1, None, False), "weight_decay")
    assert decays["backbone.pos_embed"] == decays["backbone.cls_token"] == 0.0
    assert decays["backbone.patch_embed.proj.weight"] == 0.1 and len(decays) == len(list(network.parameters()))
    network.backbone.requires_grad_(False)
    for layer_decay in (None, 0.5):
        left = by_name(network, parameter_groups(network, None, 0.1, layer_decay, False), "weight_decay")
        assert left == {"head.weight": 0.1, "head.bias": 0.0}


def test_modules_of_parts_are_trained_too(make_network):
    network, projector = make_network(), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    frozen = nn.Linear(4, 4).requires_grad_(False)
    owned = nn.ModuleList([projector, frozen])
    for layer_decay in (None, 0.5):
        groups = parameter_groups(network, owned, 0.1, layer_decay, False)
        both = nn.ModuleDict({"network": network, "owned": owned})
        decays, scales = by_name(both, groups, "weight_decay"), by_name(both, groups, "lr_scale", 1.0)
        assert decays["owned.0.0.weight"] == 0.1 and decays["owned.0.1.weight"] == 0.0
        assert scales["owned.0.0.weight"] == scales["network.head.weight"] == 1.0
        assert not any(name.startswith("owned.1") for name in decays)


# beit and convnext: their last norm lies in the classifier's layer, so no layer is added above it
LAYERED = ["vit_tiny_patch16_224", "resnet18", "cifar_resnet20", "convnext_atto", "beit_base_patch16_224"]


@pytest.mark.parametrize("name", LAYERED)
def test_layer_decay_is_that_of_timms_full_model(name):
    with torch.device("meta"):
        backbone = create_backbone(name=name)
        network = Network(backbone, Linear(backbone.num_features, 10))
        full = timm.create_model(name, num_classes=10)
    skip = full.no_weight_decay() if hasattr(full, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(full, weight_decay=0.05, no_weight_decay_list=skip, layer_decay=0.7)
    ours = parameter_groups(network, None, 0.05, 0.7, False)
    for key in ("lr_scale", "weight_decay"):
        expected, found = by_name(full, theirs, key), by_name(network, ours, key, 1.0)
        (classifier,) = (module_name for module_name, m in full.named_modules() if m is full.get_classifier())
        for parameter in ("weight", "bias"):
            assert found.pop(f"head.{parameter}") == expected.pop(f"{classifier}.{parameter}"), parameter
        assert {n.removeprefix("backbone."): v for n, v in found.items()} == pytest.approx(expected)
    assert len({group["lr_scale"] for group in ours if "lr_scale" in group}) >= 4


def test_a_step_moves_lower_layers_less(make_network):
    """The rate of a group is the schedule's times its scale, from the very first update."""
    torch.manual_seed(0)
    backbone = create_backbone(name="cifar_resnet20", kwargs={"width": 2})
    network = Network(backbone, Linear(backbone.num_features, 3))
    optimizer = create_optimizer(network, name="sgd", lr=0.5, momentum=0.0, layer_decay=0.5)
    schedule = create_schedule(optimizer, 10, name="constant")
    schedule.step_update(0)
    scales = by_name(network, parameter_groups(network, None, 0.0, 0.5, False), "lr_scale", 1.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 0.5 * scales[name]), rtol=1e-4, atol=1e-6)
    assert scales["backbone.conv1.weight"] < scales["backbone.layer3.2.conv2.weight"] == 0.5


def test_settings_reach_the_optimizer(make_network):
    network = make_network()
    adamw = create_optimizer(network, name="adamw", lr=0.1, weight_decay=0.2, kwargs={"betas": (0.5, 0.6)})
    assert type(adamw) is torch.optim.AdamW
    assert {(g["lr"], g["betas"]) for g in adamw.param_groups} == {(0.1, (0.5, 0.6))}
    plain = create_optimizer(network, name="momentum", lr=0.1, momentum=0.7)
    assert type(plain) is torch.optim.SGD
    assert {(g["momentum"], g["nesterov"]) for g in plain.param_groups} == {(0.7, False)}


def test_refusals(make_network):
    network = make_network()
    with pytest.raises(ValueError, match="name=adamww is not known; did you mean adamw.* names are allowed"):
        create_optimizer(network, name="adamww", lr=0.1)
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient; set backbone.freeze=false"):
        create_optimizer(network, name="sgd", lr=0.1)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adamp", "lion"])
def test_momentum_is_refused_where_timm_would_drop_it(make_network, name):
    with pytest.raises(ValueError, match=rf"optimizer.momentum=0.5: {name} takes no momentum; .*momentum=null"):
        create_optimizer(make_network(), name=name, lr=0.1, momentum=0.5)
    assert create_optimizer(make_network(), name=name, lr=0.1).param_groups


@pytest.mark.parametrize("name", ["sgd", "sgdp", "momentum", "rmsprop"])
def test_momentum_reaches_those_that_take_one(make_network, name):
    for given, expected in ((0.5, 0.5), (None, 0.9)):
        groups = create_optimizer(make_network(), name=name, lr=0.1, momentum=given).param_groups
        assert {group["momentum"] for group in groups} == {expected}


@pytest.mark.parametrize(("key", "value"), [("betas", [0.5, 0.6]), ("eps", 1e-3)])
def test_kwargs_that_timm_would_drop(make_network, key, value):
    with pytest.raises(ValueError, match=rf"optimizer.kwargs.{key}=.*: sgd takes no {key}; leave it out"):
        create_optimizer(make_network(), name="sgd", lr=0.1, kwargs={key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "owners"),
    [
        ("wsd", "milestones", [0.5], "schedule=step"),
        ("cosine", "decay_rate", 0.1, "schedule=step"),
        ("step", "min_lr", 0.0, "schedule=cosine or schedule=wsd"),
        ("constant", "min_lr", 0.1, "schedule=cosine or schedule=wsd"),
        ("cosine", "decay_fraction", 0.2, "schedule=wsd"),
    ],
)
def test_keys_of_another_schedule(name, key, value, owners):
    with pytest.raises(ValueError, match=rf"schedule.{key}=.* has no effect on {name}; it belongs to {owners}; leave"):
        rates(10, name=name, **{key: value})


LR, MIN = 0.8, 0.05


def rates(total, **keys):
    parameter = nn.Parameter(torch.zeros(1))
    groups = [{"params": [parameter]}, {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=LR)
    schedule = create_schedule(optimizer, total, **keys)
    found = []
    for update in range(total):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.25 * found[-1])
    return found


def warmed(total, fraction):
    """Updates of the warm-up and their rates: equal steps from lr / (w + 1), so that update w has the full one."""
    w = round(fraction * total)
    return [LR * (u + 1) / (w + 1) for u in range(w)]


@pytest.mark.parametrize("total", [20, 200])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25])
def test_every_schedule_at_every_update(total, fraction):
    start = warmed(total, fraction)
    w = len(start)
    cosine = [MIN + (LR - MIN) * (1 + math.cos(math.pi * (u - w) / (total - w))) / 2 for u in range(w, total)]
    assert rates(total, name="cosine", warmup_fraction=fraction, min_lr=MIN) == pytest.approx(start + cosine)
    assert rates(total, name="constant", warmup_fraction=fraction) == pytest.approx(start + [LR] * (total - w))
    factors = [0.2 ** ((u >= 0.5 * total) + (u >= 0.8 * total)) for u in range(w, total)]
    step = rates(total, name="step", warmup_fraction=fraction, milestones=[0.5, 0.8], decay_rate=0.2)
    assert step == pytest.approx(start + [LR * f for f in factors])
    tail = round(0.2 * total)
    shares = [max(0, u - (total - tail)) / tail for u in range(w, total)]
    wsd = rates(total, name="wsd", warmup_fraction=fraction, min_lr=MIN, decay_fraction=0.2)
    assert wsd == pytest.approx(start + [MIN + (LR - MIN) * (1 - math.sqrt(share)) for share in shares])


@pytest.mark.parametrize("name", ["cosine", "step", "wsd", "constant"])
def test_schedules_scale_with_the_run(name):
    """Ten times the updates, the same rate at the same share of the run."""
    keys = {"min_lr": MIN} if name in ("cosine", "wsd") else {}
    short, long = rates(20, name=name, **keys), rates(200, name=name, **keys)
    assert long[::10] == pytest.approx(short)


@pytest.mark.parametrize("name", ["cosine", "step", "wsd", "constant"])
def test_the_rate_depends_on_the_update_alone(name):
    """Asked out of order, as a resumed run asks, it answers the same."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = create_schedule(optimizer, 20, name=name, warmup_fraction=0.2)
    expected = rates(20, name=name, warmup_fraction=0.2)
    for update in (13, 2, 19, 0, 13):
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected[update])


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("name", ["cosine", "step", "wsd", "constant"])
def test_very_short_runs(name, total):
    assert all(0 < rate <= LR for rate in rates(total, name=name, warmup_fraction=0.1))


def test_milestones_may_come_in_any_order_or_not_at_all():
    keys = {"name": "step", "decay_rate": 0.2}
    assert rates(20, milestones=[0.8, 0.5], **keys) == rates(20, milestones=[0.5, 0.8], **keys)
    assert rates(20, milestones=[], **keys) == [LR] * 20
    assert rates(20, milestones=None, **keys) == rates(20, milestones=[0.5, 0.75], **keys)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"warmup_fraction": 1.5}, r"warmup_fraction=1.5"),
        ({"milestones": [0.5, 30], "name": "step"}, r"milestones=\[0.5, 30\]"),
        ({"decay_fraction": -0.1, "name": "wsd"}, r"decay_fraction=-0.1"),
    ],
)
def test_shares_outside_the_run(keys, named):
    with pytest.raises(ValueError, match=rf"{named} is out of range; allowed: 0 <= .* <= 1$"):
        rates(10, **keys)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_the_rate_ends_below_where_it_starts(name):
    assert rates(10, name=name, min_lr=LR) == pytest.approx([LR] * 10)
    with pytest.raises(ValueError, match=f"schedule.min_lr={2 * LR} is above optimizer.lr={LR}, where the rate starts"):
        rates(10, name=name, min_lr=2 * LR)
