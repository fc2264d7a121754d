"""TrAct: the arrays of the official code, the algebra of the paper, and what a backward may cost."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, linear, unfold

from kernels import tract
from kernels.tract import tract_conv2d, tract_linear

REFERENCE = Path(__file__).parents[1] / "reference" / "tract"
LAM = 0.1


def close(ours, theirs, rtol):
    """Relative to the largest entry."""
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()


def conv_rows(image, kernel, **geometry):
    return unfold(image, kernel, **geometry).transpose(1, 2).flatten(0, 1)


def divided(g, X_Rn, lam=LAM):
    """``g A^-1`` by the definition."""
    g, X_Rn = g.flatten(1).double(), X_Rn.double()
    A = X_Rn.T @ X_Rn / len(X_Rn) + lam * torch.eye(X_Rn.shape[1], dtype=torch.float64)
    return g @ torch.linalg.inv(A)


def gradient(operation, weight, upstream):
    return torch.autograd.grad(operation(weight), weight, upstream)[0]


@pytest.fixture
def count(monkeypatch):
    """How often a second moment was computed."""
    calls, original = [], tract._mean_second_moment
    monkeypatch.setattr(tract, "_mean_second_moment", lambda *args: (calls.append(1), original(*args))[1])
    return calls


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(20, 6, dtype=torch.float64) * torch.linspace(0.1, 2, 6, dtype=torch.float64)


@pytest.fixture
def weight():
    torch.manual_seed(1)
    return torch.randn(4, 6, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def upstream():
    torch.manual_seed(2)
    return torch.randn(20, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(path.stem for path in REFERENCE.glob("*.npz")))
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 5e-4)])
def test_arrays_of_the_official_code(name, dtype, rtol):
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as arrays:
        data = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    x, weight, cot = (data[key].to(dtype) for key in ("x", "weight", "cot"))
    x.requires_grad_(), weight.requires_grad_()
    bias = data["bias"].to(dtype).requires_grad_() if "bias" in data else None
    for index, lam in enumerate(data["lambdas"].tolist()):
        if "stride" in data:
            y = tract_conv2d(x, weight, bias, tuple(data["stride"].tolist()), tuple(data["padding"].tolist()), lam=lam)
        else:
            y = tract_linear(x, weight, bias, lam)
        close(y, data["y"], rtol)
        found = torch.autograd.grad(y, [x, weight] + ([] if bias is None else [bias]), cot)
        close(found[0], data["grad_x"], rtol)
        close(found[1], data[f"tract_grad_weight_{index}"], rtol)
        if bias is not None:
            close(found[2], data["grad_bias"], rtol)
    assert index == 3


def test_the_arrays_are_there():
    assert len(list(REFERENCE.glob("*.npz"))) == 2


@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("padding", [0, (1, 2)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_times_A_is_the_plain_gradient_and_nothing_else_differs(stride, padding, dilation, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(5, 3, 3, 2, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    y = conv2d(x, weight, bias, stride, padding, dilation)
    ours = tract_conv2d(x, weight, bias, stride, padding, dilation, LAM)
    assert torch.equal(ours, y) and ours.stride() == y.stride()
    upstream = torch.randn_like(y)
    plain = torch.autograd.grad(y, (x, weight, bias), upstream)
    found = torch.autograd.grad(ours, (x, weight, bias), upstream)
    assert torch.equal(found[0], plain[0]) and torch.equal(found[2], plain[2])
    assert found[1].stride() == plain[1].stride()
    X_Rn = conv_rows(x.detach(), (3, 2), dilation=dilation, padding=padding, stride=stride)
    A = X_Rn.T @ X_Rn / len(X_Rn) + LAM * torch.eye(18, dtype=torch.float64)
    close(found[1].flatten(1) @ A, plain[1].flatten(1), 1e-12)


@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)])
def test_padding_same_and_valid(kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    weight = torch.randn(5, 3, *kernel, dtype=torch.float64, requires_grad=True)
    for padding in ("same", "valid"):
        y = conv2d(x, weight, None, 1, padding)
        upstream = torch.randn_like(y)
        ours = gradient(lambda w, p=padding: tract_conv2d(x, w, None, 1, p), weight, upstream)
        left, top = ((kernel[1] - 1) // 2, (kernel[0] - 1) // 2) if padding == "same" else (0, 0)
        right, bottom = (kernel[1] - 1 - left, kernel[0] - 1 - top) if padding == "same" else (0, 0)
        X_Rn = conv_rows(nn.functional.pad(x, (left, right, top, bottom)), kernel)
        plain = gradient(lambda w, p=padding: conv2d(x, w, None, 1, p), weight, upstream)
        close(ours.flatten(1), divided(plain, X_Rn), 1e-12)


def test_patch_embedding_equals_the_linear_layer_on_its_patches():
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(2, 5, 2, 3, dtype=torch.float64)
    weight = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    conv = gradient(lambda w: tract_conv2d(x, w, None, 4), weight, upstream)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    tokens = gradient(lambda w: tract_linear(patches, w.flatten(1)), weight, upstream.flatten(2).transpose(1, 2))
    close(conv, tokens, 1e-12)


def test_one_image_without_a_batch_dimension():
    torch.manual_seed(0)
    x, upstream = torch.randn(3, 6, 6, dtype=torch.float64), torch.randn(5, 4, 4, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    alone = gradient(lambda w: tract_conv2d(x, w), weight, upstream)
    close(alone, gradient(lambda w: tract_conv2d(x[None], w), weight, upstream[None]), 1e-12)


def test_tokens_of_any_layout(weight):
    torch.manual_seed(3)
    tokens = torch.randn(5, 6, 7, dtype=torch.float64).transpose(1, 2)
    assert not tokens.is_contiguous()
    upstream = torch.randn(5, 7, 4, dtype=torch.float64)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    y = tract_linear(tokens, weight, bias)
    found = torch.autograd.grad(y, (weight, bias), upstream)
    plain = torch.autograd.grad(linear(tokens, weight, bias), (weight, bias), upstream)
    assert torch.equal(found[1], plain[1])
    close(found[0], divided(plain[0], tokens.reshape(35, 6)), 1e-12)


def test_large_lambda_tends_to_the_plain_gradient(rows, weight, upstream):
    plain = upstream.T @ rows
    errors = []
    for lam in (1e3, 1e4, 1e5):
        ours = gradient(lambda w, lam=lam: tract_linear(rows, w, lam=lam), weight, upstream)
        errors.append(float((lam * ours - plain).norm() / plain.norm()))
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.02) and errors[2] == pytest.approx(errors[1] / 10, rel=0.02)


def test_dual_form_for_fewer_rows_than_columns(weight):
    torch.manual_seed(0)
    X, D = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    K = X @ X.T / 3
    inner = torch.eye(3, dtype=torch.float64) - K @ torch.linalg.inv(K / LAM + torch.eye(3, dtype=torch.float64)) / LAM
    close(gradient(lambda w: tract_linear(X, w), weight, D), D.T @ inner @ X / LAM, 1e-12)


def test_linear_in_the_upstream_gradient_and_scale_law(rows, weight, upstream):
    def ours(x, d, lam=LAM):
        return gradient(lambda w: tract_linear(x, w, lam=lam), weight, d)

    other = upstream.flip(0) ** 2
    close(ours(rows, 2 * upstream - other), 2 * ours(rows, upstream) - ours(rows, other), 1e-12)
    close(ours(3 * rows, upstream, 9 * LAM), ours(rows, upstream) / 3, 1e-12)


def test_rotation_duplication_and_whitened_input(rows, weight, upstream):
    def ours(x, d):
        return gradient(lambda w: tract_linear(x, w), weight, d)

    Q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    close(ours(rows @ Q, upstream), ours(rows, upstream) @ Q, 1e-12)
    doubled, half = torch.cat([rows, rows]), torch.cat([upstream, upstream]) / 2
    close(ours(doubled, half), ours(rows, upstream), 1e-12)
    white = torch.linalg.qr(rows)[0] * 20**0.5
    close(ours(white, upstream), upstream.T @ white / (1 + LAM), 1e-12)


def test_embedding_case():
    token = torch.tensor([0, 0, 0, 1, 2, 2])
    upstream = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    for c, lam in ((0.5, 0.1), (7.0, 0.1), (0.5, 1e-9), (7.0, 1e-9)):
        rows = c * nn.functional.one_hot(token, 3).double()
        found = gradient(lambda w, x=rows, lam=lam: tract_linear(x, w, lam=lam), weight, upstream)
        for t, count_t in enumerate((3, 1, 2)):
            total = upstream[token == t].sum(0)
            torch.testing.assert_close(found[:, t], c * total / (c**2 * count_t / 6 + lam))
            if lam < 1e-6:  # the output moves by R times the mean gradient, whatever c and the count
                torch.testing.assert_close(c * found[:, t], 6 * total / count_t, rtol=1e-6, atol=0)


def test_each_call_has_its_own_second_moment(rows, weight, upstream):
    halves = [rows[:10], 3 * rows[10:]]
    total = sum(tract_linear(x, weight).mul(d).sum() for x, d in zip(halves, upstream.split(10), strict=True))
    (found,) = torch.autograd.grad(total, weight)
    each = sum(divided(d.T @ x, x) for x, d in zip(halves, upstream.split(10), strict=True))
    close(found, each, 1e-12)
    joint = gradient(lambda w: tract_linear(torch.cat(halves), w), weight, upstream)
    assert (found - joint).norm() > 0.05 * joint.norm()


@pytest.mark.parametrize("leaf", [True, False], ids=["parameter", "parametrized weight"])
def test_the_gradient_of_the_input_alone_costs_nothing(count, rows, weight, upstream, leaf):
    image = rows.requires_grad_()
    effective = weight if leaf else weight * 2 + weight.mean()
    y = tract_linear(image, effective)
    torch.autograd.grad(y, image, upstream, retain_graph=True)
    torch.autograd.backward(y, upstream, inputs=[image], retain_graph=True)
    assert not count
    torch.autograd.grad(y, [image, weight], upstream, retain_graph=True)
    assert len(count) == 1
    y.backward(upstream)
    assert len(count) == 2 and weight.grad is not None


def test_nothing_is_recorded_without_a_gradient_of_the_weight(count, rows, weight, upstream):
    with torch.no_grad():
        assert tract_linear(rows, weight).grad_fn is None
    image = rows.requires_grad_()
    y = tract_linear(image, weight.detach())
    y.backward(upstream)
    assert not count and weight.grad is None
    assert tract._observed(weight.detach(), image, None, LAM, None).grad_fn is None


def test_parametrized_weight_gets_the_gradient_through_its_function(rows, weight, upstream):
    (found,) = torch.autograd.grad(tract_linear(rows, weight.exp()), weight, upstream)
    close(found, divided(upstream.T @ rows, rows) * weight.detach().exp(), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(dtype, backward_inside):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 3, 3, requires_grad=True)
    scale = 1024.0 if dtype == torch.float16 else 1.0
    with torch.autocast("cpu", dtype):
        y = tract_conv2d(x, weight, padding=1)
        assert y.dtype == dtype
        loss = scale * y.float().square().mean()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    plain = weight.detach().clone().requires_grad_()
    conv2d(x, plain, padding=1).square().mean().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()
    close(weight.grad.flatten(1) / scale, divided(plain.grad, conv_rows(x, 3, padding=1)), 1e-2)


def test_linear_without_bias_under_autocast(rows, weight):
    x, weight = rows.float(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = tract_linear(x, weight).float().square().mean()
    loss.backward()
    plain = weight.detach().clone().requires_grad_()
    linear(x, plain).square().mean().backward()
    close(weight.grad, divided(plain.grad, x), 2e-2)


def test_products_are_full_float32_whatever_the_setting(rows, weight, upstream):
    seen = []

    def total(values):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return values

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        tract_linear(rows, weight, total=total).backward(upstream)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("ieee", "ieee")]


def test_total_makes_one_batch_of_all_processes(rows, weight, upstream):
    others = 4 * rows[:7]
    extra = torch.cat([(others.T @ others).flatten(), torch.tensor([7.0], dtype=torch.float64)])
    found = gradient(lambda w: tract_linear(rows, w, total=lambda values: values + extra), weight, upstream)
    close(found, divided(upstream.T @ rows, torch.cat([rows, others])), 1e-12)


def test_gray_images_in_three_channels_stay_well_posed():
    torch.manual_seed(0)
    gray = torch.randn(4, 1, 6, 6).expand(-1, 3, -1, -1)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    found = gradient(lambda w: tract_conv2d(gray, w), weight, torch.randn(4, 5, 4, 4))
    assert found.isfinite().all()
    close(found.sum(1) / 3, found[:, 0], 1e-4)


def test_not_finite_passes_through_and_an_impossible_factor_is_nan(rows, weight, upstream):
    broken = upstream.clone()
    broken[3, 2] = torch.inf
    found = gradient(lambda w: tract_linear(rows, w), weight, broken)
    assert not found[2].isfinite().all() and found[[0, 1, 3]].isfinite().all()
    rows[0, 0] = torch.nan
    assert gradient(lambda w: tract_linear(rows, w), weight, upstream).isnan().all()
    same = torch.full((20, 6), 1e4)  # of rank one; lam is lost in float32
    found = gradient(
        lambda w: tract_linear(same, w, lam=1e-9), weight.detach().float().requires_grad_(), upstream.float()
    )
    assert found.isnan().all()


def test_no_rows_give_a_zero_gradient(weight):
    found = gradient(lambda w: tract_linear(torch.zeros(0, 6, dtype=torch.float64), w), weight, torch.zeros(0, 4))
    assert torch.equal(found, torch.zeros_like(weight))


def test_cannot_be_differentiated_again(rows, weight):
    y = tract_linear(rows, weight).square().sum()
    (found,) = torch.autograd.grad(y, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


def test_a_penalty_on_the_gradient_of_the_image_is_differentiable(rows, weight, upstream):
    image = rows.requires_grad_()
    (g_image,) = torch.autograd.grad(tract_linear(image, weight), image, upstream, create_graph=True)
    (found,) = torch.autograd.grad(g_image.square().sum(), weight)
    close(found, divided(2 * upstream.T @ (upstream @ weight.detach()), rows.detach()), 1e-12)


def test_refusals(rows, weight):
    for lam in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"lam must be positive, got {lam}"):
            tract_linear(rows, weight, lam=lam)
    with pytest.raises(ValueError, match="takes 2 channels and the input has 4.*groups are not supported"):
        tract_conv2d(torch.zeros(1, 4, 5, 5), torch.zeros(4, 2, 3, 3, requires_grad=True))
