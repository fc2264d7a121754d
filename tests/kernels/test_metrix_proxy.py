"""Metrix with proxies against plain loops over mixed vectors, and what is special about each proxy loss."""

import math

import pytest
import torch

from kernels.metrix_proxy import proxy_anchor_metrix, proxy_nca_metrix, proxy_shares
from kernels.pair_form import clean_sums, proxy_anchor
from kernels.pairs import similarities

LABELS = torch.tensor([0, 1, 0, 2, 2, 0])
PROXIES = 5  # classes 3 and 4 have no sample


def draw(rows, seed=0):
    return torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direction(v):
    length = math.hypot(*v)
    return [x / length for x in v]


def mixes(anchor, candidates, is_positive, kind, lam):
    """(similarity, label) of every mix of one anchor, the vectors built."""
    anchor, candidates = direction(anchor), [direction(v) for v in candidates]
    own = [v for v, p in zip(candidates, is_positive, strict=True) if p]
    other = [v for v, p in zip(candidates, is_positive, strict=True) if not p]
    pairs, label = {
        "pos_neg": ([(a, b) for a in own for b in other], lam),
        "anc_neg": ([(anchor, b) for b in other], lam),
        "pos_pos": ([(a, b) for i, a in enumerate(own) for b in own[i + 1 :]], 1.0),
        "neg_neg": ([(a, b) for i, a in enumerate(other) for b in other[i + 1 :] if own], 0.0),
    }[kind]
    for a, b in pairs:
        mixed = direction([lam * x + (1 - lam) * y for x, y in zip(a, b, strict=True)])
        yield sum(x * y for x, y in zip(anchor, mixed, strict=True)), label


@pytest.mark.parametrize("kind", ["pos_neg", "anc_neg", "pos_pos", "neg_neg"])
@pytest.mark.parametrize("lam", [0.0, 0.35, 1.0])
def test_proxy_anchor_equals_plain_loops(kind, lam):
    z, proxies = draw(6), draw(PROXIES, 1)
    pull, push = [], []
    for c, proxy in enumerate(proxies.tolist()):
        examples = list(mixes(proxy, z.tolist(), (c == LABELS).tolist(), kind, lam))
        positive = sum(y * math.exp(-32 * (s - 0.1)) for s, y in examples)
        pull.append(math.log1p(positive))
        push.append(math.log1p(sum((1 - y) * math.exp(32 * (s + 0.1)) for s, y in examples)))
    with_positive = max(sum(x > 0 for x in pull), 1)
    expected = [a / with_positive + b / PROXIES for a, b in zip(pull, push, strict=True)]
    found = proxy_anchor_metrix(z, LABELS, proxies, lam, pairs=kind)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("over_all", [True, False])
@pytest.mark.parametrize("kind", ["pos_neg", "anc_neg", "pos_pos", "neg_neg"])
def test_proxy_nca_equals_plain_loops(kind, over_all):
    z, proxies, lam = draw(6), draw(PROXIES, 1), 0.35
    expected = []
    for i, sample in enumerate(z.tolist()):
        own = (torch.arange(PROXIES) == LABELS[i]).tolist()
        clean = [(s, float(p)) for s, p in zip(similarities(z, proxies)[i].tolist(), own, strict=True)]
        examples = clean + list(mixes(sample, proxies.tolist(), own, kind, lam))
        above = sum(y * math.exp(9 * s) for s, y in examples)
        below = sum((1.0 if over_all else 1 - y) * math.exp(9 * s) for s, y in examples)
        expected.append(-math.log(above) + math.log(below))
    found = proxy_nca_metrix(z, LABELS, proxies, lam, pairs=kind, over_all=over_all)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)
    assert not over_all or (found > 0).all()


@pytest.mark.parametrize("function", [proxy_anchor_metrix, proxy_nca_metrix])
def test_gradient_reaches_samples_and_proxies(function):
    z, proxies = draw(6).requires_grad_(), draw(PROXIES, 1).requires_grad_()
    for kind in ("pos_neg", "anc_neg", "pos_pos", "neg_neg"):
        assert torch.autograd.gradcheck(lambda z, p, k=kind: function(z, LABELS, p, 0.4, pairs=k), (z, proxies))
    gradients = torch.autograd.grad(function(z, LABELS, proxies, 0.4).sum(), (z, proxies))
    for gradient, rows in zip(gradients, (z, proxies), strict=True):
        assert gradient.abs().max() > 1e-3 and (gradient * rows).sum(1).abs().max() < 1e-10


