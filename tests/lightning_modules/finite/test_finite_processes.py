"""Two processes decide alike: what is not finite in one is not finite for both, and a stop of one stops both."""

import copy
import math
import multiprocessing
import queue
import warnings

import pytest
import torch
from torch import distributed, nn

from kernels.batch import Batch, Output, Step
from lightning_modules.finite.check import NonFiniteError
from lightning_modules.finite.guard import FiniteGuard
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

pytestmark = pytest.mark.fault
WORLD = 2
#: What happens in which process at each update: (broken image, broken gradient, asked to stop), by rank.
UPDATES = [(None, None, None), (1, None, None), (None, 0, None), (None, None, 1), (0, None, 0)]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, image, label=None, mix_map=None):
        return Output(logits=self.head(self.norm(image).mean((2, 3))))


def train(rank, rendezvous, directory):
    """What this process saw at each update: (ok, stop, rank of the verdict, its warning), then how it ended."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    network, parts, guard = Tiny(), Parts(CrossEntropy()), FiniteGuard("skip", max_in_row=2)
    guard.prepare(network, parts)
    optimizer, seen = torch.optim.SGD(network.parameters(), 0.1), []
    for update, (image, gradient, stop) in enumerate(UPDATES):
        batch = Batch(torch.rand(4, 3, 2, 2), torch.arange(4) % 3, torch.arange(4) + 10 * rank)
        batch.image[2] += math.nan if image == rank else 0.0
        guard.before()
        before = copy.deepcopy(network.state_dict())
        step = Step(0, update, 0, network, network, 8)
        optimizer.zero_grad()
        result = run_step(parts, batch, step)
        for p in network.parameters():
            distributed.all_reduce(p.grad)
            p.grad[..., 0] += math.inf if gradient == rank else 0.0
        norms = torch._foreach_norm([p.grad for p in network.parameters()])
        verdict = guard.check(result, norms, stop=stop == rank)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if verdict.ok:
                optimizer.step()
            else:
                guard.act(verdict, result, step, parts, directory=directory)
                kept = all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
                assert kept, "a batch that is left out leaves no trace"
        seen.append((verdict.ok, verdict.stop, verdict.rank, str(caught[0].message) if caught else ""))
    guard = FiniteGuard()
    try:
        result.terms["cross_entropy"] = torch.tensor(math.nan if rank == 1 else 1.0)
        guard.act(guard.check(result, []), result, step, parts, directory=None)
    except NonFiniteError as error:
        seen.append(str(error))
    weights = [value.tolist() for value in network.parameters()]
    distributed.destroy_process_group()
    return seen, weights


def child(rank, rendezvous, directory, results):
    try:
        results.put((rank, train(rank, rendezvous, directory)))
    except BaseException as error:
        results.put((rank, error))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes saw, by rank, and the directory of saved batches."""
    directory = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [
        context.Process(target=child, args=(rank, directory / "rendezvous", directory, results), daemon=True)
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=60) for _ in processes)
    except queue.Empty:
        pytest.fail("the processes waited for each other: one of them decided otherwise")
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for outcome in found.values():
        if isinstance(outcome, BaseException):
            raise outcome
    return found, directory


def test_both_decide_alike(both):
    (one, weights_one), (two, weights_two) = (both[0][rank] for rank in range(WORLD))
    verdicts = [seen[:3] for seen in one[:-1]]
    assert verdicts == [seen[:3] for seen in two[:-1]]
    assert verdicts == [
        (True, False, None),
        (False, False, 1),
        (False, False, None),
        (True, True, None),
        (False, True, 0),
    ]
    assert weights_one == weights_two and all(math.isfinite(value) for row in weights_one[2] for value in row)


def test_the_process_with_the_bad_batch_is_named(both):
    found, directory = both
    assert "a term of process 1 (its own message names it) is not finite in epoch 0, update 1" in found[0][0][1][3]
    assert "The terms of this process are finite" in found[0][0][1][3]
    assert "the term cross_entropy is not finite in epoch 0, update 1" in found[1][0][1][3]
    assert "for samples 12 (1 in all)" in found[1][0][1][3] and "2 in a row" in found[1][0][2][3]
    assert all("the gradient norm is not finite" in found[rank][0][2][3] for rank in range(WORLD))
    assert "a term of process 1 (its own message names it) is not finite" in found[0][0][-1]
    assert "The outputs of the network are finite: the term itself is at fault" in found[1][0][-1]
    for rank in range(WORLD):
        saved = torch.load(directory / f"nonfinite_update_1_rank_{rank}.pt", weights_only=True)
        assert saved["indices"].tolist() == [10 * rank + i for i in range(4)]
