"""Distillation of logits: official arrays, sums written out, gradients in closed form, limits and extremes."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.distillation import binary_kl, binary_kl_norm, dist_loss, dkd_loss, kd_loss, standardize_logits

FOLDER = Path(__file__).parents[1] / "reference"
DUAL = np.load(FOLDER / "dual_head_kd" / "losses_moderate.npz", allow_pickle=False)
BASE = np.load(FOLDER / "kd_baselines" / "kd_dkd.npz", allow_pickle=False)
PLAIN = {"binarykl": binary_kl, "binarykl_norm": binary_kl_norm, "kd_kl": kd_loss}
WEIGHTS = {"tckd": (1, 0), "nckd": (0, 1), "dkd_a1_b8": (1, 8), "dkd_a1_b05": (1, 0.5)}


def tensor(arrays, key):
    return torch.from_numpy(np.asarray(arrays[key]))


def draw(rows, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v, torch.randint(classes, (rows,), generator=generator)


def every(labels):
    """All losses of (z, v, T), each summed over the samples where it is one for each."""
    dkd = partial(dkd_loss, labels=labels, alpha=1.5, beta=4.0)
    return {
        "kd": kd_loss, "binary_kl": binary_kl, "binary_kl_norm": binary_kl_norm, "dist": dist_loss,
        "dkd": lambda z, v, temperature: dkd(z, v, temperature=temperature),
        "standardized": lambda z, v, temperature: kd_loss(
            standardize_logits(z), standardize_logits(v), temperature=temperature
        ),
    }  # fmt: skip


NAMES = list(every(None))


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def check(loss, arrays, key, index, z):
    torch.testing.assert_close(loss, tensor(arrays, f"{key}_loss_{index}"), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(loss, z), tensor(arrays, f"{key}_grad_{index}"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("key", list(PLAIN))
@pytest.mark.parametrize("index", range(4))
def test_they_are_those_of_the_dual_head(key, index):
    z, temperature = tensor(DUAL, "student_logits").requires_grad_(), float(DUAL["temperature"][index])
    loss = PLAIN[key](z, tensor(DUAL, "teacher_logits"), temperature=temperature)
    check(loss.mean(), DUAL, key, index, z)


@pytest.mark.parametrize("index", range(3))
def test_kd_and_dkd_are_the_official_ones(index):
    z, v, y = tensor(BASE, "student_logits").requires_grad_(), tensor(BASE, "teacher_logits"), tensor(BASE, "labels")
    temperature = float(BASE["temperature"][index])
    check(kd_loss(z, v, temperature=temperature).mean(), BASE, "kd", index, z)
    for key, (alpha, beta) in WEIGHTS.items():
        loss = dkd_loss(z, v, y, alpha=alpha, beta=beta, temperature=temperature)
        check(loss.mean(), BASE, key, index, z)
    tckd, nckd = (dkd_loss(z, v, y, alpha=a, beta=b, temperature=temperature) for a, b in ((1, 0), (0, 1)))
    p_B = (v / temperature).softmax(1).gather(1, y[:, None])[:, 0]
    identity = tensor(BASE, f"per_sample_tckd_plus_weighted_nckd_{index}")
    for found in (tckd + (1 - p_B) * nckd, kd_loss(z, v, temperature=temperature)):
        torch.testing.assert_close(found, identity, rtol=0, atol=1e-9)


def softmax(row):
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(a, b):
    n = len(a)
    a, b = [x - sum(a) / n for x in a], [x - sum(b) / n for x in b]
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)


@pytest.mark.parametrize("temperature", [0.7, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_all_are_sums_written_out(classes, temperature):
    """In Python floats, sample by sample."""
    z, v, y = draw(4, classes, 1)
    square, probabilities = temperature**2, []
    found = {name: loss(z, v, temperature=temperature).tolist() for name, loss in every(y).items()}
    for i, label in enumerate(y.tolist()):
        a, b = ([x / temperature for x in row[i].tolist()] for row in (z, v))
        q, p = softmax(a), softmax(b)
        probabilities.append((q, p))
        others = [[x / (1 - r[label]) for c, x in enumerate(r) if c != label] for r in (p, q)]
        binary = [kl([p[label], 1 - p[label]], [q[label], 1 - q[label]]), kl(*others)]
        half = [[sigmoid(x - t), 1 - sigmoid(x - t)] for x, t in zip(a, b, strict=True)]
        scores = []
        for row in (b, a):  # a z-score does not see the division by T
            mean = sum(row) / classes
            std = math.sqrt(sum((x - mean) ** 2 for x in row) / (classes - 1)) * temperature
            scores.append(softmax([(x - mean) * temperature / (std + 1e-7) / temperature for x in row]))
        expected = {
            "kd": kl(p, q), "dkd": 1.5 * binary[0] + 4 * binary[1], "standardized": kl(*scores),
            "binary_kl": sum(
                kl([sigmoid(t), 1 - sigmoid(t)], [sigmoid(x), 1 - sigmoid(x)]) for x, t in zip(a, b, strict=True)
            ),
            "binary_kl_norm": sum(kl([0.5, 0.5], one) for one in half),
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(square * value, rel=1e-9, abs=1e-12), name
    inter = 1 - sum(pearson(q, p) for q, p in probabilities) / len(probabilities)
    columns = [[[r[side][c] for r in probabilities] for side in (0, 1)] for c in range(classes)]
    intra = 1 - sum(pearson(*pair) for pair in columns) / classes
    assert found["dist"] == pytest.approx(square * (inter + intra), rel=1e-9)
    halves = [dist_loss(z, v, temperature=temperature, beta=b, gamma=g).item() for b, g in ((2, 0), (0, 3))]
    assert halves == pytest.approx([2 * square * inter, 3 * square * intra], rel=1e-9)


def test_gradients_in_closed_form():
    z, v, y = draw(5, 6, 2)
    for temperature in (0.5, 1.0, 4.0):
        a, b = z.detach() / temperature, v / temperature
        kd = temperature * (a.softmax(1) - b.softmax(1))
        torch.testing.assert_close(gradient(kd_loss(z, v, temperature=temperature), z), kd, rtol=0, atol=1e-12)
        torch.testing.assert_close(kd.sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
        found = gradient(binary_kl(z, v, temperature=temperature), z)
        torch.testing.assert_close(found, temperature * (a.sigmoid() - b.sigmoid()), rtol=0, atol=1e-12)
        found = gradient(binary_kl_norm(z, v, temperature=temperature), z)
        torch.testing.assert_close(found, temperature / 2 * ((a - b) / 2).tanh(), rtol=0, atol=1e-12)
        assert (found.abs() <= temperature / 2).all()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, classes):
    z, v, y = draw(3, classes, 3)
    if name == "standardized" and classes == 2:
        z = z * 0 + torch.tensor([[1.0, 2.0], [-1.0, 3.0], [0.0, 0.5]], dtype=torch.float64)  # a step function of two
    assert torch.autograd.gradcheck(lambda z: every(y)[name](z, v, temperature=2.0), (z.detach().requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_has_no_gradient(name):
    z, v, y = draw(3, 4, 4)
    v.requires_grad_()
    loss = every(y)[name](z, v, temperature=2.0).sum()
    found = torch.autograd.grad(loss, (z, v), allow_unused=True)
    assert found[0].any() and found[1] is None


@pytest.mark.parametrize("name", NAMES)
def test_zero_where_the_student_is_the_teacher(name):
    z, v, y = draw(4, 5, 5)
    loss = every(y)[name]
    equal = v.clone().requires_grad_()
    zero = 1e-5 if name == "dist" else 1e-12  # it adds 1e-8 to products of lengths
    assert loss(equal, v, temperature=2.0).abs().max() < zero
    assert gradient(loss(equal, v, temperature=2.0), equal).abs().max() < 1e-5
    shifted = (v + torch.arange(4)[:, None]).requires_grad_()
    value = loss(shifted, v, temperature=2.0).abs().max()
    assert value > 0.1 if name.startswith("binary") else value < zero, "only sigmoids see a shift of the row"
    assert (loss(z, v, temperature=2.0) > 0).all()


def test_limits_of_the_temperature():
    z, v, y = draw(4, 5, 6)
    difference = (z - v).detach()
    centred = difference - difference.mean(1, keepdim=True)
    square = difference.square().sum(1) / 8
    for dtype, rel in ((torch.float64, 1e-4), (torch.float32, 1e-4)):
        far = {"temperature": 1e4 if dtype == torch.float64 else 1e3}
        found = binary_kl_norm(z.detach().to(dtype), v.to(dtype), **far)
        torch.testing.assert_close(found, square.to(dtype), rtol=rel, atol=0)
    torch.testing.assert_close(binary_kl(z.detach(), v, temperature=1e4), square, rtol=1e-3, atol=0)
    expected = centred.square().sum(1) / 10
    torch.testing.assert_close(kd_loss(z.detach(), v, temperature=1e4), expected, rtol=1e-3, atol=0)
    near = binary_kl_norm(z.detach(), v, temperature=1e-4)
    torch.testing.assert_close(near, 1e-4 / 2 * difference.abs().sum(1), rtol=1e-2, atol=0)


EXTREME = [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4], [3.0, -1e4, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_are_finite(name, classes, dtype):
    rows = torch.tensor(EXTREME, dtype=dtype)[:, :classes]
    first, second = (x.reshape(-1, classes) for x in (rows[:, None].expand(5, 5, classes), rows[None].expand(5, 5, -1)))
    for temperature in (0.5, 1.0, 4.0):
        for label in range(classes):
            loss = every(torch.full((25,), label))[name]
            for size in (25, 1):
                z = first[:size].clone().requires_grad_()
                value = every(torch.full((size,), label))[name](z, second[:size], temperature=temperature)
                assert value.dtype == torch.promote_types(dtype, torch.float32) and value.isfinite().all()
                grad = gradient(value, z)
                assert grad.dtype == dtype and grad.isfinite().all()
            assert (loss(first, second, temperature=temperature) >= -1e-5).all()


def test_known_values_at_the_edge():
    z, v = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])
    y = torch.tensor([1])
    assert kd_loss(z, v, temperature=2.0).item() == 2e4, "T^2 (z_0 - z_1) / T"
    assert dkd_loss(z, v, y, alpha=1, beta=0, temperature=2.0).item() == 2e4
    assert binary_kl_norm(z, v, temperature=2.0).item() == pytest.approx(2 * (1e4 - 4 * math.log(2)))
    leaf = z.clone().requires_grad_()
    assert gradient(binary_kl_norm(leaf, v, temperature=2.0), leaf).tolist() == [[1.0, -1.0, 0.0]], "T / 2, not clamped"
    sure = torch.tensor([[-1e4, -1e4 + 1, -1e4 - 2.5]])  # far from zero, close to each other
    found = dkd_loss(sure, v * 0, y, alpha=1, beta=8, temperature=1.0)
    expected = dkd_loss(sure.double() + 1e4, v.double() * 0, y, alpha=1, beta=8, temperature=1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_precision_is_that_of_the_student():
    z, v, y = draw(3, 4, 13)
    for name, loss in every(y).items():
        for student, teacher in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
            assert loss(z.to(student), v.to(teacher), temperature=1.0).dtype == torch.float32, name
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(z, v, temperature=2.0)
        torch.testing.assert_close(found, loss(z, v, temperature=2.0), rtol=0, atol=0, msg=name)


def test_no_sample_at_all():
    z = torch.zeros(0, 4, requires_grad=True)
    for name, loss in every(torch.zeros(0, dtype=torch.int64)).items():
        if name != "dist":
            assert loss(z, z, temperature=1.0).shape == (0,)
            assert gradient(loss(z, z, temperature=1.0), z).shape == (0, 4)
    with pytest.raises(ValueError, match=r"shape \[0, 4\] have nothing that could correlate; give a sample"):
        dist_loss(z, z, temperature=1.0)


def test_refusals():
    z, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for loss in every(y).values():
        for other in (torch.zeros(2, 4), torch.zeros(1, 3)):
            with pytest.raises(ValueError, match=r"must have one shape \[B, C\], got \[2, 3\] and .* the same classes"):
                loss(z, other, temperature=1.0)
        for temperature in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="temperature must be a positive number, got "):
                loss(z, z, temperature=temperature)
    with pytest.raises(ValueError, match="one integer class a row is needed"):
        dkd_loss(z, z, torch.full((2, 3), 1 / 3), alpha=1, beta=1, temperature=1.0)
    with pytest.raises(ValueError, match=r"shape \[2, 1\]; another class is needed, so give at least two"):
        dkd_loss(z[:, :1], z[:, :1], y * 0, alpha=1, beta=1, temperature=1.0)


def test_nothing_waits_for_the_device():
    """Tensors without data refuse whatever would read them."""
    z, v = (torch.zeros(4, 3, device="meta") for _ in range(2))
    for loss in every(torch.zeros(4, dtype=torch.int64, device="meta")).values():
        leaf = z.clone().requires_grad_()
        assert gradient(loss(leaf, v, temperature=2.0), leaf).shape == (4, 3)
