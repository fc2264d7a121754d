"""The supervised contrastive loss against plain loops over pairs, and its properties."""

import math

import pytest
import torch

from kernels.info_nce import nt_xent_loss
from kernels.sup_con import sup_con_loss

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 3])  # 2 and 3 are alone


def points(count=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(6)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def by_loops(x, labels, t, base):
    u, losses = [row / row.norm() for row in x], []
    for i in range(len(x)):
        weights = {a: torch.exp(u[i] @ u[a] / t) for a in range(len(x)) if a != i}
        positives = [p for p in weights if labels[p] == labels[i]]
        logs = [torch.log(weights[p] / sum(weights.values())) for p in positives]
        losses.append(-(t / base) * sum(logs) / len(logs) if logs else x.sum() * 0)
    return torch.stack(losses)


@pytest.mark.parametrize(("t", "base"), [(0.1, 0.07), (0.07, 0.07), (1.0, None)])
def test_value_and_gradient_are_those_of_the_loops(t, base):
    x = points()
    found_B = sup_con_loss(x, LABELS, temperature=t, base_temperature=base)
    expected_B = by_loops(x, LABELS, t, t if base is None else base)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-11, atol=1e-13)
    found, plain = (torch.autograd.grad(value.sum(), x)[0] for value in (found_B, expected_B))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


def test_with_instances_as_labels_it_is_nt_xent():
    x = points(10)
    loss_B = sup_con_loss(x, torch.arange(5).repeat(2), temperature=0.2, base_temperature=None)
    torch.testing.assert_close(loss_B.view(2, 5).mean(0), nt_xent_loss(x[:5], x[5:], temperature=0.2))


def test_order_of_views_and_samples_does_not_matter():
    x, labels = points(10), torch.tensor([0, 1, 0, 2, 1]).repeat(2)
    loss_B = sup_con_loss(x, labels)
    torch.testing.assert_close(sup_con_loss(x.roll(5, 0), labels), loss_B.roll(5))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sup_con_loss(x[order], labels[order]), loss_B[order])


def test_one_class_costs_at_least_the_logarithm_of_the_others():
    x, labels = points(8), torch.zeros(8, dtype=torch.long)
    assert sup_con_loss(x, labels, base_temperature=None).mean().item() > math.log(7)
    same = x[:1].repeat(8, 1)
    lowest = sup_con_loss(same, labels, base_temperature=None)
    torch.testing.assert_close(lowest, torch.full((8,), math.log(7), dtype=torch.float64))


def test_a_slice_with_gathered_columns_is_the_rows_of_the_whole_and_a_memory_joins_in():
    x, memory = points(), points(10)[7:].detach()
    whole_B = sup_con_loss(x, LABELS)
    parts = [
        sup_con_loss(x[a:b], LABELS[a:b], columns=x, column_labels=LABELS, first_own=a) for a, b in ((0, 3), (3, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole_B)
    grads = [torch.autograd.grad(value, x)[0] for value in (sum(part.sum() for part in parts), whole_B.sum())]
    torch.testing.assert_close(*grads)
    columns, labels = torch.cat([x, memory]), torch.cat([LABELS, torch.tensor([2, 0, 5])])
    found_B = sup_con_loss(x, LABELS, columns=columns, column_labels=labels)
    torch.testing.assert_close(found_B, by_loops(columns, labels, 0.1, 0.07)[:7])


def test_scale_invariance_and_orthogonal_gradient():
    x = points()
    loss_B = sup_con_loss(x, LABELS)
    factors = torch.linspace(0.1, 9, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(sup_con_loss(factors * x, LABELS), loss_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert float((gradient * x.detach()).sum(1).abs().max()) < 1e-11 and float(gradient.norm()) > 0.1


@pytest.mark.parametrize("t", [0.01, 0.5])
@pytest.mark.parametrize("case", ["alone", "classes of one", "one class", "duplicates", "zeros"])
def test_degenerate_batches_are_finite_with_their_gradient(t, case):
    x = points(4, torch.float32).detach()
    x = {"alone": x[:1], "duplicates": x[:1].repeat(4, 1), "zeros": 0 * x}.get(case, x).requires_grad_()
    labels = {"classes of one": [0, 1, 2, 3], "alone": [0], "one class": [0] * 4}.get(case, [0, 0, 1, 1])
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = sup_con_loss(x, torch.tensor(labels), temperature=t, base_temperature=None)
        (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert bool(loss_B.isfinite().all()) and bool(gradient.isfinite().all())
    if case in ("alone", "classes of one"):
        assert float(loss_B.detach().abs().max()) == 0.0 and float(gradient.abs().max()) == 0.0
    elif case != "one class":
        torch.testing.assert_close(loss_B.detach(), torch.full((4,), math.log(3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    x = points(dtype=dtype)
    with torch.autocast("cpu", dtype):
        loss_B = sup_con_loss(x, LABELS, temperature=0.01)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, sup_con_loss(x.float(), LABELS, temperature=0.01), rtol=1e-5, atol=1e-5)
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_errors():
    for wrong in ({"temperature": 0.0}, {"base_temperature": -0.07}):
        with pytest.raises(ValueError, match="temperatures must be positive, got"):
            sup_con_loss(points(), LABELS, **wrong)
    with pytest.raises(ValueError, match="columns and column_labels belong together"):
        sup_con_loss(points(), LABELS, columns=points())
    with pytest.raises(ValueError, match="pairs need one integer class a sample"):
        sup_con_loss(points(), LABELS.double())
