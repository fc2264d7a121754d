"""The correction of an implicit gradient is bounded by that of all processes: two equal one."""

import pytest
import torch
import torch.distributed
from processes import together
from small_loss import SIZE, UPDATES, batch_of, networks

from kernels.batch import Step
from lightning_modules.attacks.barrier import Barrier
from lightning_modules.distributed import average_over_processes
from lightning_modules.gradients.implicit import Implicit
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def trained(rank, world, micro_batches, max_ratio):
    """Weights after ten updates, and what is said of them; each process has its share of every batch."""
    network, _ = networks()
    gradient = Implicit(start_epoch=0, max_ratio=max_ratio, solver_steps=3)
    parts = Parts(CrossEntropy(), attack=Barrier(eps=0.1, c=1e-2, steps=3), gradient=gradient)
    optimizer = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)

    def backward(loss):
        """As the trainer's: averaged over the processes."""
        found = torch.autograd.grad(loss * world, list(network.parameters()))
        if world > 1:
            average_over_processes(found)
        for p, g in zip(network.parameters(), found, strict=True):
            p.grad = g if p.grad is None else p.grad + g

    for update in range(UPDATES):
        batch = batch_of(update).map(lambda rows: rows[rank * SIZE // world : (rank + 1) * SIZE // world])
        step = Step(0, update, 0, network, network, SIZE)
        optimizer.zero_grad()
        result = run_step(parts, batch, step, micro_batches=micro_batches, backward=backward)
        optimizer.step()
        parts.commit(result.whole(), step)
    return network.state_dict(), gradient.report()


def check(ours, theirs):
    for name, value in theirs[0].items():
        torch.testing.assert_close(ours[0][name], value, rtol=0, atol=1e-9, msg=name)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-9)


def child(rank):
    alone = {max_ratio: trained(0, 1, 1, max_ratio) for max_ratio in (0.01, None)}
    torch.distributed.init_process_group("gloo")
    for max_ratio, expected in alone.items():
        for micro_batches in (1, 3):
            check(trained(rank, 2, micro_batches, max_ratio), expected)
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.fault
def test_two_processes_are_one(tmp_path):
    _, bounded = trained(0, 1, 1, 0.01)
    _, free = trained(0, 1, 1, None)
    assert bounded["scaled_down_share"] == 1 and free["ratio"] > 0.02, "the bound is one"
    ended = together(child, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[-1].text
