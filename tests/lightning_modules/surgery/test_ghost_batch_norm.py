"""Ghost batch norm as a surgery: whole networks by chunks, keys, counters, refusals and the large-batch schedule."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_modules.large_batch import large_batch_epochs, large_batch_lr
from lightning_modules.norm_statistics import norm_statistics_frozen, norm_statistics_kept
from lightning_modules.surgery.anatomy import Anatomy
from lightning_modules.surgery.base import check_together
from lightning_modules.surgery.ghost_batch_norm import GhostBatchNorm, GhostBatchNorm2d, GhostBatchNormAct2d
from lightning_modules.surgery.sync_batch_norm import SyncBatchNorm


class Backbone(nn.Module):
    """Two convolutions, each with a batch norm, in timm's interface."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), norm(4)
        self.second, self.norm2 = nn.Conv2d(4, 5, 3, stride=2), norm(5)

    def forward_features(self, x):
        return self.norm2(self.second(self.norm1(self.first(x)).relu()))

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone().double()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 3, 7, 7, dtype=torch.float64, generator=generator) + torch.arange(10.0).view(-1, 1, 1, 1)


def operate(backbone, **keys):
    surgery = GhostBatchNorm(**keys)
    return surgery, surgery.apply(backbone, Anatomy.of(backbone, 16))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_whole_network_chunk_after_chunk_is_the_same(backbone, images, layout):
    """The official procedure: forward and backward of every chunk, gradients summed."""
    plain = copy.deepcopy(backbone).train()
    operate(backbone, ghost_size=4, momentum_mode="sequential")
    backbone, labels = backbone.to(memory_format=layout).train(), torch.arange(10) % 5
    cross_entropy(backbone(images.contiguous(memory_format=layout)), labels).backward()
    for image, label in zip(images.split([4, 4, 2]), labels.split([4, 4, 2]), strict=True):
        (cross_entropy(plain(image), label, reduction="sum") / 10).backward()
    for (name, found), expected in zip(backbone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12, msg=name)
    for (name, found), expected in zip(backbone.named_buffers(), plain.buffers(), strict=True):
        if "num_batches" in name:
            assert (int(found), int(expected)) == (1, 3)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13, msg=name)


def test_keys_stay_and_fold_is_the_way_back(backbone, images):
    before = copy.deepcopy(backbone)
    surgery, changes = operate(backbone, ghost_size=2)
    assert isinstance(backbone.norm1, GhostBatchNorm2d) and list(changes.changed) == ["norm1", "norm2"]
    assert "ghost_size=2, momentum_mode='scaled'" in repr(backbone)
    assert {k: v.shape for k, v in backbone.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }
    assert torch.equal(backbone.eval()(images), before.eval()(images))
    assert not torch.allclose(backbone.train()(images), before.train()(images))
    assert torch.equal(backbone.eval()(images)[:3], backbone.eval()(images[:3]))
    backbone.load_state_dict(before.state_dict())
    assert surgery.fold(backbone) == []
    assert type(backbone.norm1) is nn.BatchNorm2d and not hasattr(backbone.norm1, "ghost_size")
    assert repr(backbone) == repr(before)
    assert torch.equal(backbone.eval()(images), before.eval()(images))


def test_a_ghost_of_the_whole_batch_is_the_plain_network_bit_for_bit(backbone, images):
    plain = copy.deepcopy(backbone)
    operate(backbone, ghost_size=10)
    for network in (backbone, plain):
        network.train()(images).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(backbone.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(backbone.buffers(), plain.buffers(), strict=True))


def test_frozen_and_kept_statistics(backbone, images):
    operate(backbone, ghost_size=3)
    backbone.train()
    with norm_statistics_kept(backbone):
        expected = backbone(images)
    before = [buffer.clone() for buffer in backbone.buffers()]
    with norm_statistics_frozen(backbone):
        found = backbone(images)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(backbone.buffers(), before, strict=True))
    backbone(images)
    assert int(backbone.norm1.num_batches_tracked) == 1


def test_timm_keeps_its_activation():
    torch.manual_seed(0)
    backbone = timm.create_model("mobilenetv3_small_050", num_classes=0)
    act, drop, keys = type(backbone.bn1.act), type(backbone.bn1.drop), list(backbone.state_dict())
    surgery, changes = operate(backbone, ghost_size=4)
    norm = backbone.bn1
    assert type(norm) is GhostBatchNormAct2d and (type(norm.act), type(norm.drop)) == (act, drop)
    assert list(backbone.state_dict()) == keys and "bn1" in changes.changed
    x = torch.randn(8, norm.num_features, 5, 5)
    plain = BatchNormAct2d(norm.num_features, eps=norm.eps, act_layer=act)
    expected = torch.cat([plain.train()(part) for part in x.split(4)])
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-5, atol=1e-5)
    assert surgery.fold(backbone) == [] and type(backbone.bn1) is BatchNormAct2d


def test_a_copy_is_independent(backbone, images):
    operate(backbone, ghost_size=3)
    twin = copy.deepcopy(backbone).train()
    twin(images)
    assert type(twin.norm1) is GhostBatchNorm2d and twin.norm1.ghost_size == 3
    assert int(twin.norm1.num_batches_tracked) == 1 and int(backbone.norm1.num_batches_tracked) == 0


def test_refusals(backbone):
    operate(backbone)
    with pytest.raises(ValueError, match="norm1 is a ghost batch norm already; apply ghost_bn once"):
        operate(backbone)
    synced = convert_sync_batchnorm(Backbone())
    with pytest.raises(ValueError, match="norm1 is a SyncBatchNorm, whose statistics are those of all processes"):
        GhostBatchNorm().apply(synced, Anatomy.of(Backbone(), 16))
    with pytest.raises(ValueError, match="GhostBatchNorm matches no module of this backbone: a GroupNorm is no plain"):
        operate(Backbone(lambda channels: nn.GroupNorm(1, channels)))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        operate(Backbone(lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"averages over all updates \(momentum=None\)"):
        operate(Backbone(lambda channels: nn.BatchNorm2d(channels, momentum=None)))
    with pytest.raises(ValueError, match="ghost_bn cannot be combined with sync_bn: each of the two replaces"):
        check_together({"ghost_bn": GhostBatchNorm(), "sync_bn": SyncBatchNorm()})
    with pytest.raises(ValueError, match=r"ghost_size=0 is out of range; allowed: ghost_size >= 1 \(int\)"):
        GhostBatchNorm(ghost_size=0)
    with pytest.raises(ValueError, match="momentum_mode must be 'scaled' or 'sequential', got 'mean'"):
        GhostBatchNorm(momentum_mode="mean")


def test_patterns(backbone):
    _, changes = operate(backbone, exclude=["norm2"])
    assert list(changes.changed) == ["norm1"] and changes.skipped == {"norm2": "in exclude"}
    assert type(backbone.norm2) is nn.BatchNorm2d


def test_sixteen_times_the_batch_is_four_times_the_rate_and_sixteen_times_the_epochs():
    assert large_batch_lr(0.1, 16 * 128, 128) == pytest.approx(0.4, rel=1e-15)
    assert large_batch_epochs(182, 16 * 128, 128) == 16 * 182
    assert large_batch_epochs(10, 300, 128) == 30 and large_batch_lr(0.1, 128, 128) == 0.1
