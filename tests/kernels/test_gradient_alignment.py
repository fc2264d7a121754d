"""Aligned gradients: the official update, flattened vectors, what the projection promises, and gradients with holes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kernels.binary_kl import binary_kl_norm
from kernels.gradient_alignment import align, align_within

FILE = Path(__file__).parents[1] / "reference" / "dual_head_kd" / "grad_align_agree.npz"
ARRAYS = np.load(FILE, allow_pickle=False)
NAMES = ["backbone.0.weight", "backbone.0.bias", "head.weight", "head.bias", "aux.weight", "aux.bias"]
BACKBONE = [name.startswith("backbone") for name in NAMES]


def tensor(key):
    return torch.from_numpy(np.array(ARRAYS[key]))


def of_file(kind):
    """The gradient of one loss; None for the head of the other."""
    without = {"grad_ce": "aux", "grad_kd": "head"}.get(kind, "none")
    return [None if name.startswith(without) else tensor(f"{kind}.{name}") for name in NAMES]


def flat(gradient, like=None):
    like = gradient if like is None else like
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in zip(gradient, like, strict=True)])


def draw(number, seed, holes=(), dtype=torch.float64):
    """Gradients of the same four parameters, with None where a hole is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (4,), (2, 2, 1), ()]
    drawn = [
        [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes] for _ in range(number)
    ]
    return [[None if (k, i) in holes else g for i, g in enumerate(one)] for k, one in enumerate(drawn)], drawn[0]


def project(g0, others):
    """The formula on flat vectors, with an if."""
    total = g0.clone()
    for g in others:
        dot = g0 @ g
        total += g - dot / (g0 @ g0) * g0 if dot < 0 else g
    return total


def test_equals_the_official_update():
    like = [tensor(f"init.{name}") for name in NAMES]
    merged = align(of_file("grad_ce"), [of_file("grad_kd")])
    for name, found in zip(NAMES, merged, strict=True):
        torch.testing.assert_close(found, tensor(f"grad_merged_official.{name}"), rtol=0, atol=1e-9)
    merged = align_within(of_file("grad_ce"), [of_file("grad_kd")], BACKBONE)
    torch.testing.assert_close(flat(merged, like), tensor("grad_merged_backbone_only"), rtol=0, atol=1e-9)


def test_equals_the_official_step():
    """From the images on: both losses, their gradients, the merged one, and SGD."""
    model = nn.ModuleDict(
        {"backbone": nn.Sequential(nn.Linear(5, 7), nn.Tanh()), "head": nn.Linear(7, 4), "aux": nn.Linear(7, 4)}
    ).double()
    model.load_state_dict({name: tensor(f"init.{name}") for name in NAMES})
    features = model["backbone"](tensor("x"))
    ce = float(ARRAYS["gamma"]) * cross_entropy(model["head"](features), tensor("labels"))
    temperature = float(ARRAYS["temperature"])
    kd = binary_kl_norm(model["aux"](features), tensor("teacher_logits"), temperature=temperature).mean()
    kd = float(ARRAYS["alpha"]) * kd
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in NAMES]
    anchor, other = (torch.autograd.grad(x, chosen, retain_graph=True, allow_unused=True) for x in (ce, kd))
    assert [g is None for g in anchor] == [name.startswith("aux") for name in NAMES], "the distillation alone moves aux"
    assert [g is None for g in other] == [name.startswith("head") for name in NAMES]
    for p, g in zip(chosen, align(anchor, [other]), strict=True):
        p.grad = g
    torch.optim.SGD(chosen, lr=0.1, momentum=0.9, weight_decay=5e-4).step()
    for name in NAMES:
        torch.testing.assert_close(parameters[name].data, tensor(f"after_step.{name}"), rtol=0, atol=1e-9)


