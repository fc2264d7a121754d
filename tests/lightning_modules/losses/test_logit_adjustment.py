"""Logit adjustment against sums written out, and ten steps against a plain loop."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output, Update
from lightning_modules.losses.logit_adjustment import LogitAdjustment
from lightning_modules.part import TrainingData
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

LABELS = [0] * 6 + [1] * 3 + [2]


@pytest.fixture
def made(make_network, make_context):
    def make(labels=LABELS, **keys):
        loss = LogitAdjustment(**keys)
        loss.setup(make_context(make_network()))
        if labels:
            label = torch.tensor(labels)
            batch = Batch(torch.zeros(len(label), 3, 2, 2), label, torch.arange(len(label)))
            loss.prepare(TrainingData(lambda: [batch], make_network(), torch.device("cpu")))
        return loss

    return make


@pytest.fixture
def logits():
    return torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


def loss_of(loss, logits, label):
    batch = Batch(torch.zeros(len(logits), 3, 1, 1), label, torch.arange(len(logits)))
    (found,) = loss({"main": Output(logits=logits)}, batch, None).items()
    assert found[0] == "logit_adjustment"
    return found[1]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_values(made, logits, tau):
    """log(1 + sum_{k != y} (pi_k / pi_y)^tau exp(z_k - z_y)), equation 10 of the paper."""
    found, pi = loss_of(made(tau=tau), logits, torch.tensor([2, 0, 1])), (0.6, 0.3, 0.1)
    for row, y, value in zip(logits.tolist(), (2, 0, 1), found.tolist(), strict=True):
        others = sum((pi[k] / pi[y]) ** tau * math.exp(row[k] - row[y]) for k in range(3) if k != y)
        assert value == pytest.approx(math.log1p(others), rel=1e-12)


def test_tau_zero_is_cross_entropy(made, logits):
    label = torch.tensor([2, 0, 1])
    found = loss_of(made(tau=0.0, label_smoothing=0.1), logits, label)
    assert torch.equal(found, cross_entropy(logits, label, reduction="none", label_smoothing=0.1))


def test_logits_that_are_log_priors_beside_the_truth(made, logits):
    """Where z = log p(x | y), it is the logarithm of the posterior of the training set."""
    likelihood = logits.exp()
    posterior = likelihood * torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    posterior = posterior / posterior.sum(1, keepdim=True)
    found = loss_of(made(), logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, -posterior.diagonal().log(), rtol=1e-12, atol=0)


def test_gradient_and_soft_labels(made, logits):
    logits.requires_grad_()
    soft = torch.tensor([[0.25, 0.25, 0.5], [0.8, 0.2, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    loss_of(made(tau=1.5), logits, soft).sum().backward()
    adjusted = logits.detach() + 1.5 * torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    torch.testing.assert_close(logits.grad, adjusted.softmax(1) - soft, rtol=1e-9, atol=1e-12)


def test_a_class_without_a_sample_is_finite(made, logits):
    loss = made(labels=[0] * 7 + [1] * 2)
    torch.testing.assert_close(loss.log_prior().exp(), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64))
    assert loss_of(loss, logits, torch.tensor([2, 2, 2])).isfinite().all()
    single = loss_of(loss, torch.tensor([[500.0, -500.0, 0.0]], dtype=torch.bfloat16), torch.tensor([1]))
    assert single.dtype == torch.float32 and single.isfinite().all()


def test_without_prepare_classes_count_as_they_come(made, logits):
    loss, label = made(labels=None), torch.tensor([2, 0, 0])
    first = loss_of(loss, logits, label)
    torch.testing.assert_close(first, cross_entropy(logits, label, reduction="none"), rtol=1e-12, atol=0)
    loss.commit(Update({}, Batch(torch.zeros(3, 0), label, label)), type("Step", (), {"batch_size": 3}))
    torch.testing.assert_close(loss.log_prior().exp(), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, made, micro_batches):
    network, plain = make_network(), make_network()
    optimizer, reference = (torch.optim.SGD(n.parameters(), 0.5, momentum=0.9) for n in (network, plain))
    parts = Parts(made(tau=1.2))
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        step = make_step(network, update=update)
        optimizer.zero_grad()
        result = run_step(parts, batch, step, micro_batches=micro_batches)
        optimizer.step()
        parts.commit(result.whole(), step)
        reference.zero_grad()
        z = plain(batch.image).logits
        exponential = torch.stack([z[:, c].exp() * share**1.2 for c, share in enumerate((0.6, 0.3, 0.1))], 1)
        shares = exponential / exponential.sum(1, keepdim=True)
        (-sum(shares[i, y].log() for i, y in enumerate(batch.label.tolist())) / 8).backward()
        reference.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="tau=-1.0 is out of range; allowed: tau >= 0"):
        LogitAdjustment(tau=-1.0)
