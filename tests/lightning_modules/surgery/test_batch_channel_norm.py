"""Batch-channel normalization as surgery, its module, and what the published code gets wrong."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_modules.average import Average
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.norm_statistics import norm_modules, norm_statistics_kept
from lightning_modules.parts import Parts
from lightning_modules.surgery.anatomy import Anatomy
from lightning_modules.surgery.base import operate
from lightning_modules.surgery.batch_channel_norm import BatchChannelNorm, largest_groups
from lightning_modules.surgery.batch_channel_norm_2d import BatchChannelNorm2d
from lightning_modules.surgery.sync_batch_norm import SyncBatchNorm
from lightning_modules.tasks.classification import Classification

MODES = [{}, {"estimate": True}, {"estimate": True, "warmup": True}]


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms(backbone: nn.Module) -> list[BatchChannelNorm2d]:
    return [module for module in backbone.modules() if isinstance(module, BatchChannelNorm2d)]


def operated(backbone: nn.Module, **keys) -> nn.Module:
    operate(backbone, {"bcn": BatchChannelNorm(**keys)}, 32)
    return backbone


def tiny(**keys) -> nn.Module:
    torch.manual_seed(0)
    return operated(timm.create_model("cifar_resnet20", num_classes=0), **keys).double()


@pytest.mark.parametrize(
    ("channels", "most", "groups"), [(64, 32, 32), (40, 32, 20), (16, 32, 8), (7, 32, 1), (1, 32, None), (24, 4, 4)]
)
def test_groups_are_the_largest_divisor_with_two_channels(channels, most, groups):
    assert largest_groups(channels, most) == groups


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("mobilenetv3_small_050", 34), ("resnetv2_18", 17)])
def test_every_batch_norm_is_replaced_and_keeps_its_name(name, count):
    backbone, plain = (timm.create_model(name, num_classes=0) for _ in range(2))
    lines = operate(backbone, {"bcn": BatchChannelNorm()}, 64)
    assert lines[0] == f"bcn: {count} modules changed, 0 left as they are" and "warning" in lines[1]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    added = set(backbone.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(backbone.state_dict()) and len(added) == 2 * count
    assert {key.rsplit(".")[-1] for key in added} == {"channel_weight", "channel_bias"}
    assert all(norm.channel_weight.ndim == 1 for norm in norms(backbone))
    assert len(Anatomy.of(backbone, 64).norms) == count


def test_affine_statistics_mode_and_activation_are_carried_over():
    norm = BatchNormAct2d(6, eps=1e-3, act_layer=nn.SiLU, drop_layer=nn.Dropout).double().eval()
    norm.bias.requires_grad_(False)
    for n, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        tensor.data.copy_(images(6, seed=n).abs())
    norm.num_batches_tracked.fill_(7)
    new = BatchChannelNorm2d.of(norm, 3)
    assert new.act is norm.act and new.drop is norm.drop and not new.training and new.eps == 1e-3
    assert not new.bias.requires_grad and new.num_batches_tracked == 7
    x = images(2, 6, 4, 4)
    inner = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)
    torch.testing.assert_close(new(x), F.silu(F.group_norm(inner, 3, eps=1e-3)))
    assert new.train()(x).min() >= -0.2785  # the minimum of SiLU; without it -3


def test_a_zero_weight_goes_to_the_channel_stage():
    backbone = timm.create_model("resnet18", num_classes=0).double()
    lines = operate(backbone, {"bcn": BatchChannelNorm()}, 64)
    zero = [norm for norm in norms(backbone) if not norm.channel_weight.any()]
    assert len(zero) == 8 and sum("zero weight went to the channel stage" in line for line in lines) == 8
    assert all((norm.weight == 1).all() for norm in zero)
    block, x = backbone.layer1[0], images(2, 64, 8, 8).relu()
    output = block(x)
    torch.testing.assert_close(output, x)
    (output * images(2, 64, 8, 8, seed=1)).sum().backward()
    assert not block.bn2.weight.grad.any() and 1 < block.bn2.channel_weight.grad.norm() < 1000
    wrong = deepcopy(block.bn2)  # the copy of a zero into the batch stage
    nn.init.zeros_(wrong.weight), nn.init.ones_(wrong.channel_weight)
    right = deepcopy(block.bn2)
    for norm in (wrong, right):
        norm.zero_grad()
        (norm(x) * images(2, 64, 8, 8, seed=1)).sum().backward()
    assert wrong.weight.grad.norm() > 100 * right.channel_weight.grad.norm()


def test_the_state_makes_resume_exact():
    whole = {mode: tiny(estimate=mode, warmup=mode) for mode in (False, True)}
    for mode, backbone in whole.items():
        backbone(images(2, 3, 16, 16))
        other = tiny(estimate=mode, warmup=mode)
        other.load_state_dict(backbone.state_dict())
        for step in range(2):
            x = images(2, 3, 16, 16, seed=step)
            assert torch.equal(backbone(x), other(x))
        assert all(torch.equal(a, b) for a, b in zip(backbone.buffers(), other.buffers(), strict=True))
        assert all(norm.num_batches_tracked == 3 for norm in norms(backbone))


def test_no_parameter_without_gradient_and_small_ones_are_vectors():
    backbone = tiny()
    backbone(images(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert all(p.ndim == 1 for norm in norms(backbone) for p in norm.parameters())


def test_warm_up_starts_as_a_plain_average():
    norm = BatchChannelNorm2d(4, 2, estimate=True, update_rate=0.25, warmup=True).double()
    means, seen = [], []
    for step in range(4):
        x = images(2, 4, 3, 3, seed=step)
        means.append(x.mean((0, 2, 3)))
        norm(x)
        seen.append(norm.running_mean.clone())
    for step in range(4):
        torch.testing.assert_close(seen[step], sum(means[: step + 1]) / (step + 1))
    norm(images(2, 4, 3, 3, seed=4))
    torch.testing.assert_close(norm.running_mean, 0.75 * seen[3] + 0.25 * images(2, 4, 3, 3, seed=4).mean((0, 2, 3)))


def test_estimates_over_processes_are_those_of_the_whole_batch(monkeypatch):
    whole, share = (BatchChannelNorm2d(4, 2, estimate=True, all_reduce=on).double() for on in (False, True))
    x = images(4, 4, 3, 3)
    sums = []
    module = "lightning_modules.surgery.batch_channel_norm_2d.total_over_processes"
    monkeypatch.setattr(module, lambda tensor: sums.append(tensor) or tensor)
    deepcopy(share)(x[1:])  # the other process
    monkeypatch.setattr(module, lambda tensor: tensor + sums[0])
    torch.testing.assert_close(share(x[:1]), whole(x)[:1])
    torch.testing.assert_close(share.running_var, whole.running_var)


@pytest.mark.parametrize("keys", MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_autocast_channels_last_and_single_images(keys, count):
    backbone = tiny(**keys).float().to(memory_format=torch.channels_last)
    x = images(count, 3, 16, 16).float().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = backbone(x)
    output.float().square().sum().backward()
    assert output.isfinite().all() and all(p.grad.isfinite().all() for p in backbone.parameters())
    assert all(buffer.isfinite().all() for buffer in backbone.buffers())
    norm = BatchChannelNorm2d(4, 2, **keys)
    assert norm(images(2, 4, 3, 3).bfloat16()).dtype == torch.bfloat16 and norm.running_var.dtype == torch.float32


@pytest.mark.parametrize("keys", MODES)
def test_copy_average_and_kept_statistics(keys):
    backbone = tiny(**keys)
    copied, average = deepcopy(backbone), Average(backbone)
    x = images(2, 3, 16, 16)
    assert torch.equal(copied(x), backbone(x))
    average.update(backbone, 0.0)
    assert torch.equal(average.module(x), backbone.eval()(x)) and len(norm_modules(backbone)) == 19
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with norm_statistics_kept(backbone):
        backbone.train()(x + 1)
        assert not torch.equal(backbone.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("keys", MODES)
def test_compiled(keys):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), BatchChannelNorm2d(8, 4, **keys)).double()
    compiled_net = deepcopy(plain)
    compiled = torch.compile(compiled_net, backend="aot_eager", fullgraph=True)  # a host read would break it
    for step in range(2):
        x = images(2, 3, 8, 8, seed=step)
        ours, theirs = compiled(x), plain(x)
        torch.testing.assert_close(ours, theirs)
        for output, network in ((ours, compiled_net), (theirs, plain)):
            network.zero_grad()
            output.square().sum().backward()
    torch.testing.assert_close(compiled_net.state_dict(), plain.state_dict())
    torch.testing.assert_close(*[[p.grad for p in network.parameters()] for network in (compiled_net, plain)])


def test_estimates_refuse_checkpointing_by_the_flag_and_by_the_forward():
    backbone = timm.create_model("resnet18", num_classes=0)
    backbone.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="cannot be combined with activation checkpointing"):
        operated(backbone, estimate=True)
    assert len(norms(operated(backbone))) == 20
    norm, x = BatchChannelNorm2d(4, 2, estimate=True).double(), images(2, 4, 3, 3).requires_grad_()
    for reentrant in (True, False):
        output = checkpoint(lambda y: norm(y).exp(), x, use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match="recomputed forward would update the running statistics"):
            output.sum().backward()
    batch = BatchChannelNorm2d(4, 2).double()
    checkpoint(lambda y: batch(y).exp(), x, use_reentrant=False).sum().backward()


def test_fold_says_what_stays_and_changes_nothing():
    backbone, surgery = timm.create_model("cifar_resnet20", num_classes=0).eval(), BatchChannelNorm()
    operate(backbone, {"bcn": surgery}, 32)
    x = images(2, 3, 16, 16).float()
    expected = backbone(x)
    assert surgery.fold(nn.Identity()) == []
    (sentence,) = surgery.fold(backbone)
    assert sentence.startswith("19 batch-channel norms stay: their second stage") and torch.equal(backbone(x), expected)


def test_what_is_left_and_what_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one = nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1)
            self.free, self.cumulative = (
                nn.BatchNorm2d(1 * 1, track_running_stats=False),
                nn.BatchNorm2d(4, momentum=None),
            )
            self.wide, self.unused, self.slow = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.01)

        def forward_features(self, x):
            return self.slow(self.cumulative(self.wide(self.free(self.one(self.conv(x))))))

    net = Net()
    text = "\n".join(operate(net, {"bcn": BatchChannelNorm(update_rate=None)}, 8))
    assert "left one: 1 channels have no group of two" in text and "left free: keeps no running statistics" in text
    assert "left cumulative: averages over all updates" in text and "left unused: forward_features never" in text
    assert "changed slow: batch-channel norm, 4 channels in 2 groups" in text and net.slow.update_rate == 0.01
    with pytest.raises(ValueError, match="applied before"):
        operate(net, {"bcn": BatchChannelNorm()}, 8)
    with pytest.raises(ValueError, match="matches no module.*LayerNorm2d is no batch norm"):
        operated(timm.create_model("convnext_atto", num_classes=0))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"groups": 0}, r"groups=0 is out of range; allowed: groups >= 1 \(int\)"),
        ({"update_rate": 1.5}, "update_rate=1.5 is out of range; allowed: 0 <= update_rate <= 1"),
        ({"warmup": True}, "warmup=true is about estimated statistics"),
        ({"all_reduce": True}, "all_reduce=true is about estimated statistics"),
    ],
)
def test_refuses_values(keys, match):
    with pytest.raises(ValueError, match=match):
        BatchChannelNorm(**keys)
    with pytest.raises(ValueError, match="divide the 6 channels, got 4"):
        BatchChannelNorm2d(6, 4)


def test_reset_and_text():
    norm = BatchChannelNorm2d(4, 2, estimate=True)
    for parameter in norm.parameters():
        nn.init.constant_(parameter, 3.0)
    norm.reset_parameters()
    assert [p.mean().item() for p in norm.parameters()] == [1, 0, 1, 0] and "groups=2" in repr(norm)


def test_synchronized_batch_norm_keeps_activations_and_comes_off():
    surgery = SyncBatchNorm()
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    backbone, x = deepcopy(plain), images(2, 3, 32, 32).float()
    lines = operate(backbone, {"sync_bn": surgery}, 32)
    assert lines[0] == "sync_bn: 34 modules changed, 0 left as they are"
    assert not any(type(m) in (nn.BatchNorm2d, BatchNormAct2d) for m in backbone.modules())
    torch.testing.assert_close(backbone(x), plain(x))
    torch.testing.assert_close(backbone.train()(x), deepcopy(plain).train()(x))
    with pytest.raises(ValueError, match="synchronized batch norms already"):
        operate(backbone, {"sync_bn": surgery}, 32)
    assert surgery.fold(backbone.eval()) == [] and not any(isinstance(m, nn.SyncBatchNorm) for m in backbone.modules())
    assert {type(m) for m in backbone.modules()} == {type(m) for m in plain.modules()}
    plain.load_state_dict(backbone.state_dict())
    assert torch.equal(backbone(x), plain(x))


def test_two_that_replace_batch_norm_are_refused():
    with pytest.raises(
        ValueError, match=r"(?s)bcn cannot be combined with sync_bn.*sync_bn cannot be combined with bcn"
    ):
        operate(nn.Identity(), {"bcn": BatchChannelNorm(), "sync_bn": SyncBatchNorm()})
    with pytest.raises(ValueError, match="no synchronized form"):
        operate(timm.create_model("convnext_atto", num_classes=0), {"sync_bn": SyncBatchNorm()}, 32)


def test_single_images_are_refused_in_batch_mode_only(make_network, make_batch, make_context):
    for estimate in (False, True):
        network = make_network(batch_norm=True)
        operate(network.backbone, {"bcn": BatchChannelNorm(estimate=estimate)}, 5)
        task = Classification(network, Parts(CrossEntropy()), *[lambda *_: None] * 2, make_context(network))
        task.check_size(2)
        if estimate:
            task.check_size(1)
        else:
            with pytest.raises(ValueError, match="leaves batch norm a single sample"):
                task.check_size(1)
