"""Uniform coefficients are the plain mean of the global batch, asked for or not."""

import torch

from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.reweightings.uniform import Uniform
from lightning_modules.step import run_step


def test_coefficients_are_one_over_the_global_batch(make_network, make_batch, make_step):
    step = make_step(make_network(), batch_size=32)  # 8 samples here, 24 in other processes
    coefficients = Uniform()(torch.rand(8, requires_grad=True), {}, make_batch(list(range(8))), step)
    assert coefficients.tolist() == [1 / 32] * 8 and not coefficients.requires_grad


def test_the_step_reduces_as_the_coefficients_say(make_network, make_batch, make_step):
    class Plain(Uniform):
        """The same numbers, through the general path."""

    batch, gradients = make_batch(list(range(8))), []
    for reweighting in (None, Uniform(), Plain()):
        network = make_network()
        run_step(Parts(CrossEntropy(), reweighting=reweighting), batch, make_step(network), micro_batches=3)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=1e-14)
