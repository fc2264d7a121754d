"""SAM: rho -> 0 is the plain gradient, of parts too; ten steps equal a plain loop; what a second pass leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kernels.batch import Step
from lightning_modules.gradients.asam import ASAM
from lightning_modules.gradients.sam import SAM, reciprocal_norm
from lightning_modules.gradients.sum import Sum
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Loss
from lightning_modules.parts import Parts
from lightning_modules.regularizers.saf import SAF
from lightning_modules.step import run_step
from lightning_modules.surgery.batch_channel_norm_2d import BatchChannelNorm2d


class Proxies(Loss):
    """Class vectors of its own beside the head's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4))

    def forward(self, outputs, batch, step):
        logits_BC = outputs["main"].features @ self.weight.T + outputs["main"].logits
        return {"proxies": cross_entropy(logits_BC, batch.label, reduction="none")}


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def one_step(network, parts, batch, micro_batches=1):
    torch.manual_seed(7)  # dropout
    result = run_step(parts, batch, Step(0, 0, 0, network, network, len(batch)), micro_batches=micro_batches)
    return result, gradients(network, parts)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_rho_to_zero_is_the_sum_for_network_and_parts(make_network, make_batch, micro_batches):
    batch, found = make_batch(list(range(8))), []
    for gradient in (Sum(), SAM(rho=0.0), SAM(rho=1e-9)):
        network, parts = make_network(batch_norm=True, dropout=0.5).train(), Parts(Proxies(), gradient=gradient)
        result, grads = one_step(network, parts, batch, micro_batches)
        found.append((grads, [b.clone() for b in network.buffers()], result.terms["proxies"]))
    for grads, buffers, term in found[1:]:
        for ours, theirs in zip(grads, found[0][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
        assert all(torch.equal(a, b) for a, b in zip(buffers, found[0][1], strict=True)), "statistics moved once"
        assert torch.equal(term, found[0][2])
    assert all(torch.equal(a, b) for a, b in zip(found[1][0], found[0][0], strict=True))


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("warmup", [False, True])
def test_a_norm_that_normalizes_by_running_statistics_is_one_function(make_network, make_batch, micro_batches, warmup):
    """The second pass begins with the statistics of the first, so that rho = 0 is the sum bit for bit."""
    found = []
    for gradient in (Sum(), SAM(rho=0.0)):
        network = make_network().train()
        network.backbone.norm = BatchChannelNorm2d(4, 2, estimate=True, update_rate=0.3, warmup=warmup).double()
        for update in range(3):
            step = Step(0, update, 0, network, network, 8)
            batch = make_batch(list(range(8)), seed=update)
            network.zero_grad()
            run_step(Parts(CrossEntropy(), gradient=gradient), batch, step, micro_batches=micro_batches)
        found.append(gradients(network) + [buffer.clone() for buffer in network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def plain_sam(network, loss, batch, rho):
    """From the paper: the gradient at ``w + rho g / ||g||``."""
    parameters = [*network.parameters(), *loss.parameters()]

    def value():
        return loss({"main": network(batch.image)}, batch, None)["proxies"].mean()

    g = torch.autograd.grad(value(), parameters)
    norm = torch.sqrt(sum((x**2).sum() for x in g))
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, x in zip(parameters, g, strict=True):
            p += rho * x / norm
    g = torch.autograd.grad(value(), parameters)
    with torch.no_grad():
        for p, x in zip(parameters, start, strict=True):
            p.copy_(x)
    return g


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, micro_batches):
    network, plain = make_network(), make_network()
    parts, theirs = Parts(Proxies(), gradient=SAM(rho=0.5)), Proxies()
    ours = torch.optim.SGD([*network.parameters(), *parts.parameters()], 0.5, momentum=0.9)
    reference = torch.optim.SGD([*plain.parameters(), *theirs.parameters()], 0.5, momentum=0.9)
    for update in range(10):
        batch = make_batch(list(range(8)), seed=update)
        ours.zero_grad()
        step = Step(0, update, 0, network, network, 8)
        run_step(parts, batch, step, micro_batches=micro_batches)
        ours.step()
        reference.zero_grad()
        g = plain_sam(plain, theirs, batch, 0.5)
        for p, x in zip([*plain.parameters(), *theirs.parameters()], g, strict=True):
            p.grad = x
        reference.step()
    weights = zip(
        [*network.parameters(), *parts.parameters()], [*plain.parameters(), *theirs.parameters()], strict=True
    )
    for a, b in weights:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_bfloat16_sees_the_moved_weights(make_network, make_batch):
    """Under autocast the second pass casts the moved weights anew: its gradient is near that of float32."""
    batch, found = make_batch(list(range(8)), dtype=torch.float32), []
    for autocast in (False, True):
        network = make_network(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            run_step(Parts(CrossEntropy(), gradient=SAM(rho=2.0)), batch, Step(0, 0, 0, network, network, 8))
        found.append(torch.cat([g.flatten() for g in gradients(network)]))
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())
    plain = make_network(dtype=torch.float32)
    run_step(Parts(CrossEntropy(), gradient=Sum()), batch, Step(0, 0, 0, plain, plain, 8))
    unmoved = torch.cat([g.flatten() for g in gradients(plain)])
    assert (found[1] - found[0]).norm() < 0.2 * (unmoved - found[0]).norm()


def test_the_loss_in_the_ball_is_higher(make_network, make_batch):
    """The direction is one of ascent, and the weights are back bit for bit."""
    network, batch, seen = make_network(), make_batch(list(range(8))), []
    start = copy.deepcopy(network.state_dict())

    class Watched(CrossEntropy):
        def forward(self, outputs, batch, step):
            losses = super().forward(outputs, batch, step)
            seen.append((step.pass_number, losses["cross_entropy"].mean().item()))
            return losses

    run_step(Parts(Watched(), gradient=SAM(rho=0.1)), batch, Step(0, 0, 0, network, network, 8))
    assert [number for number, _ in seen] == [0, 1] and seen[1][1] > seen[0][1]
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


def test_only_the_first_pass_is_counted(make_network, make_batch, make_context):
    parts = Parts(CrossEntropy(), {"saf": SAF(lag=1, start_epoch=0)}, gradient=SAM())
    network = make_network()
    parts.setup(make_context(network))
    for epoch in range(3):
        step = Step(epoch, epoch, 0, network, network, 8)
        result = run_step(parts, make_batch(list(range(8))), step)
        parts.commit(result.whole(), step)
    assert parts.regularizers["saf"].activity.epoch_sums[2] == 16, "two epochs with the term, eight samples each"


def test_a_gradient_of_zeros_stays_where_it_is():
    zeros = [torch.zeros(3), torch.zeros(2, 2)]
    assert torch.isfinite(reciprocal_norm(zeros) * zeros[0]).all()
    assert reciprocal_norm([torch.tensor([3.0]), torch.tensor([4.0])]) == pytest.approx(0.2)


@pytest.mark.parametrize("gradient", [SAM(rho=50.0), ASAM(rho=50.0)])
@pytest.mark.parametrize("size", [0.0, 1e-24, 1e-40])
def test_a_gradient_whose_squares_underflow_moves_nothing_far(gradient, size):
    weights = {"weight": nn.Parameter(torch.ones(1000)), "bias": nn.Parameter(torch.ones(10))}
    for p in weights.values():
        p.grad = torch.full_like(p, size)
    assert all((step.abs() <= 1e-10).all() for step in gradient.ascent(weights))


def test_values_that_are_no_radius():
    for rho in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="rho=.* is out of range; allowed: rho >= 0"):
            SAM(rho=rho)
