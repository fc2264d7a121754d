"""Two networks through the seats equal a plain loop, in pieces and in two processes."""

import pytest
import torch
import torch.distributed
from processes import together
from small_loss import expected, trained


def check(ours):
    theirs = expected()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_small_loss_selection_equals_a_plain_loop(micro_batches):
    check(trained(0, 1, micro_batches))


def child(rank):
    torch.distributed.init_process_group("gloo")
    for micro_batches in (1, 3):
        check(trained(rank, 2, micro_batches))
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.fault
def test_small_loss_selection_in_two_processes_equals_a_plain_loop(tmp_path):
    ended = together(child, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].text
