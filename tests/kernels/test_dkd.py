"""DKD beyond what all distillation of logits shares: what each of its halves sees, and two classes."""

from functools import partial

import torch

from kernels.dkd import dkd_loss
from kernels.kd import kd_loss


def draw(rows, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v, torch.randint(classes, (rows,), generator=generator)


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def test_two_classes_have_no_order_of_the_others():
    z, v, y = draw(4, 2, 8)
    nckd = dkd_loss(z, v, y, alpha=0, beta=8, temperature=2.0)
    assert nckd.tolist() == [0.0] * 4 and not gradient(nckd, z).any()
    expected = kd_loss(z, v, temperature=2.0)
    torch.testing.assert_close(dkd_loss(z, v, y, alpha=1, beta=8, temperature=2.0), expected, rtol=0, atol=1e-12)


def test_what_each_half_sees():
    z, v, y = draw(4, 5, 7)
    of = partial(dkd_loss, z, v, y, temperature=2.0)
    tckd, nckd = of(alpha=1, beta=0), of(alpha=0, beta=1)
    target = torch.nn.functional.one_hot(y, 5).double()
    moved = dkd_loss(z + 3 * target, v, y, alpha=0, beta=1, temperature=2.0)
    torch.testing.assert_close(moved, nckd, rtol=0, atol=1e-12, msg="NCKD does not see the logit of the label")
    assert not (gradient(nckd, z) * target).any()
    order = torch.tensor([2, 0, 4, 1, 3])
    others = z.detach().clone()
    for row, label in zip(others, y.tolist(), strict=True):  # other classes in another order: q_y is the same
        rest = [c for c in range(5) if c != label]
        row[rest] = row[rest].flip(0)
    found = dkd_loss(others, v, y, alpha=1, beta=0, temperature=2.0)
    torch.testing.assert_close(found, tckd, rtol=0, atol=1e-12, msg="TCKD sees only q_y")
    where = order.argsort()
    found = dkd_loss(z[:, order], v[:, order], where[y], alpha=1, beta=3, temperature=2.0)
    torch.testing.assert_close(found, tckd + 3 * nckd, rtol=0, atol=1e-12)
