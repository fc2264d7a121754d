"""Uniform coefficients are the plain mean of the global batch, asked for or not."""

import torch

from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Reweighting
from lightning_modules.parts import Parts
from lightning_modules.reweightings.uniform import Uniform
from lightning_modules.step import run_step


def test_a_sample_weighs_one_over_the_global_batch(make_network, make_batch, make_step):
    network = make_network()
    step = make_step(network, batch_size=32)  # 8 samples here, 24 in other processes
    batch = make_batch(list(range(8)))
    terms = run_step(Parts(CrossEntropy(), reweighting=Uniform()), batch, step).terms
    losses_B = torch.nn.functional.cross_entropy(network(batch.image).logits, batch.label, reduction="none")
    torch.testing.assert_close(terms["cross_entropy"], (losses_B / 32).sum().detach(), rtol=0, atol=1e-14)


def test_the_step_reduces_as_the_coefficients_say(make_network, make_batch, make_step):
    class Plain(Reweighting):
        """The same numbers, named one by one."""

        def forward(self, losses, outputs, batch, step):
            return {name: torch.full_like(loss_B, 1 / step.batch_size) for name, loss_B in losses.items()}

    batch, gradients = make_batch(list(range(8))), []
    for reweighting in (None, Uniform(), Plain()):
        network = make_network()
        run_step(Parts(CrossEntropy(), reweighting=reweighting), batch, make_step(network), micro_batches=3)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=1e-14)
