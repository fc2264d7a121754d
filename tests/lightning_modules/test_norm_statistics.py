"""Forwards that leave norm statistics alone."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from lightning_modules.norm_statistics import norm_statistics_frozen
from lightning_modules.surgery.batch_channel_norm_2d import BatchChannelNorm2d

NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "timm": lambda: BatchNormAct2d(4),
    "bcn": lambda: BatchChannelNorm2d(4, 2),
    "bcn estimate": lambda: BatchChannelNorm2d(4, 2, estimate=True),
    "bcn warmup": lambda: BatchChannelNorm2d(4, 2, estimate=True, warmup=True),
}


@pytest.mark.parametrize("kind", NORMS)
def test_frozen_forwards_compute_the_same_and_leave_no_trace(kind):
    norm = nn.Sequential(NORMS[kind]()).double()
    x = 2 + torch.randn(3, 4, 5, 5, dtype=torch.float64)
    norm(x)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with norm_statistics_frozen(norm):
        with norm_statistics_frozen(norm):
            first = norm(x)
        second = norm(x)
        norm(x + 1)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    after = norm(x)  # as if nothing had happened inside
    assert torch.equal(first, after) and torch.equal(second, after)
    norm(x + 1)
    assert norm[0].num_batches_tracked == 3 and not torch.equal(norm[0].running_mean, before["0.running_mean"])


def test_evaluation_inside_reads_the_running_statistics():
    for make in NORMS.values():
        norm, x = make().double(), torch.randn(3, 4, 5, 5, dtype=torch.float64)
        norm(x)
        expected = norm.eval()(x)
        with norm_statistics_frozen(norm):
            assert torch.equal(norm(x), expected)


def test_it_ends_with_an_exception_and_leaves_norms_without_statistics_alone():
    tracking, free = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(KeyError), norm_statistics_frozen(nn.Sequential(tracking, free)):
        raise KeyError
    assert tracking.track_running_stats and not free.track_running_stats
