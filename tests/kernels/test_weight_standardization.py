"""Weight standardization against timm's arrays, the other published conventions in plain numpy, and its invariances."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import StdConv2d
from torch.nn import functional as F

from kernels.weight_standardization import standardize_weight

FILE = Path(__file__).parents[1] / "reference" / "ws_bcn" / "ws_timm_std_eps1e-6.npz"
REFERENCE = np.load(FILE, allow_pickle=False)
CONVENTIONS = list(product((0, 1), ("inside", "added")))


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(REFERENCE[key]))


def random_weight(*shape: int, scale: float = 0.05, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.02 + scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def spelled_out(weight: np.ndarray, eps: float, ddof: int, mode: str) -> np.ndarray:
    """Filter by filter, from the formula."""
    result = np.empty_like(weight)
    for o, w in enumerate(weight):
        centred = w - w.mean()
        variance = (centred**2).sum() / (w.size - ddof)
        result[o] = centred / (np.sqrt(variance + eps) if mode == "inside" else np.sqrt(variance) + eps)
    return result


@pytest.mark.parametrize("case", ["k3", "k1", "k3g2s2", "k7s2", "dw3"])
def test_equals_the_stored_arrays_with_gradients(case):
    _, _, _, stride, padding, groups, has_bias = (int(v) for v in tensor(f"{case}/conf"))
    x, weight = tensor(f"{case}/x").requires_grad_(), tensor(f"{case}/weight").requires_grad_()
    bias = tensor(f"{case}/bias").requires_grad_() if has_bias else None
    effective = standardize_weight(weight, eps=1e-6)
    y = F.conv2d(x, effective, bias, stride, padding, 1, groups)
    (y * tensor(f"{case}/cot")).sum().backward()
    torch.testing.assert_close(effective.detach(), tensor(f"{case}/w_eff"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y.detach(), tensor(f"{case}/y"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, tensor(f"{case}/grad_x"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weight.grad, tensor(f"{case}/grad_weight"), rtol=1e-9, atol=1e-9)
    if bias is not None:
        torch.testing.assert_close(bias.grad, tensor(f"{case}/grad_bias"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ddof", "mode"), CONVENTIONS)
@pytest.mark.parametrize("eps", [1e-10, 1e-5, 1e-2])
def test_every_convention_equals_its_formula(ddof, mode, eps):
    weight = random_weight(5, 3, 3, 3, scale=0.01).requires_grad_()
    ours = standardize_weight(weight, eps=eps, ddof=ddof, eps_mode=mode)
    np.testing.assert_allclose(ours.detach(), spelled_out(weight.detach().numpy(), eps, ddof, mode), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda w: standardize_weight(w, eps=eps, ddof=ddof, eps_mode=mode), weight)


def test_equals_timm_in_float32():
    conv = StdConv2d(16, 24, 3)
    cot = torch.randn(24, 16, 3, 3)
    trick = F.batch_norm(conv.weight.reshape(1, 24, -1), None, None, training=True, momentum=0.0, eps=1e-6)
    ours = standardize_weight(conv.weight)
    torch.testing.assert_close(ours, trick.reshape_as(ours), rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad((w.reshape_as(cot) * cot).sum(), conv.weight)[0] for w in (ours, trick)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_mean_zero_and_variance_one():
    rows = standardize_weight(random_weight(8, 4, 3, 3), eps=1e-8).flatten(1)
    assert rows.mean(1).abs().max() < 1e-12
    assert (rows.var(1, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("ddof", "mode"), CONVENTIONS)
def test_scale_and_offset_of_a_filter_do_not_matter(ddof, mode):
    weight = random_weight(6, 4, 3, 3).requires_grad_()
    moved = 3.7 * weight.detach() + torch.randn(6, 1, 1, 1, dtype=torch.float64)
    ours = standardize_weight(weight, eps=0.0, ddof=ddof, eps_mode=mode)
    torch.testing.assert_close(
        standardize_weight(moved, eps=0.0, ddof=ddof, eps_mode=mode), ours.detach(), rtol=1e-9, atol=1e-9
    )
    (ours * torch.randn(ours.shape, dtype=torch.float64)).sum().backward()
    gradient, centred = weight.grad.flatten(1), weight.detach().flatten(1)
    centred = centred - centred.mean(1, keepdim=True)
    assert gradient.sum(1).abs().max() < 1e-9 and (gradient * centred).sum(1).abs().max() < 1e-10


def test_ddof_is_a_factor_where_eps_is_zero():
    weight, n = random_weight(5, 4, 3, 3), 36
    factor = ((n - 1) / n) ** 0.5
    torch.testing.assert_close(
        standardize_weight(weight, eps=0.0, ddof=1), standardize_weight(weight, eps=0.0) * factor, rtol=1e-12, atol=0
    )


def test_before_a_norm_the_conventions_agree_but_for_eps():
    x, weight = torch.randn(4, 6, 7, 7, dtype=torch.float64), random_weight(8, 6, 3, 3)
    outputs = [
        F.batch_norm(F.conv2d(x, standardize_weight(weight, ddof=d, eps_mode=m)), None, None, training=True, eps=1e-12)
        for d, m in CONVENTIONS
    ]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ddof", "mode"), CONVENTIONS)
def test_a_constant_filter_is_zero_with_a_finite_gradient(ddof, mode):
    weight = torch.full((2, 3, 3, 3), 0.3).requires_grad_()
    ours = standardize_weight(weight, eps=1e-6, ddof=ddof, eps_mode=mode)
    ours.backward(torch.randn(ours.shape))
    assert ours.abs().max() < 1e-3 and weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["inside", "added"])
def test_half_precision_is_computed_in_float32(dtype, mode):
    weight = (1000 * random_weight(4, 8, 3, 3, scale=1.0)).to(dtype)  # squares beyond float16
    ours = standardize_weight(weight, eps_mode=mode)
    exact = standardize_weight(weight.double(), eps_mode=mode)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize(("ddof", "mode"), CONVENTIONS)
def test_channels_last_stays_and_changes_nothing(ddof, mode):
    weight = random_weight(5, 4, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = standardize_weight(last, ddof=ddof, eps_mode=mode)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, standardize_weight(weight, ddof=ddof, eps_mode=mode), rtol=1e-12, atol=1e-12)
    cot = torch.randn(ours.shape, dtype=torch.float64)
    (ours * cot).sum().backward()
    plain = weight.requires_grad_()
    (standardize_weight(plain, ddof=ddof, eps_mode=mode) * cot).sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("weight", "keys", "match"),
    [
        (torch.ones(4, 1, 1, 1), {}, r"\[4, 1, 1, 1\].*no spread"),
        (torch.ones(4, 2), {"eps": -1.0}, "eps must not be negative, got -1"),
        (torch.ones(4, 2), {"ddof": 2}, "ddof must be 0 or 1, got 2"),
        (torch.ones(4, 2), {"eps_mode": "outside"}, "'inside' or 'added', got 'outside'"),
    ],
)
def test_refuses(weight, keys, match):
    with pytest.raises(ValueError, match=match):
        standardize_weight(weight, **keys)
