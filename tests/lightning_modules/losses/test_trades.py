"""TRADES beside PGD: a plain loop of the paper, its forwards, norm statistics, mixed precision and refusals."""

import pytest
import torch
from adversarial_bench import counted, equal_weights, optimizer_of, ours, plain
from torch.nn.functional import cross_entropy

from kernels.batch import Output
from lightning_modules.attacks.pgd import PGD
from lightning_modules.losses.trades import TRADES
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def divergence(clean, adversarial, label):
    q, r = clean.softmax(1), adversarial.softmax(1)
    return (q * (q.log() - r.log())).sum()


def by_hand(beta):
    return lambda clean, adversarial, label: (
        cross_entropy(clean, label, reduction="sum") + beta * divergence(clean, adversarial, label)
    )


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_are_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    network, reference = make_network(), make_network()
    terms = list(ours(network, TRADES(), make_batch, make_step, micro_batches, objective="kl"))
    values = list(plain(reference, by_hand(6.0), divergence, make_batch))
    equal_weights(network, reference)
    assert all(list(of) == ["trades_clean", "trades_robust"] for of in terms)
    assert [sum(of.values()).item() for of in terms] == pytest.approx(values, rel=1e-9)
    assert min(of["trades_robust"].item() for of in terms) > 0, "the attack moves the prediction"


def test_norm_statistics_move_for_both_images_the_clean_one_first(make_network, make_batch, make_step):
    """In the plain loop too; the attack leaves them alone."""
    network, reference = make_network(batch_norm=True), make_network(batch_norm=True)
    list(ours(network, TRADES(beta=2.0), make_batch, make_step, objective="kl"))
    list(plain(reference, by_hand(2.0), divergence, make_batch))
    equal_weights(network, reference)
    assert network.backbone.norm.num_batches_tracked == 20


@pytest.mark.parametrize("steps", [0, 4])
def test_every_image_is_forwarded_once_beside_the_attack(make_network, make_batch, make_step, steps):
    """K + 1 forwards of the attack, whose clean prediction is made once, and two of the loss."""
    network = make_network()
    seen = counted(network)
    attack = PGD(steps=steps, objective="kl", start="normal")
    run_step(Parts(TRADES(), attack=attack), make_batch(range(8)), make_step(network))
    assert seen == [8] * (steps + 1 + 2)


def test_the_gradient_reaches_both_predictions(make_batch):
    generator = torch.Generator().manual_seed(0)
    clean, adversarial = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    clean.requires_grad_(), adversarial.requires_grad_()
    outputs = {"clean": Output(logits=clean), "adversarial": Output(logits=adversarial)}
    batch = make_batch(range(8))
    terms = TRADES(beta=3.0)(outputs, batch, None)
    found = torch.autograd.grad(sum(terms.values()).sum(), (clean, adversarial))
    expected = torch.autograd.grad(by_hand(3.0)(clean, adversarial, batch.label), (clean, adversarial))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert all(value.shape == (8,) for value in terms.values())


def test_the_prediction_is_that_of_the_clean_image(make_network, make_batch, make_step):
    network = make_network()
    parts = Parts(TRADES(), attack=PGD(steps=4, eps=0.3, step_size=0.1, objective="kl"))
    result = run_step(parts, make_batch(range(8)), make_step(network)).whole()
    found = result.outputs[parts.loss.prediction].logits
    torch.testing.assert_close(found, network(result.batch.clean_image).logits.detach(), rtol=0, atol=1e-12)
    assert not torch.allclose(found, network(result.batch.image).logits)


def test_beta_zero_is_cross_entropy_of_the_clean_images(make_network, make_batch, make_step):
    network, reference = make_network(), make_network()
    terms = list(ours(network, TRADES(beta=0.0), make_batch, make_step, objective="kl"))
    optimizer = optimizer_of(reference)
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        optimizer.zero_grad()
        cross_entropy(reference(batch.image).logits, batch.label).backward()
        optimizer.step()
    equal_weights(network, reference)
    assert all(of["trades_robust"] == 0 for of in terms)


def test_mixed_precision(make_network, make_batch, make_step):
    """Finite, in float32, and near the loss without it."""
    found = []
    for autocast in (False, True):
        network = make_network(dtype=torch.float32)
        parts = Parts(TRADES(), attack=PGD(steps=2, objective="kl", start="normal"))
        batch = make_batch(range(8), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = run_step(parts, batch, make_step(network))
        assert all(p.grad.isfinite().all() for p in network.parameters())
        assert all(value.dtype == torch.float32 and value.isfinite() for value in result.terms.values())
        found.append(result.terms["trades_clean"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_what_it_needs(make_network, make_batch, make_step):
    with pytest.raises(ValueError, match="loss needs attack: add one with attack=NAME"):
        Parts(TRADES())
    with pytest.raises(ValueError, match="loss needs hard_labels: a class for each sample, and mixing makes soft"):
        Parts(TRADES(), attack=PGD(), mixing=Mixup())
    soft = make_batch(range(8)).replace(label=torch.full((8, 3), 1 / 3))
    with pytest.raises(ValueError, match="one integer class a row is needed"):
        run_step(Parts(TRADES(), attack=PGD(steps=1)), soft, make_step(make_network()))
    with pytest.raises(ValueError, match="beta=-1.0 is out of range; allowed: beta >= 0"):
        TRADES(beta=-1.0)
