"""TRADES, MART and what attacks raise: the official arrays, sums written out, closed-form gradients and extremes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kernels.adversarial_losses import dlr, dlr_targeted, margin, mart_terms, trades_kl

REFERENCE = np.load(
    Path(__file__).parents[1] / "reference" / "adversarial" / "losses_on_logits.npz", allow_pickle=False
)
CASES = ["c10", "c3", "c100", "c10big"]
MAIL = ["c10", "c10big"]


def tensor(key):
    return torch.from_numpy(np.asarray(REFERENCE[key]))


def logits_of(case):
    clean, adversarial = (tensor(f"{case}/logits_{kind}").clone().requires_grad_() for kind in ("nat", "adv"))
    return clean, adversarial, tensor(f"{case}/y")


def check(loss, key, clean, adversarial, tolerance):
    loss.backward()
    grads = [torch.zeros_like(z) if z.grad is None else z.grad for z in (clean, adversarial)]
    found = [loss.detach(), *grads]
    for value, name in zip(found, ("", "/grad_nat", "/grad_adv"), strict=True):
        torch.testing.assert_close(value, tensor(key + name), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("beta", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_trades_is_the_official_loss(case, beta):
    clean, adversarial, y = logits_of(case)
    loss = (cross_entropy(clean, y, reduction="none") + beta * trades_kl(clean, adversarial)).mean()
    check(loss, f"{case}/trades_beta={beta}", clean, adversarial, 1e-10)


@pytest.mark.parametrize("beta", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_mart_is_the_official_loss(case, beta):
    """To rounding, since the constants are the official ones (an exact log-softmax would be 1.4e-7 away)."""
    clean, adversarial, y = logits_of(case)
    boosted, kl = mart_terms(clean, adversarial, y)
    check((boosted + beta * kl).mean(), f"{case}/mart_beta={beta}", clean, adversarial, 1e-10)


@pytest.mark.parametrize("beta", [1, 6])
@pytest.mark.parametrize("case", MAIL)
def test_the_terms_are_those_that_mail_weighs(case, beta):
    clean, adversarial, y = logits_of(case)
    found = margin(adversarial.detach().softmax(1), y)
    torch.testing.assert_close(found, tensor(f"{case}/mail_pm"), rtol=0, atol=1e-12)
    weight, loose = tensor(f"{case}/mail_weight_bias=-0.5_slope=10"), tensor(f"{case}/mail_weight_bias=0_slope=2")
    loss = (weight * cross_entropy(adversarial, y, reduction="none")).mean()
    check(loss, f"{case}/mail_at_beta={beta}", clean, adversarial, 1e-10)

    clean, adversarial, y = logits_of(case)
    loss = (cross_entropy(clean, y, reduction="none") + beta * loose * trades_kl(clean, adversarial)).mean()
    check(loss, f"{case}/mail_trades_beta={beta}", clean, adversarial, 1e-10)

    clean, adversarial, y = logits_of(case)
    boosted, kl = mart_terms(clean, adversarial, y)
    check((weight * boosted + beta * kl).mean(), f"{case}/mail_mart_beta={beta}", clean, adversarial, 1e-10)


@pytest.mark.parametrize("case", ["c10", "c100"])
def test_dlr_is_the_official_one(case):
    _, adversarial, y = logits_of(case)
    torch.testing.assert_close(dlr(adversarial, y), tensor(f"{case}/dlr"), rtol=0, atol=1e-12)
    found = dlr_targeted(adversarial, y, tensor(f"{case}/dlr_target_labels"))
    torch.testing.assert_close(found, tensor(f"{case}/dlr_targeted"), rtol=0, atol=1e-12)


def softmax(row):
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def test_all_are_sums_written_out():
    """In Python floats, sample by sample; the fourth sample is misclassified, the fifth has a tie."""
    generator = torch.Generator().manual_seed(1)
    clean, adversarial = (3 * torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    adversarial[4] = torch.tensor([1.0, 2.0, 2.0, 0.5, -1.0])
    labels, targets = [0, 4, 2, int(adversarial[3].argmin()), 1], [1, 0, 1, 2, 2]
    y, t = torch.tensor(labels), torch.tensor(targets)
    found = [trades_kl(clean, adversarial), *mart_terms(clean, adversarial, y)]
    found += [margin(adversarial, y), dlr(adversarial, y), dlr_targeted(adversarial, y, t)]
    for b, (label, target) in enumerate(zip(labels, targets, strict=True)):
        z = adversarial[b].tolist()
        q, r = softmax(clean[b].tolist()), softmax(z)
        other = max(r[k] for k in range(5) if k != label)
        ahead = max(z[k] for k in range(5) if k != label) - z[label]
        first, _, third, fourth, _ = sorted(z, reverse=True)
        expected = [
            sum(q[k] * math.log(q[k] / r[k]) for k in range(5)),
            -math.log(r[label]) - math.log(1.0001 - other + 1e-12),
            sum(q[k] * (math.log(q[k]) - math.log(r[k] + 1e-12)) for k in range(5)) * (1.0000001 - q[label]),
            ahead,
            ahead / (first - third + 1e-12),
            (z[target] - z[label]) / (first - (third + fourth) / 2 + 1e-12),
        ]
        assert [value[b].item() for value in found] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_gradient_of_the_divergence_in_closed_form():
    generator = torch.Generator().manual_seed(2)
    z, w = (2 * torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_(), w.requires_grad_()
    kl = trades_kl(z, w)
    kl.sum().backward()
    q, r = (logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True) for logits in (z, w))
    torch.testing.assert_close(w.grad, r - q, rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, q * ((q / r).log() - kl.detach()[:, None]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [trades_kl, mart_terms, dlr, dlr_targeted], ids=lambda f: f.__name__)
def test_gradients_are_those_of_finite_differences(function):
    generator = torch.Generator().manual_seed(3)
    z, w = (2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_(), w.requires_grad_()
    y, t = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    call, inputs = {
        trades_kl: (trades_kl, (z, w)),
        mart_terms: (lambda a, b: sum(mart_terms(a, b, y)), (z, w)),
        dlr: (lambda a: dlr(a, y), (z,)),
        dlr_targeted: (lambda a: dlr_targeted(a, y, t), (z,)),
    }[function]
    assert torch.autograd.gradcheck(call, inputs)


def test_invariances():
    """A shift changes nothing, a scale neither changes DLR, and the order of other classes does not matter."""
    generator = torch.Generator().manual_seed(4)
    z, w = (2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y, t = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(trades_kl(z + 3, w - 5), trades_kl(z, w), rtol=0, atol=1e-12)
    torch.testing.assert_close(mart_terms(z + 3, w - 5, y), mart_terms(z, w, y), rtol=0, atol=1e-10)
    torch.testing.assert_close(dlr(7 * z + 3, y), dlr(z, y), rtol=0, atol=1e-10)
    torch.testing.assert_close(dlr_targeted(7 * z + 3, y, t), dlr_targeted(z, y, t), rtol=0, atol=1e-10)
    order = torch.tensor([3, 0, 4, 2, 1])
    where = order.argsort()
    torch.testing.assert_close(dlr(z[:, order], where[y]), dlr(z, y), rtol=0, atol=1e-12)
    assert torch.equal(trades_kl(z, z), torch.zeros(4, dtype=torch.float64))
    right = z.argmax(1)
    assert (margin(z, right) < 0).all() and (dlr(z, right) < 0).all() and (margin(z, (right + 1) % 5) > 0).all()


def test_few_classes_fall_back_to_the_margin():
    z = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    y = torch.tensor([0, 0])
    assert dlr(z, y).tolist() == margin(z, y).tolist() == [-2.0, 2.0]
    assert dlr_targeted(z, y, 1 - y).tolist() == [-2.0, 2.0]
    z = torch.tensor([[3.0, 1.0, 0.0]])
    assert dlr(z, torch.tensor([0])).item() == pytest.approx(-2 / 3), "three are enough without a target"
    assert dlr_targeted(z, torch.tensor([0]), torch.tensor([2])).item() == -3.0


EXTREME = [
    [1e4, -1e4, 0.0, 0.0],
    [-1e4, 1e4, 1e4, 1e4],  # the label is behind a tie of three
    [0.0, 0.0, 0.0, 0.0],
    [1e4, 1e4, 1e4, 1e4],
    [1e4, 1e4, -1e4, -1e4],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ties_and_extreme_logits_are_finite(dtype):
    rows = torch.tensor(EXTREME, dtype=dtype)
    first, second = (z.reshape(-1, 4) for z in (rows[:, None].expand(5, 5, 4), rows[None].expand(5, 5, 4)))
    for label in range(4):
        z, w = first.clone().requires_grad_(), second.clone().requires_grad_()
        y = torch.full((25,), label)
        terms = [trades_kl(z, w), *mart_terms(z, w, y), margin(w, y), dlr(w, y), dlr_targeted(w, y, (y + 1) % 4)]
        for value in terms:
            assert value.dtype == torch.promote_types(dtype, torch.float32) and value.isfinite().all()
            for grad in torch.autograd.grad(value.sum(), (z, w), allow_unused=True, retain_graph=True):
                assert grad is None or grad.isfinite().all()
        assert (terms[0] >= -1e-6).all()


def test_known_values_of_float32_at_the_edge():
    z = torch.tensor([[1e4, 0.0, 0.0]])
    assert trades_kl(z, z.flip(1)).item() == 1e4, "log(q / q') = 1e4 where q = 1"
    boosted, kl = mart_terms(z, z.flip(1), torch.tensor([0]))
    assert boosted.item() == pytest.approx(1e4 - math.log(1e-4), rel=1e-6)
    assert kl.item() == pytest.approx(-math.log(1e-12) * 1.1920929e-07, rel=1e-5), "1.0000001 - 1 in float32"


def test_tied_classes_share_the_gradient():
    z = torch.tensor([[1.0, 2.0, 2.0]], requires_grad=True)
    margin(z, torch.tensor([0])).sum().backward()
    assert z.grad.tolist() == [[-1.0, 0.5, 0.5]]


def test_no_sample_at_all():
    z, y = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for value in (trades_kl(z, z), *mart_terms(z, z, y), margin(z, y), dlr(z, y), dlr_targeted(z, y, y)):
        assert value.shape == (0,)
        value.sum().backward(retain_graph=True)


def test_refusals():
    z, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for call in (lambda: trades_kl(z, z[:1]), lambda: mart_terms(z, torch.zeros(2, 4), y)):
        with pytest.raises(ValueError, match=r"logits must have one shape \[B, C\], got \[2, 3\] and "):
            call()
    soft = torch.full((2, 3), 1 / 3)
    for call in (mart_terms, dlr_targeted):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            call(z, z, soft) if call is mart_terms else call(z, y, soft)
    for call in (margin, dlr):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            call(z, soft)
        with pytest.raises(ValueError, match=r"shape \[2, 1\]; another class is needed, so give at least two"):
            call(z[:, :1], y * 0)
