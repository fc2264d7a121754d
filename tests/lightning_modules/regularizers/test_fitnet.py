"""FitNet: its regressors, and ten steps against a plain loop written from the formula."""

import pytest
import torch
from taught import SIDE, batch_of, check_same, context, plain_loop, small, teacher, together, train, value_of
from torch import nn

from kernels.batch import Output
from lightning_modules.optimization import create_optimizer
from lightning_modules.regularizers.fitnet import FitNet, regressor
from lightning_modules.teaching.given import map_of


def kinds(module):
    return [type(one).__name__ for one in module]


@pytest.mark.parametrize(
    ("student", "target", "conv", "kernel"),
    [
        ((4, 8, 8), (6, 4, 4), "Conv2d", (3, 3)),
        ((4, 4, 4), (6, 8, 8), "ConvTranspose2d", (4, 4)),
        ((4, 8, 8), (6, 8, 8), "Conv2d", (1, 1)),
        ((4, 8, 7), (6, 5, 5), "Conv2d", (4, 3)),
    ],
)
def test_the_rule_of_sizes(student, target, conv, kernel):
    made = regressor(torch.Size(student), torch.Size(target))
    assert kinds(made) == [conv, "BatchNorm2d", "ReLU"] and made[0].kernel_size == kernel
    assert made(torch.randn(2, *student)).shape == (2, *target)
    assert not list(made.buffers()), "statistics of the batch alone: nothing is kept"


def test_tokens_are_mapped_one_by_one():
    made = regressor(torch.Size((16, 4)), torch.Size((16, 6)))
    assert isinstance(made, nn.Linear) and made(torch.randn(2, 16, 4)).shape == (2, 16, 6)


@pytest.mark.parametrize(
    ("student", "target", "why"),
    [
        ((4, 4, 4), (6, 7, 7), "maps that are smaller, as large, or twice as large"),
        ((16, 4), (17, 6), "there are 16 and 17"),
        ((16, 4), (6, 4, 4), "one is of tokens and one of pixels"),
    ],
)
def test_shapes_that_do_not_fit(student, target, why):
    with pytest.raises(ValueError, match=rf"student is \[{student[0]}, .* teacher \[{target[0]}, .*{why}.* take "):
        regressor(torch.Size(student), torch.Size(target))


def test_refusals_name_the_part():
    with pytest.raises(ValueError, match="- term: the final map of the student .* one is of tokens"):
        together(FitNet(), small(tokens=True), [teacher()])
    with pytest.raises(ValueError, match=r"- term: .* give Context\(image_size=...\), in pixels"):
        together(FitNet(), small(), [teacher()], image_size=None)


@pytest.mark.parametrize("keys", [{}, {"stride": 2}, {"tokens": True}], ids=["same", "half", "tokens"])
def test_ten_steps_equal_a_plain_loop(keys):
    """Conv, batch norm of the batch and ReLU, or a linear map of tokens; 100 times the mean of all squares."""
    of_teacher = {"tokens": True} if "tokens" in keys else {}
    student, plain, teaching = small(**keys), small(**keys), teacher(**of_teacher)
    parts = together(FitNet(weight=2.0, stop_epoch=4, warmup_epochs=2), student, [teacher(**of_teacher)])
    trained = parts.regularizers["term"].regressor
    if keys.get("tokens"):
        by_hand = nn.Linear(4, 6).double()
        first = by_hand
    else:
        first = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1) if keys else nn.Conv2d(4, 6, 1)
        by_hand = nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU()).double()
    first.load_state_dict((trained if isinstance(trained, nn.Linear) else trained[0]).state_dict())
    history = train(parts, student)

    def term(ours, theirs, batch, epoch):
        scale = 2.0 * min(1, (epoch + 1) / 2) if epoch < 4 else 0.0
        return scale * ((by_hand(ours.maps["final"]) - theirs.maps["final"]) ** 2).mean()

    plain_loop(plain, teaching.eval(), term, by_hand)
    check_same(student, plain)
    check_same(trained, by_hand)
    assert history[0]["term"] > 0 and history[-1]["term"] == 0


def test_values_by_loops():
    """A regressor that is the identity leaves the mean of squares of each sample."""
    term = FitNet(weight=100.0)
    term.regressor, (s, t) = nn.Linear(3, 3).double(), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    nn.init.eye_(term.regressor.weight), nn.init.zeros_(term.regressor.bias)
    found = value_of(term, Output(maps={"final": s}), Output(maps={"final": t}), torch.zeros(2).long())
    for i in range(2):
        squares = [float((s[i, n, d] - t[i, n, d]) ** 2) for n in range(4) for d in range(3)]
        assert found[i].item() == pytest.approx(100 * sum(squares) / len(squares))


def test_channels_may_come_last():
    class Last(nn.Module):
        """A backbone whose maps are [B, H, W, C]."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.num_features, self.head_hidden_size = inner, inner.num_features, inner.num_features

        def forward_features(self, image):
            return self.inner.forward_features(image).permute(0, 2, 3, 1)

        def forward_head(self, feature_map, pre_logits=False):
            return feature_map.mean((1, 2))

    student = small()
    student.backbone = Last(student.backbone)
    parts = together(FitNet(weight=1.0), student, [teacher()])
    assert parts.regularizers["term"].regressor[0].weight.shape == (6, 4, 1, 1)
    assert train(parts, student, updates=2)[0]["term"] > 0


def test_looking_at_maps_leaves_a_network_as_it_is(make_network):
    network = make_network(batch_norm=True, dropout=0.5).train()
    network.backbone.dropout.eval()
    before, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    assert map_of(network, 3, 9).shape == (1, 4, 9, 9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training and network.backbone.norm.training and not network.backbone.dropout.training
    assert all(p.requires_grad for p in network.parameters())


def test_the_regressor_is_trained_and_in_no_network():
    student = small()
    parts = together(FitNet(), student, [teacher()])
    optimizer = create_optimizer(student, parts, name="sgd", lr=0.1)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in parts.regularizers["term"].regressor.parameters()} <= trained
    assert not {id(p) for p in parts.networks["teacher"].network.parameters()} & trained
    assert not any("regressor" in name for name in student.state_dict())
    assert any("regressor" in name for name in parts.state_dict()), "it is in the checkpoint"


def test_the_start_depends_on_the_seed_of_the_run_alone():
    made = []
    for before, seed in ((1, 3), (2, 3), (1, 4)):
        torch.manual_seed(before)
        term, student = FitNet(), small()
        parts = together(None, student, [teacher()])
        term.setup(context(student, {"teacher": parts.networks["teacher"]}, seed=seed))
        made.append(term.regressor[0].weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_maps_are_asked_for_only_where_they_are_read():
    asked = []
    student = small()
    forward = student.forward
    student.forward = lambda *args, **keys: (asked.append(keys.get("want_maps", ())), forward(*args, **keys))[1]
    for term in (FitNet(), FitNet(weight=0.0)):
        parts = together(term, student, [teacher()])
        asked.clear()
        train(parts, student, updates=1)
        assert asked == [("final",) if term.weight else ()]
    assert batch_of(0).image.shape[-1] == SIDE