#: (gradient, parameter) of each None.
HOLES = {
    "none": (),
    "heads": ((0, 3), (1, 2), (2, 2)),
    "many": ((0, 0), (1, 1), (2, 1), (2, 3)),
    "apart": ((1, 0), (1, 1), (0, 2), (0, 3)),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("holes", list(HOLES))
def test_equals_the_formula_on_flat_vectors(holes, seed):
    """Signs of both kinds among the seeds; each of two others is projected against the anchor alone."""
    gradients, like = draw(3, seed, HOLES[holes])
    vectors = [flat(g, like) for g in gradients]
    for others in (slice(1, 1), slice(1, 2), slice(1, 3)):
        merged = align(gradients[0], gradients[1:][: others.stop - 1])
        torch.testing.assert_close(
            flat(merged, like), project(vectors[0], vectors[1 : others.stop]), rtol=0, atol=1e-12
        )
    inside = [True, False, True, False]
    mask = flat([torch.full_like(x, float(i)) for x, i in zip(like, inside, strict=True)]).bool()
    found = flat(align_within(gradients[0], gradients[1:], inside), like)
    torch.testing.assert_close(found[~mask], sum(vectors)[~mask], rtol=0, atol=1e-12)
    g0 = vectors[0][mask]
    expected = project(g0, [v[mask] for v in vectors[1:]]) if g0.any() else sum(vectors)[mask]
    torch.testing.assert_close(found[mask], expected, rtol=0, atol=1e-12)


def opposed(seed=0, factor=1.0):
    """An anchor and another gradient that opposes it on the shared parameters; each has one of its own."""
    (g0, g1), like = draw(2, seed, ((0, 3), (1, 2)))
    shared = [i for i in range(4) if g0[i] is not None and g1[i] is not None]
    if sum((g0[i] * g1[i]).sum() for i in shared) > 0:
        g1 = [None if g is None else -g for g in g1]
    return [None if g is None else factor * g for g in g0], g1, like


def test_what_the_projection_promises():
    for seed in range(5):
        g0, g1, like = opposed(seed)
        v0, v1 = flat(g0, like), flat(g1, like)
        merged = flat(align(g0, [g1]), like)
        assert v0 @ v1 < 0 and (merged - v0) @ v0 == pytest.approx(0, abs=1e-12)
        assert merged @ v0 == pytest.approx((v0 @ v0).item(), rel=1e-12)
        other = flat(align(opposed(seed, 50.0)[0], [g1]), like) - 50 * v0
        torch.testing.assert_close(other, merged - v0, rtol=0, atol=1e-11, msg="the anchor's scale does not matter")
        # Over all parameters some conflict is left on the shared ones: the share of the anchor's own head in its norm.
        shared = flat([torch.full_like(x, float(i < 2)) for i, x in enumerate(like)]).bool()
        left = ((merged - v0)[shared] @ v0[shared]).item()
        rest = (v0[~shared] @ v0[~shared] / (v0 @ v0)).item()
        assert left == pytest.approx((v0 @ v1).item() * rest, rel=1e-9) and left < 0
        within = flat(align_within(g0, [g1], [True, True, False, False]), like) - v0
        assert within[shared] @ v0[shared] == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(within[~shared], v1[~shared], rtol=0, atol=0)


def test_agreeing_gradients_are_summed_bit_for_bit():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        g0, g1, _ = opposed()
        g0, g1 = ([None if g is None else (s * g).to(dtype) for g in one] for s, one in ((1, g0), (-1, g1)))
        for a, b, found in zip(g0, g1, align(g0, [g1]), strict=True):
            expected = a if b is None else b if a is None else a + b
            assert torch.equal(found, expected) and found.dtype == dtype


def test_nothing_given_is_changed_or_handed_out():
    g0, g1, _ = opposed()
    before = [None if g is None else g.clone() for g in (*g0, *g1)]
    merged = align(g0, [g1])
    given = {g.data_ptr() for g in (*g0, *g1) if g is not None}
    assert not given & {m.data_ptr() for m in merged}
    for g in merged:
        g.zero_()
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before, (*g0, *g1), strict=True))


def test_zeros_and_holes():
    g0, g1, like = opposed()
    zeros = [None if g is None else torch.zeros_like(g) for g in g0]
    torch.testing.assert_close(flat(align(zeros, [g1]), like), flat(g1, like), rtol=0, atol=0)
    nothing = [None] * 4
    assert align(nothing, [nothing]) == nothing and align([], [[]]) == []
    torch.testing.assert_close(flat(align(nothing, [g1]), like), flat(g1, like), rtol=0, atol=0)
    torch.testing.assert_close(flat(align(g0, [nothing]), like), flat(g0, like), rtol=0, atol=0)
    torch.testing.assert_close(flat(align(g0, []), like), flat(g0, like), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sizes_that_products_of_low_precision_do_not_hold(dtype):
    """Squares of 1e4 overflow float16; tiny anchors have no square in float32. Everything stays finite."""
    for size in (1e4, 1e-4, 1e-20, 1e-30):
        g0 = [torch.tensor([size, 0.0], dtype=dtype), torch.tensor([0.0], dtype=dtype)]
        g1 = [torch.tensor([-1e4, 3.0], dtype=dtype), torch.tensor([2.0], dtype=dtype)]
        merged = align(g0, [g1])
        assert all(g.isfinite().all() and g.dtype == dtype for g in merged)
        if size >= 1e-4:
            assert merged[0][0].item() == pytest.approx(float(g0[0][0]), rel=1e-2, abs=8e-3 * 1e4 if size < 1 else 0)
            assert merged[0][1].item() == 3 and merged[1].item() == 2


def test_strides_do_not_matter():
    """Gradients of convolutions in channels_last."""
    generator = torch.Generator().manual_seed(7)
    g0, g1 = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    g1 = g1 - 2 * g0
    last = [align([a], [[b]])[0] for a in (g0, g0.to(memory_format=torch.channels_last))
            for b in (g1, g1.to(memory_format=torch.channels_last))]  # fmt: skip
    for found in last:
        torch.testing.assert_close(found.flatten(), project(g0.flatten(), [g1.flatten()]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    g0, g1, _ = opposed()
    for where in (g0, g1):
        spoiled = where[0].clone()
        where[0][0, 0] = bad
        assert not all(g.isfinite().all() for g in align(g0, [g1]))
        where[0].copy_(spoiled)


def test_refusals():
    g0, g1, _ = opposed()
    for call in (lambda: align(g0, [g1[:3]]), lambda: align_within(g0, [g1], [True] * 3), lambda: align(g0[:2], [g1])):
        with pytest.raises(ValueError, match="an anchor of . tensors, others of .* one entry for each parameter"):
            call()


def test_nothing_waits_for_the_device():
    """Tensors without data refuse whatever would read them."""
    g0, g1, _ = opposed()
    g0, g1 = ([None if g is None else g.to("meta") for g in one] for one in (g0, g1))
    for merged in (align(g0, [g1, g1]), align_within(g0, [g1], [True, True, False, False])):
        assert [g.shape for g in merged] == [(3, 2), (4,), (2, 2, 1), ()]
