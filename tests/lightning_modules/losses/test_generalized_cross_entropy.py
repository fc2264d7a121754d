"""Generalized cross-entropy as a part: a plain loop of the paper, its ends, and the weight of a wrong label."""

import pytest
import torch
from adversarial_bench import equal_weights, optimizer_of

from kernels.batch import Batch, Output
from lightning_modules.losses.generalized_cross_entropy import GeneralizedCrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_are_a_plain_loop(make_network, make_batch, make_step, micro_batches):
    network, reference = make_network(), make_network()
    optimizers = [optimizer_of(net) for net in (network, reference)]
    for update in range(10):
        batch = make_batch(range(8), seed=update)
        for optimizer in optimizers:
            optimizer.zero_grad()
        step = make_step(network, update=update)
        terms = run_step(Parts(GeneralizedCrossEntropy()), batch, step, micro_batches=micro_batches).terms
        p = reference(batch.image).logits.softmax(1).gather(1, batch.label[:, None])
        ((1 - p**0.7) / 0.7).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    equal_weights(network, reference)
    assert list(terms) == ["generalized_cross_entropy"]


def test_an_unlikely_label_pulls_by_its_probability_to_the_q():
    """The gradient of cross-entropy times ``p_y^q``."""
    logits = torch.tensor([[0.0, 5.0, 1.0], [5.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 0]), torch.arange(2))
    (loss,) = GeneralizedCrossEntropy(q=0.5)({"main": Output(logits=logits)}, batch, None).values()
    loss.sum().backward()
    p = logits.detach().softmax(1)
    pull = p - torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, p[:, :1].sqrt() * pull, rtol=0, atol=1e-12)
    assert logits.grad[0].norm() < 0.1 * pull[0].norm(), "wrong, and a tenth of what cross-entropy pulls"


def test_mixed_labels_and_mixed_precision(make_network, make_batch, make_step, make_context):
    network = make_network(dtype=torch.float32)
    parts = Parts(GeneralizedCrossEntropy(), mixing=Mixup())
    parts.setup(make_context(network))
    with torch.autocast("cpu", torch.bfloat16):
        result = run_step(parts, make_batch(range(8), dtype=torch.float32), make_step(network)).whole()
    label, p = result.batch.label, result.outputs["main"].logits.double().softmax(1)
    assert label.ndim == 2 and result.losses["generalized_cross_entropy"].dtype == torch.float32
    expected = (label * (1 - p**0.7) / 0.7).sum(1)
    torch.testing.assert_close(result.losses["generalized_cross_entropy"].double(), expected, rtol=0, atol=1e-6)


def test_refusals():
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"q={wrong} is out of range; allowed: 0 <= q <= 1"):
            GeneralizedCrossEntropy(q=wrong)
