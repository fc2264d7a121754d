"""MESA: the average, its teacher, and the shipped part against a plain loop written from the paper's page."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.regularizers.mesa import MESA
from lightning_modules.step import run_step


def train(parts, network, make_batch, make_step, updates=6, lr=0.5):
    """A plain loop; yields the step's terms."""
    optimizer = torch.optim.SGD(network.parameters(), lr)
    for update in range(updates):
        optimizer.zero_grad()
        step = make_step(network, update // 2, update)
        result = run_step(parts, make_batch(list(range(8)), seed=update), step)
        optimizer.step()
        parts.commit(result.whole(), step)
        yield result.terms


def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context):
    network, plain = make_network(batch_norm=True), make_network(batch_norm=True)
    parts = Parts(CrossEntropy(), {"mesa": MESA(weight=0.8, temperature=5.0, decay=0.9, start_epoch=1)})
    parts.setup(make_context(network))
    teacher = copy.deepcopy(plain).eval()
    list(train(parts, network, make_batch, make_step, updates=10))
    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    for update in range(10):
        batch = make_batch(list(range(8)), seed=update)
        logits = plain(batch.image).logits
        loss = cross_entropy(logits, batch.label)
        if update // 2 > 1:
            with torch.no_grad():
                p = (teacher(batch.image).logits / 5).softmax(1)
            loss = loss + 0.8 * 25 * (p * (p.log() - (logits / 5).log_softmax(1))).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, value in zip(teacher.state_dict().values(), plain.state_dict().values(), strict=True):
                if average.is_floating_point():
                    average.copy_(0.9 * average + 0.1 * value)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    average = parts.regularizers["mesa"].average.module
    torch.testing.assert_close(average.backbone.norm.running_var, teacher.backbone.norm.running_var)
    assert parts.report()["mesa"] == {"first_active_epoch": 2, "active_step_share": 0.6}


def test_decay_one_keeps_the_initial_network_and_zero_follows(make_network, make_batch, make_step, make_context):
    for decay in (1.0, 0.0):
        network = make_network()
        start = copy.deepcopy(network.state_dict())
        parts = Parts(CrossEntropy(), {"mesa": MESA(decay=decay, start_epoch=0)})
        parts.setup(make_context(network))
        terms = list(train(parts, network, make_batch, make_step))
        average = parts.regularizers["mesa"].average.module.state_dict()
        expected = start if decay == 1.0 else network.state_dict()
        assert all(torch.equal(average[key], expected[key]) for key in expected)
        if decay == 0.0:
            assert max(float(term["mesa"]) for term in terms if "mesa" in term) == pytest.approx(0.0, abs=1e-12)


def test_teacher_keeps_its_statistics_and_gets_no_gradient(make_network, make_batch, make_step, make_context):
    network = make_network(batch_norm=True)
    mesa = MESA(decay=1.0, start_epoch=0)
    parts = Parts(CrossEntropy(), {"mesa": mesa})
    parts.setup(make_context(network))
    parts.train()
    before = copy.deepcopy(mesa.average.module.state_dict())
    run_step(parts, make_batch(list(range(8))), make_step(network, epoch=2))
    assert all(torch.equal(value, before[key]) for key, value in mesa.average.module.state_dict().items())
    assert all(p.grad is None for p in mesa.average.parameters()) and not mesa.average.module.training


def test_sees_the_mixed_images(make_network, make_batch, make_step, make_context):
    network = make_network()
    mesa = MESA(decay=1.0, start_epoch=0)
    parts = Parts(CrossEntropy(), {"mesa": mesa}, mixing=Mixup(alpha=1.0))
    parts.setup(make_context(network))
    seen = []
    mesa.average.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    result = run_step(parts, make_batch(list(range(8))), make_step(network, epoch=2))
    assert torch.equal(seen[0], result.batches[0].image)
    assert not torch.equal(seen[0], make_batch(list(range(8))).image)


def test_weight_zero_is_bit_identical(make_network, make_batch, make_step, make_context):
    weights = []
    for regularizers in ({}, {"mesa": MESA(weight=0.0)}):
        network = make_network(batch_norm=True)
        parts = Parts(CrossEntropy(), regularizers)
        parts.setup(make_context(network))
        list(train(parts, network, make_batch, make_step))
        weights.append(network.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_refusals(make_network, make_context):
    with pytest.raises(ValueError, match="MESA can never act in 5 epochs"):
        MESA(start_epoch=4).setup(make_context(make_network()))
    with pytest.raises(ValueError, match="decay=2.0 is out of range; allowed: 0 <= decay <= 1"):
        MESA(decay=2.0)
