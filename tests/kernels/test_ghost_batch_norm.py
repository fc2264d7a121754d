"""Ghost batch norm against stored arrays, batch norm on each chunk and the closed form of the running statistics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm

from kernels import ghost_batch_norm as module
from kernels.ghost_batch_norm import ghost_batch_norm

REFERENCE = Path(__file__).parents[1] / "reference" / "ghost_bn" / "sequential_unscaled_b8g4.npz"
CHANNELS, ETA = 3, 0.1


def make(batch, size=4, dtype=torch.float64, layout=torch.contiguous_format):
    """Input, upstream gradient, weight, bias and running statistics."""
    generator = torch.Generator().manual_seed(batch)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    x, cot = (draw(batch, CHANNELS, size, size).contiguous(memory_format=layout) for _ in range(2))
    weight, bias = (draw(CHANNELS).requires_grad_() for _ in range(2))
    return (2 * x + 1).requires_grad_(), cot, weight, bias, draw(CHANNELS), draw(CHANNELS).square() + 0.5


def by_chunks(x, mean, var, weight, bias, sizes, rate):
    """Batch norm on chunks of given sizes, one after the other."""
    chunks = x.split(sizes)
    return torch.cat([batch_norm(chunk, mean, var, weight, bias, True, rate, 1e-5) for chunk in chunks])


def test_stored_arrays_of_the_official_procedure():
    stored = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE, allow_pickle=False).items()}
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    weight, bias = (stored[name].clone().requires_grad_() for name in ("weight", "bias"))
    options = {"ghost_size": int(stored["ghost"]), "momentum": float(stored["momentum"]), "eps": float(stored["eps"])}
    for step in range(3):
        of = {key.split("/")[1]: value for key, value in stored.items() if key.startswith(f"step{step}/")}
        x = of["x"].clone().requires_grad_()
        y = ghost_batch_norm(x, mean, var, weight, bias, training=True, momentum_mode="sequential", **options)
        grads = torch.autograd.grad(y, (x, weight, bias), of["cot"])
        found = (y.detach(), *grads, mean, var)
        names = ("y", "grad_x", "grad_weight", "grad_bias", "running_mean_after", "running_var_after")
        for value, name in zip(found, names, strict=True):
            torch.testing.assert_close(value, of[name], rtol=1e-9, atol=1e-9)
    y = ghost_batch_norm(stored["eval/x"], mean, var, weight, bias, training=False, **options)
    torch.testing.assert_close(y.detach(), stored["eval/y"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("batch", "ghost", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [3, 3, 3]), (7, 3, [3, 3, 1]), (5, 1, [1] * 5)],
)
def test_chunks_are_batch_norms(batch, ghost, sizes, layout):
    x, cot, weight, bias, mean, var = make(batch, layout=layout)
    rate = 1 - (1 - ETA) ** (1 / len(sizes))
    other = mean.clone(), var.clone()
    y = ghost_batch_norm(x, mean, var, weight, bias, ghost_size=ghost, training=True, momentum=ETA)
    expected = by_chunks(x, *other, weight, bias, sizes, rate)
    torch.testing.assert_close((y, mean, var), (expected, *other), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=layout)
    inputs = (x, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, cot), torch.autograd.grad(expected, inputs, cot), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["expanded gradient", "other layout", "no affine", "no statistics", "frozen input"])
def test_cases_of_the_fused_version(case, layout):
    x, cot, weight, bias, mean, var = make(8, layout=layout)
    cot = torch.ones((), dtype=x.dtype).expand_as(x) if case == "expanded gradient" else cot
    other = torch.channels_last if layout == torch.contiguous_format else torch.contiguous_format
    cot = cot.contiguous(memory_format=other) if case == "other layout" else cot
    weight, bias = (None, None) if case == "no affine" else (weight, bias)
    mean, var = (None, None) if case == "no statistics" else (mean, var)
    x = x.detach() if case == "frozen input" else x
    inputs = [value for value in (x, weight, bias) if value is not None and value.requires_grad]
    kept = [None if value is None else value.clone() for value in (mean, var)]
    y = ghost_batch_norm(
        x, mean, var, weight, bias, ghost_size=4, training=True, momentum=ETA, momentum_mode="sequential"
    )
    expected = by_chunks(x, *kept, weight, bias, [4, 4], ETA)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, cot), torch.autograd.grad(expected, inputs, cot), rtol=1e-12, atol=1e-12
    )


def test_an_input_that_is_a_slice():
    x, cot, weight, bias, mean, var = make(8)
    part = x[:, :, ::2]
    y = ghost_batch_norm(part, None, None, weight, bias, ghost_size=4, training=True)
    expected = by_chunks(part, None, None, weight, bias, [4, 4], ETA)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(value, x, cot[:, :, ::2])[0] for value in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_fused_and_plain_versions_agree(monkeypatch):
    results = []
    for fused in (True, False):
        x, cot, weight, bias, mean, var = make(10, dtype=torch.float32)
        monkeypatch.setattr(module, "_writes_in_place", lambda *_, fused=fused: fused)
        y = ghost_batch_norm(x, mean, var, weight, bias, ghost_size=4, training=True)
        results.append((y, mean, var, *torch.autograd.grad(y, (x, weight, bias), cot)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ghost", [8, 9, 100])
def test_a_ghost_as_large_as_the_batch_is_batch_norm_bit_for_bit(ghost, dtype):
    x, cot, weight, bias, mean, var = make(8, dtype=dtype)
    other = mean.clone(), var.clone()
    y = ghost_batch_norm(x, mean, var, weight, bias, ghost_size=ghost, training=True, momentum=ETA)
    expected = batch_norm(x, *other, weight, bias, True, ETA, 1e-5)
    assert torch.equal(y, expected) and torch.equal(mean, other[0]) and torch.equal(var, other[1])
    for a, b in zip(*(torch.autograd.grad(v, (x, weight, bias), cot) for v in (y, expected)), strict=True):
        assert torch.equal(a, b)


def test_every_chunk_is_standardized():
    x = make(12)[0].detach()
    y = ghost_batch_norm(x, None, None, None, None, ghost_size=4, training=True, eps=0.0)
    for chunk in y.split(4):
        torch.testing.assert_close(chunk.mean((0, 2, 3)), torch.zeros(3, dtype=x.dtype), atol=1e-12, rtol=0)
        torch.testing.assert_close(chunk.var((0, 2, 3), correction=0), torch.ones(3, dtype=x.dtype))


def test_samples_may_change_places_within_a_chunk_and_not_between_chunks():
    x, _, weight, bias, *_ = make(8)
    run = lambda order: ghost_batch_norm(x[order], None, None, weight, bias, ghost_size=4, training=True)  # noqa: E731
    y = run(range(8))
    within, between = [2, 0, 3, 1, 4, 7, 6, 5], [4, 1, 2, 3, 0, 5, 6, 7]
    torch.testing.assert_close(run(within), y[within])
    assert not torch.allclose(run(between), y[between], atol=1e-3)


@pytest.mark.parametrize("mode", ["sequential", "scaled"])
def test_running_statistics_in_closed_form(mode):
    x, _, weight, bias, mean, var = make(10)
    before = mean.clone(), var.clone()
    ghost_batch_norm(x, mean, var, weight, bias, ghost_size=4, training=True, momentum=ETA, momentum_mode=mode)
    rate = ETA if mode == "sequential" else 1 - (1 - ETA) ** (1 / 3)
    chunks = x.detach().split([4, 4, 2])
    of_chunks = [c.mean((0, 2, 3)) for c in chunks], [c.var((0, 2, 3)) for c in chunks]
    for now, old, values in zip((mean, var), before, of_chunks, strict=True):
        expected = (1 - rate) ** 3 * old + sum((1 - rate) ** (2 - i) * rate * value for i, value in enumerate(values))
        torch.testing.assert_close(now, expected, rtol=1e-14, atol=1e-14)


def test_scaled_momentum_forgets_as_much_as_batch_norm():
    x, _, weight, bias, *_ = make(12)
    means = [torch.full((3,), value, dtype=x.dtype) for value in (0.0, 1.0)]
    for mean in means:
        ghost_batch_norm(x, mean, mean.clone(), weight, bias, ghost_size=3, training=True, momentum=ETA)
    torch.testing.assert_close(means[1] - means[0], torch.full((3,), 1 - ETA, dtype=x.dtype), rtol=1e-14, atol=1e-14)


def test_eval_knows_no_ghosts():
    x, _, weight, bias, mean, var = make(8)
    expected = batch_norm(x, mean, var, weight, bias, False, ETA, 1e-5)
    for ghost, part in ((1, x), (3, x), (3, x[:5])):
        y = ghost_batch_norm(part, mean, var, weight, bias, ghost_size=ghost, training=False)
        assert torch.equal(y, expected[: len(part)])


def test_gradcheck():
    x, _, weight, bias, *_ = make(5, size=2)
    run = lambda *values: ghost_batch_norm(values[0], None, None, *values[1:], ghost_size=2, training=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_mixed_precision_keeps_the_dtype():
    x, _, weight, bias, mean, var = make(8, dtype=torch.float32)
    y = ghost_batch_norm(x.bfloat16(), mean, var, weight, bias, ghost_size=4, training=True)
    assert y.dtype == torch.bfloat16 and mean.dtype == torch.float32
    exact = ghost_batch_norm(x.bfloat16().float(), None, None, weight, bias, ghost_size=4, training=True)
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.02)


def test_errors():
    x = torch.randn(7, 3, 1, 1)
    with pytest.raises(
        ValueError, match=r"batch of 7 in 3 ghosts of at most 3 leaves one of a single sample, whose 1x1 map"
    ):
        ghost_batch_norm(x, None, None, None, None, ghost_size=3, training=True)
    ghost_batch_norm(x, torch.zeros(3), torch.ones(3), None, None, ghost_size=3, training=False)
    with pytest.raises(ValueError, match="ghost_size must be at least 1 sample, got 0"):
        ghost_batch_norm(x, None, None, None, None, ghost_size=0, training=True)
    with pytest.raises(ValueError, match="momentum_mode must be 'scaled' or 'sequential', got 'mean'"):
        ghost_batch_norm(x, None, None, None, None, ghost_size=2, training=True, momentum_mode="mean")
