"""MART beside PGD: a plain loop of the official loss, its forwards, mixed precision and refusals."""

import pytest
import torch
from adversarial_bench import counted, equal_weights, ours, plain
from torch.nn.functional import cross_entropy, kl_div, nll_loss, one_hot

from kernels.batch import Output
from lightning_modules.attacks.pgd import PGD
from lightning_modules.losses.mart import MART
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def raised(clean, adversarial, label):
    return cross_entropy(adversarial, label, reduction="sum")


def by_hand(beta):
    def loss(clean, adversarial, label):
        q, r = clean.softmax(1), adversarial.softmax(1)
        wrong = (r - 2 * one_hot(label, 3)).argmax(1)
        boosted = raised(clean, adversarial, label) + nll_loss((1.0001 - r + 1e-12).log(), wrong, reduction="sum")
        kl = kl_div((r + 1e-12).log(), q, reduction="none").sum(1)
        return boosted + beta * (kl * (1.0000001 - q[torch.arange(len(q)), label])).sum()

    return loss


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_are_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    network, reference = make_network(), make_network()
    terms = list(ours(network, MART(), make_batch, make_step, micro_batches))
    values = list(plain(reference, by_hand(6.0), raised, make_batch))
    equal_weights(network, reference)
    assert all(list(of) == ["mart_bce", "mart_kl"] for of in terms)
    assert [sum(of.values()).item() for of in terms] == pytest.approx(values, rel=1e-9)
    assert min(of["mart_kl"].item() for of in terms) > 0


def test_norm_statistics_move_for_both_images_the_clean_one_first(make_network, make_batch, make_step):
    network, reference = make_network(batch_norm=True), make_network(batch_norm=True)
    list(ours(network, MART(beta=5.0), make_batch, make_step))
    list(plain(reference, by_hand(5.0), raised, make_batch))
    equal_weights(network, reference)


def test_every_image_is_forwarded_once_beside_the_attack(make_network, make_batch, make_step):
    network = make_network()
    seen = counted(network)
    run_step(Parts(MART(), attack=PGD(steps=4, start="normal")), make_batch(range(8)), make_step(network))
    assert seen == [8] * (4 + 2), "an attack on the cross-entropy needs no clean prediction"


def test_the_gradient_reaches_both_predictions(make_batch):
    generator = torch.Generator().manual_seed(0)
    clean, adversarial = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    clean.requires_grad_(), adversarial.requires_grad_()
    outputs = {"clean": Output(logits=clean), "adversarial": Output(logits=adversarial)}
    batch = make_batch(range(8))
    terms = MART(beta=3.0)(outputs, batch, None)
    found = torch.autograd.grad(sum(terms.values()).sum(), (clean, adversarial))
    expected = torch.autograd.grad(by_hand(3.0)(clean, adversarial, batch.label), (clean, adversarial))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found[0].abs().max() > 0 and all(value.shape == (8,) for value in terms.values())


def test_the_prediction_is_that_of_the_attacked_image(make_network, make_batch, make_step):
    """So that training accuracy is a robust one, as in adversarial training with cross-entropy."""
    network = make_network()
    parts = Parts(MART(), attack=PGD(steps=4, eps=0.3, step_size=0.1))
    result = run_step(parts, make_batch(range(8)), make_step(network)).whole()
    found = result.outputs[parts.loss.prediction].logits
    torch.testing.assert_close(found, network(result.batch.image).logits.detach(), rtol=0, atol=1e-12)
    assert not torch.allclose(found, network(result.batch.clean_image).logits)


def test_mixed_precision(make_network, make_batch, make_step):
    found = []
    for autocast in (False, True):
        network = make_network(dtype=torch.float32)
        parts = Parts(MART(), attack=PGD(steps=2, start="normal"))
        batch = make_batch(range(8), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = run_step(parts, batch, make_step(network))
        assert all(p.grad.isfinite().all() for p in network.parameters())
        assert all(value.dtype == torch.float32 and value.isfinite() for value in result.terms.values())
        found.append(result.terms["mart_bce"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_what_it_needs(make_network, make_batch, make_step):
    with pytest.raises(ValueError, match="loss needs attack: add one with attack=NAME"):
        Parts(MART())
    with pytest.raises(ValueError, match="loss needs hard_labels: a class for each sample, and mixing makes soft"):
        Parts(MART(), attack=PGD(), mixing=Mixup())
    soft = make_batch(range(8)).replace(label=torch.full((8, 3), 1 / 3))
    with pytest.raises(ValueError, match="one integer class a row is needed"):
        run_step(Parts(MART(), attack=PGD(steps=1)), soft, make_step(make_network()))
    with pytest.raises(ValueError, match="beta=-1.0 is out of range; allowed: beta >= 0"):
        MART(beta=-1.0)
