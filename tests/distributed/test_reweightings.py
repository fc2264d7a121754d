"""A reweighting of the whole batch is that of all processes: two equal one, weights and tracker."""

import math

import pytest
import torch
import torch.distributed
from processes import together
from small_loss import SIZE, UPDATES, batch_of, networks
from torch.nn.functional import cross_entropy

from kernels.batch import Step
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.reweightings.kl_dro import KLDRO
from lightning_modules.step import run_step

RADIUS, RATE, STEPS = 0.05, 0.3, 2


def trained(rank, world, micro_batches):
    """State after ten updates through the seats; each process has its share of every batch."""
    network, _ = networks()
    part = KLDRO(radius=RADIUS, rate=RATE)
    parts = Parts(CrossEntropy(), attack=PGD(steps=STEPS), reweighting=part)
    parts.setup(Context(3, 40, 1, UPDATES, network))
    optimizer = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)
    for update in range(UPDATES):
        batch = batch_of(update).map(lambda rows: rows[rank * SIZE // world : (rank + 1) * SIZE // world])
        step = Step(0, update, 0, network, network, SIZE)
        optimizer.zero_grad()
        result = run_step(parts, batch, step, micro_batches=micro_batches)
        for p in network.parameters() if world > 1 else ():
            torch.distributed.all_reduce(p.grad)
        optimizer.step()
        parts.commit(result.whole(), step)
    said = parts.end_epoch() | parts.report()["reweighting"]
    return {**network.state_dict(), "tracker": part.log_tracker}, said


def expected():
    """The same in one process, written from the paper."""
    network, _ = networks()
    optimizer, u = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9), None
    for update in range(UPDATES):
        batch = batch_of(update)
        with attacked(network) as victim:
            found = PGD(steps=STEPS).search(victim, batch.image, batch.label, Draw(0, update, batch.index))
        losses = cross_entropy(network(found.image).logits, batch.label, reduction="none")
        g = [math.exp(loss / RADIUS) for loss in losses.tolist()]
        u = sum(g) / SIZE if u is None else (1 - RATE) * u + RATE * sum(g) / SIZE
        optimizer.zero_grad()
        sum(weight / (SIZE * u) * loss for weight, loss in zip(g, losses, strict=True)).backward()
        optimizer.step()
    return {**network.state_dict(), "tracker": torch.tensor(math.log(u), dtype=torch.float64)}


def check(ours):
    theirs = expected()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9, msg=name)


def child(rank):
    torch.distributed.init_process_group("gloo")
    for micro_batches in (1, 3):
        state, said = trained(rank, 2, micro_batches)
        check(state)
        other = [None, None]
        torch.distributed.all_gather_object(other, (state["tracker"].item(), said))
        assert other[0] == other[1], "every process has the same tracker, and says the same"
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.fault
def test_kl_dro_in_two_processes_equals_a_plain_loop(tmp_path):
    ended = together(child, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].text


def test_kl_dro_in_one_process_equals_the_same_loop():
    check(trained(0, 1, 1)[0])
