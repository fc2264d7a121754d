"""The collectives of the library between two processes, against what one process would have."""

import pytest
import torch
from processes import together

from kernels.batch import Step
from lightning_modules.distributed import average_over_processes, gather, gather_with_gradient, share_of
from lightning_modules.finite.check import Verdict, check_finite
from lightning_modules.regularizers.activity import Activity
from lightning_modules.step import StepResult

pytestmark = pytest.mark.fault


def collectives(rank, folder):
    """Rows in shares of unequal size, and means; what comes out is compared in the processes."""
    torch.distributed.init_process_group("gloo")
    whole = torch.arange(10.0).view(5, 2)
    mine = whole[rank * 5 // 2 : (rank + 1) * 5 // 2]
    assert len(mine) == 2 + rank and torch.equal(gather(mine, 5), whole)
    assert torch.equal(gather(whole[2 * rank : 2 * rank + 2], 4), whole[:4])
    tensors = [torch.full((2, 2), float(rank)), torch.full((3,), 4.0 * rank, dtype=torch.float64)]
    average_over_processes(tensors)
    assert tensors[0].eq(0.5).all() and tensors[1].eq(2.0).all() and tensors[1].dtype == torch.float64
    check_gradient(rank)
    check_activity(rank)
    check_verdict(rank)
    torch.distributed.destroy_process_group()


def check_gradient(rank):
    """Own rows get what both processes derive by them; the gradient that others hold is left as it was."""
    mine = torch.zeros(1 + rank, 2, requires_grad=True)
    beside = torch.zeros(3, 2, requires_grad=True)
    upstream = torch.arange(6.0).view(3, 2) + 10 * rank
    (gather_with_gradient(mine, 3) + beside).backward(upstream)
    assert torch.equal(mine.grad, (2 * torch.arange(6.0).view(3, 2) + 10)[slice(*share_of(3))])
    for held in (beside.grad, upstream):
        assert torch.equal(held, torch.arange(6.0).view(3, 2) + 10 * rank)


def check_verdict(rank):
    """Each has the loss of the whole batch, also a negative one, and a broken one does not hide who broke it."""
    terms = {"a": torch.tensor(1.5 + rank), "b": torch.tensor(-8.0, dtype=torch.float64)}
    assert check_finite(StepResult(terms=terms), []) == Verdict(True, False, None, 1.5 + 2.5 - 16.0)
    assert check_finite(StepResult(terms=terms), [], stop=rank == 1).stop
    broken = StepResult(terms={"a": torch.tensor(float("nan") if rank else 1.0)})
    verdict = check_finite(broken, [])
    assert not verdict.ok and verdict.rank == 1 and not check_finite(StepResult(terms=terms), [torch.tensor(1e400)]).ok


def check_activity(rank):
    """The term acts in the second process alone: both know of it once the epoch is over."""
    activity = Activity()
    for update, epoch in enumerate((0, 2, 2)):
        step = Step(epoch, update, 0, None, None, 4)
        activity.count(step, torch.full((2,), float(rank * epoch)))
        activity.commit(step)
    assert activity.acted() == (rank == 1)
    assert activity.read("mean", "share") == {"mean": pytest.approx(8 / 12), "share": 1.0}
    assert activity.acted() and activity.report() == {"first_active_epoch": 2, "active_step_share": 2 / 3}
    assert Activity().read("mean", "share")["mean"] == 0.0


def test_collectives(tmp_path):
    ended = together(collectives, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].text