def test_proxy_nca_without_mixes_is_the_cross_entropy_of_proxies():
    z, proxies = draw(6), draw(PROXIES, 1)
    expected = torch.nn.functional.cross_entropy(9 * similarities(z, proxies), LABELS, reduction="none")
    torch.testing.assert_close(proxy_nca_metrix(z, LABELS, proxies, 0.4, pairs="pos_pos"), expected)


def test_shares_of_the_clean_loss_have_their_own_averages():
    z, proxies, form = draw(6), draw(PROXIES, 1), proxy_anchor()
    own = torch.arange(PROXIES)[:, None] == LABELS
    shares = proxy_shares(form, *clean_sums(form, similarities(proxies, z), own, ~own))
    S = similarities(proxies, z)
    pull = sum(math.log1p(sum(math.exp(-32 * (s - 0.1)) for s in S[c][own[c]].tolist())) for c in range(3)) / 3
    push = sum(math.log1p(sum(math.exp(32 * (s + 0.1)) for s in S[c][~own[c]].tolist())) for c in range(5)) / 5
    assert shares.sum().item() == pytest.approx(pull + push, rel=1e-12)


@pytest.mark.parametrize("kind", ["pos_neg", "anc_neg", "pos_pos", "neg_neg"])
def test_a_sample_without_class_takes_no_part(kind):
    z, proxies, labels = draw(6).requires_grad_(), draw(PROXIES, 1), LABELS.clone()
    labels[3], known = -1, torch.tensor([0, 1, 2, 4, 5])
    found = proxy_anchor_metrix(z, labels, proxies, 0.4, pairs=kind)
    torch.testing.assert_close(found, proxy_anchor_metrix(z[known], labels[known], proxies, 0.4, pairs=kind))
    samples = proxy_nca_metrix(z, labels, proxies, 0.4, pairs=kind)
    assert samples[3] == 0 and (samples[known] > 0).all()
    (gradient,) = torch.autograd.grad(found.sum() + samples.sum(), z)
    assert not gradient[3].any() and gradient.isfinite().all()


def test_top_k_restricts_the_mixes():
    z, proxies = draw(6), draw(PROXIES, 1)
    for function in (proxy_anchor_metrix, proxy_nca_metrix):
        full, same, less = (function(z, LABELS, proxies, 0.4, top_k=k) for k in (None, 6, 1))
        assert torch.equal(full, same) and not torch.allclose(full, less)


@pytest.mark.parametrize("function", [proxy_anchor_metrix, proxy_nca_metrix])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_one_class_are_finite(function, dtype):
    z, proxies = draw(6).to(dtype).requires_grad_(), draw(PROXIES, 1).to(dtype).requires_grad_()
    sharp = {"alpha": 500.0} if function is proxy_anchor_metrix else {"temperature": 0.002}
    for labels in (LABELS, torch.zeros_like(LABELS)):
        for kind in ("pos_neg", "anc_neg", "pos_pos", "neg_neg"):
            with torch.autocast("cpu", dtype=dtype):
                loss = function(z, labels, proxies, 0.4, pairs=kind, **sharp)
            gradients = torch.autograd.grad(loss.sum(), (z, proxies))
            assert loss.dtype == torch.float32 and all(part.isfinite().all() for part in (loss, *gradients))


@pytest.mark.parametrize("function", [proxy_anchor_metrix, proxy_nca_metrix])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": LABELS[:5]}, "one integer class a sample"),
        ({"proxies": draw(5)[:, :3]}, "must be .B, D. and .N, D."),
        ({"lam": 2.0}, r"lam must lie in \[0, 1\]"),
        ({"pairs": "all"}, "pairs must be one of"),
    ],
)
def test_errors_say_what_is_allowed(function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(**{"embeddings": draw(6), "labels": LABELS, "proxies": draw(5), "lam": 0.5, **settings})
