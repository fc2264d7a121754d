"""The generic form of pair losses against the printed formulas in plain loops, and at its edges."""

import math
import pickle

import pytest
import torch

from kernels.pair_form import binomial, clean_loss, contrastive, lifted, multi_similarity, nca, proxy_anchor, sum_groups
from kernels.pairs import pair_weights


def log1p_sum(values):
    return math.log1p(sum(math.exp(v) for v in values))


def log_sum(values):
    return math.log(sum(math.exp(v) for v in values))


#: Each loss as it is printed, of the lists of similarities with positives and with negatives.
PRINTED = {
    "contrastive": (contrastive(0.3), lambda p, n: -sum(p) + sum(max(s - 0.3, 0) for s in n)),
    "lifted": (lifted(0.3), lambda p, n: max(log_sum([-s for s in p]) + log_sum([s - 0.3 for s in n]), 0)),
    "binomial": (
        binomial(2.0, 10.0, 0.4),
        lambda p, n: sum(log1p_sum([-2 * (s - 0.4)]) for s in p) + sum(log1p_sum([10 * (s - 0.4)]) for s in n),
    ),
    "multi_similarity": (
        multi_similarity(3.0, 30.0, 0.4),
        lambda p, n: log1p_sum([-3 * (s - 0.4) for s in p]) / 3 + log1p_sum([30 * (s - 0.4) for s in n]) / 30,
    ),
    "proxy_anchor": (
        proxy_anchor(32.0, 0.1),
        lambda p, n: log1p_sum([-32 * (s - 0.1) for s in p]) + log1p_sum([32 * (s + 0.1) for s in n]),
    ),
    "nca": (nca(0.2), lambda p, n: -log_sum([s / 0.2 for s in p]) + log_sum([s / 0.2 for s in n])),
    "proxy_nca_pp": (
        nca(1 / 9, over_all=True),
        lambda p, n: -log_sum([9 * s for s in p]) + log_sum([9 * s for s in p + n]),
    ),
}


def draw():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(6, 9, generator=generator, dtype=torch.float64) * 2 - 1
    positive = torch.rand(6, 9, generator=generator) < 0.4
    positive[:, 0], positive[:, 1] = True, False
    negative = ~positive & (torch.rand(6, 9, generator=generator) < 0.8)  # some are neither
    negative[:, 1] = True
    return similarity, positive, negative


@pytest.mark.parametrize("name", PRINTED)
def test_equals_the_printed_formula(name):
    form, printed = PRINTED[name]
    similarity, positive, negative = draw()
    found = clean_loss(form, similarity, positive, negative)
    for i in range(len(similarity)):
        sides = similarity[i][positive[i]].tolist(), similarity[i][negative[i]].tolist()
        assert found[i].item() == pytest.approx(printed(*sides), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", PRINTED)
def test_gradient_and_signs(name):
    form, _ = PRINTED[name]
    similarity, positive, negative = draw()
    leaf = similarity.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: clean_loss(form, s, positive, negative), (leaf,))
    (gradient,) = torch.autograd.grad(clean_loss(form, leaf, positive, negative).sum(), leaf)
    assert (gradient[positive] <= 0).all() and (gradient[negative] >= 0).all()
    assert not gradient[~(positive | negative)].any() and gradient.any()


@pytest.mark.parametrize("name", PRINTED)
def test_rho_are_the_exponentials_themselves(name):
    form, _ = PRINTED[name]
    s = torch.tensor([-0.9, 0.1, 0.8], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.bool)
    for value in s:
        for rho, positive, negative, weight in (
            (form.rho_pos, one, ~one, form.weight_pos),
            (form.rho_neg, ~one, one, form.weight_neg),
        ):
            alone = clean_loss(form, value.view(1, 1), positive, negative)
            sigma = {"identity": lambda x: x, "log1p": torch.log1p, "log": torch.zeros_like}[form.sigma]
            torch.testing.assert_close(alone[0], weight * sigma(rho(value)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", PRINTED)
def test_empty_sides_are_finite_and_nothing_is_zero(name):
    form, _ = PRINTED[name]
    similarity = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    side = torch.tensor([[False] * 4, [True] * 4, [False] * 4])
    for positive, negative in ((side, torch.zeros_like(side)), (torch.zeros_like(side), side)):
        loss = clean_loss(form, similarity, positive, negative)
        (gradient,) = torch.autograd.grad(loss.sum(), similarity)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert loss[0] == loss[2] == 0 and not gradient[0].any() and not gradient[2].any()
        if form.sigma == "log" and not (form.all_in_negative and positive is side):
            assert loss[1] == 0 and not gradient[1].any()
    assert clean_loss(form, torch.zeros(3, 0), torch.zeros(3, 0) > 0, torch.zeros(3, 0) > 0).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_exponents_are_finite_in_half_precision(dtype):
    similarity = torch.tensor([[0.99, -0.99, 0.98, -0.98]], dtype=dtype, requires_grad=True)
    positive = torch.tensor([[False, True, True, False]])
    for form in (
        multi_similarity(400.0, 1000.0, 0.0),
        proxy_anchor(500.0),
        nca(0.001),
        lifted(-200.0),
        binomial(500, 900),
    ):
        with torch.autocast("cpu", dtype=dtype):
            loss = clean_loss(form, similarity, positive, ~positive)
        (gradient,) = torch.autograd.grad(loss.sum(), similarity)
        assert loss.dtype == torch.float32 and loss.isfinite().all() and gradient.isfinite().all() and gradient.any()
        exact = clean_loss(form, similarity.detach().double(), positive, ~positive)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_softplus_is_exact_beyond_twenty():
    found = clean_loss(binomial(40.0, 40.0, 0.0), torch.tensor([[0.55]], dtype=torch.float64), *draw_one())
    assert found.item() == pytest.approx(22.0 + math.log1p(math.exp(-22.0)), abs=1e-14)


def draw_one():
    return torch.tensor([[False]]), torch.tensor([[True]])


def test_groups_equal_rows():
    values = torch.randn(10, dtype=torch.float64)
    group = torch.tensor([3, 0, 0, 3, 3, 1, 0, 4, 4, 1])
    logs, sums = (sum_groups(form, values, group, 6) for form in (nca(), contrastive()))
    for g in range(6):
        own = values[group == g]
        assert sums[g].item() == pytest.approx(own.sum().item(), abs=1e-14)
        expected = own.exp().sum().log().item() if len(own) else -math.inf
        assert logs[g].item() == pytest.approx(expected, abs=1e-13)


def test_pair_weights_leave_the_point_as_it_is_even_without_grad():
    similarity, positive, negative = draw()
    with torch.no_grad():
        weights = pair_weights(lambda s: clean_loss(contrastive(0.3), s, positive, negative), similarity)
    assert torch.equal(weights, (positive | (negative & (similarity > 0.3))).double()) and not similarity.requires_grad


def test_forms_are_values():
    assert pickle.loads(pickle.dumps(lifted(0.3))) == lifted(0.3) != lifted(0.2)  # noqa: S301
    assert len({multi_similarity(), multi_similarity(), nca()}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: binomial(beta=0.0), "beta must be positive, got 0"),
        (lambda: multi_similarity(alpha=-1.0), "alpha must be positive"),
        (lambda: proxy_anchor(alpha=0.0), "alpha must be positive"),
        (lambda: nca(temperature=0.0), "temperature must be positive"),
    ],
)
def test_errors_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
