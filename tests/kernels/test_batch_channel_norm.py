"""Batch-channel normalization against the official arrays, plain numpy, and its two stages taken apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels.batch_channel_norm import batch_channel_norm, estimated_statistics

FILE = Path(__file__).parents[1] / "reference" / "ws_bcn" / "bcn_batch_c8g4.npz"
REFERENCE = np.load(FILE, allow_pickle=False)


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(REFERENCE[key]))


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def identity(channels: int, groups: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """Statistics 0 and 1, and affines that do nothing."""
    one, zero = torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)
    return {
        "running_mean_C": zero.clone(),
        "running_var_C": one.clone(),
        "batch_weight_C": one.clone(),
        "batch_bias_C": zero.clone(),
        "channel_weight_G": one[:groups].clone(),
        "channel_bias_G": zero[:groups].clone(),
    }


def test_batch_mode_equals_the_official_arrays():
    names = ("bn_weight", "bn_bias", "cn_weight", "cn_bias")
    mean, var = tensor("init_running_mean").clone(), tensor("init_running_var").clone()
    settings = {"groups": int(tensor("num_groups")), "eps": float(tensor("eps")), "update_rate": 0.1}
    for step in ("step0", "step1", "step2", "step3", "eval"):
        affine = [tensor(name).requires_grad_() for name in names]
        x = tensor(f"{step}/x").requires_grad_()
        y = batch_channel_norm(x, mean, var, *affine, training=step != "eval", **settings)
        (y * tensor(f"{step}/cot")).sum().backward()
        torch.testing.assert_close(y.detach(), tensor(f"{step}/y"), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x.grad, tensor(f"{step}/grad_x"), rtol=1e-9, atol=1e-9)
        for name, parameter in zip(names, affine, strict=True):
            if f"{step}/grad_{name}" in REFERENCE:
                torch.testing.assert_close(parameter.grad, tensor(f"{step}/grad_{name}"), rtol=1e-9, atol=1e-9)
        if step != "eval":
            torch.testing.assert_close(mean, tensor(f"{step}/running_mean_after"), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(var, tensor(f"{step}/running_var_after"), rtol=1e-9, atol=1e-9)


def test_batch_mode_is_batch_norm_then_group_norm():
    x, state = random(4, 8, 5, 5), identity(8, 4)
    ours = batch_channel_norm(x, **state, groups=4, training=True)
    torch.testing.assert_close(ours, F.group_norm(F.batch_norm(x, None, None, training=True), 4), rtol=0, atol=1e-12)
    one = batch_channel_norm(x, **identity(8, 1), groups=1, training=True)
    assert one.flatten(1).mean(1).abs().max() < 1e-12 and (one.flatten(1).var(1) - 1).abs().max() < 0.01


def spelled_out(x, state, rate, groups, eps=1e-5):
    """The official order of the estimate mode in loops; returns the output and the new statistics."""
    mean, var = state["running_mean_C"].numpy().copy(), state["running_var_C"].numpy().copy()
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        v = ((x[:, c] - mean[c]) ** 2).mean()  # around the old mean
        mean[c] = (1 - rate) * mean[c] + rate * x[:, c].mean()
        var[c] = (1 - rate) * var[c] + rate * v
        weight, bias = state["batch_weight_C"][c].item(), state["batch_bias_C"][c].item()
        y[:, c] = weight * (x[:, c] - mean[c]) / np.sqrt(var[c] + eps) + bias
    out, size = np.empty_like(x), x.shape[1] // groups
    for b in range(len(x)):
        for g in range(groups):
            part = y[b, g * size : (g + 1) * size]
            z = (part - part.mean()) / np.sqrt(part.var() + eps)
            weight, bias = state["channel_weight_G"][g].item(), state["channel_bias_G"][g].item()
            out[b, g * size : (g + 1) * size] = weight * z + bias
    return out, mean, var


@pytest.mark.parametrize("batch", [1, 3])
def test_estimate_mode_follows_the_official_order(batch):
    state = {
        name: value + 0.3 * random(*value.shape, seed=n).abs() for n, (name, value) in enumerate(identity(6, 3).items())
    }
    for step in range(3):
        x = 2 + random(batch, 6, 4, 4, seed=20 + step)
        expected, mean, var = spelled_out(x.numpy(), state, 0.1, 3)
        ours = batch_channel_norm(x, **state, groups=3, training=True, estimate=True, update_rate=0.1)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state["running_mean_C"], mean, rtol=1e-12)
        np.testing.assert_allclose(state["running_var_C"], var, rtol=1e-12)


def test_estimated_statistics_carry_no_gradient():
    x, state = random(2, 6, 4, 4).requires_grad_(), identity(6, 3)
    state["batch_weight_C"] = random(6, seed=1)
    ours = batch_channel_norm(x, **state, groups=3, training=True, estimate=True)
    mean, var = (state[f"running_{name}_C"].view(-1, 1, 1) for name in ("mean", "var"))
    fixed = state["batch_weight_C"].view(-1, 1, 1) * (x - mean) / (var + 1e-5).sqrt()
    cot = random(2, 6, 4, 4, seed=3)
    ours_gradient = torch.autograd.grad((ours * cot).sum(), x)[0]
    torch.testing.assert_close(
        ours_gradient, torch.autograd.grad((F.group_norm(fixed, 3) * cot).sum(), x)[0], rtol=1e-9, atol=1e-9
    )


def test_a_second_forward_before_the_backward_does_no_harm():
    x, state = random(2, 4, 3, 3).requires_grad_(), identity(4, 2)
    first = batch_channel_norm(x, **state, groups=2, training=True, estimate=True)
    expected = torch.autograd.grad(first.square().sum() + first.sum(), x, retain_graph=True)[0]
    batch_channel_norm(3 + x, **state, groups=2, training=True, estimate=True)
    torch.testing.assert_close(torch.autograd.grad(first.square().sum() + first.sum(), x)[0], expected)


def test_rate_one_takes_the_batch_and_rate_zero_nothing():
    x, state = 1 + random(3, 4, 5, 5), identity(4, 2)
    old = state["running_mean_C"] + 0.5
    mean, var = estimated_statistics(x, old, state["running_var_C"], 1.0)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, (x - 0.5).square().mean((0, 2, 3)))
    batch_channel_norm(x, **state, groups=2, training=True, estimate=True, update_rate=0.0)
    assert not state["running_mean_C"].any() and (state["running_var_C"] == 1).all()


def test_overshoots_while_the_mean_moves_and_settles_near_the_data():
    state, seen = identity(2, 1), []
    for step in range(400):
        x = 3 + 2 * random(1, 2, 16, 16, seed=step)
        batch_channel_norm(x, **state, groups=1, training=True, estimate=True, update_rate=0.1)
        seen.append(state["running_var_C"].mean().item())
    assert 4.7 < max(seen[:20]) < 5.6 and abs(np.mean(seen[200:]) - 4.07) < 0.15
    assert (state["running_mean_C"] - 3).abs().max() < 0.15
    train, evaluated = (
        batch_channel_norm(x, **state, groups=1, training=mode, estimate=True, update_rate=0.0)
        for mode in (True, False)
    )
    assert torch.equal(train, evaluated)


def test_a_rate_on_the_device_equals_a_number():
    x, state = random(2, 4, 3, 3), identity(4, 2)
    pairs = [
        estimated_statistics(x, state["running_mean_C"], state["running_var_C"], r)
        for r in (0.3, torch.tensor(0.3).double())
    ]
    torch.testing.assert_close(*pairs)


def test_total_makes_two_halves_one_batch():
    x, state = random(5, 4, 3, 3), identity(4, 2)
    halves, parts = [x[:2], x[2:]], []
    for half in halves:
        estimated_statistics(half, state["running_mean_C"], state["running_var_C"], 0.2, lambda t: parts.append(t) or t)
    both = estimated_statistics(halves[0], state["running_mean_C"], state["running_var_C"], 0.2, lambda _: sum(parts))
    torch.testing.assert_close(both, estimated_statistics(x, state["running_mean_C"], state["running_var_C"], 0.2))


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input(estimate, dtype):
    x = (1000 * random(4, 8, 5, 5)).to(dtype).requires_grad_()  # squares beyond float16
    half, exact = identity(8, 4, torch.float32), identity(8, 4)
    ours = batch_channel_norm(x, **half, groups=4, training=True, estimate=estimate)
    expected = batch_channel_norm(x.detach().double(), **exact, groups=4, training=True, estimate=estimate)
    ours.float().square().sum().backward()
    assert ours.dtype == dtype and half["running_var_C"].dtype == torch.float32 and x.grad.isfinite().all()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(half["running_var_C"].double(), exact["running_var_C"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("estimate", [False, True])
def test_channels_last_and_frozen_statistics(estimate):
    x = random(3, 8, 5, 5)
    mine, last, frozen = (identity(8, 4) for _ in range(3))
    keys = {"groups": 4, "training": True, "estimate": estimate}
    ours = batch_channel_norm(x, **mine, **keys)
    torch.testing.assert_close(
        batch_channel_norm(x.contiguous(memory_format=torch.channels_last), **last, **keys), ours
    )
    torch.testing.assert_close(last, mine)
    assert torch.equal(batch_channel_norm(x, **frozen, **keys, update_statistics=False), ours)
    torch.testing.assert_close(frozen, identity(8, 4), rtol=0, atol=0)
    assert not torch.equal(mine["running_mean_C"], frozen["running_mean_C"])


def test_refuses():
    state = identity(6, 4)
    with pytest.raises(ValueError, match="divide the 6 channels, got 4"):
        batch_channel_norm(random(2, 6, 2, 2), **state, groups=4, training=True)
    with pytest.raises(ValueError, match="needs running_mean and running_var"):
        batch_channel_norm(
            random(2, 4, 2, 2), **identity(4, 2) | {"running_mean_C": None}, groups=2, training=True, estimate=True
        )
