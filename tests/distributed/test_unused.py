"""A parameter that gets no gradient: refused by name with several processes, or looked for at every step."""

import pytest
import torch
from processes import TINY, answer, but
from torch import nn

from lightning_modules.distributed import check_every_parameter_used

pytestmark = pytest.mark.fault


def with_unused(rank, folder, strategy):
    """A run whose network has a head that nothing reads."""
    import recipes

    words = but(TINY, "trainer.max_epochs=1", f"trainer.strategy={strategy}", f"output={folder}", "evaluator=[]")
    run = recipes.build("grocery_baseline", words)
    run.task.network.second_head = nn.Linear(4, 2)
    return answer(run)


def test_the_parameters_are_named(two, tmp_path):
    ended = two(with_unused, tmp_path, "ddp", limit_s=30)
    assert [process.code for process in ended] == [1, 1]
    named = "parameters without a gradient in update 0: network.second_head.weight, network.second_head.bias."
    assert any(named in process.text for process in ended), ended[0].text[-2500:] + ended[1].text[-2500:]
    assert any("trainer.strategy=ddp_find_unused_parameters_true" in process.text for process in ended)


def test_the_way_out(two, tmp_path):
    ended = two(with_unused, tmp_path, "ddp_find_unused_parameters_true")
    assert [process.code for process in ended] == [0, 0], ended[0].text


def test_many_names_are_cut():
    module = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(12))
    module[0].weight.grad = torch.zeros(1, 1)
    module[1].requires_grad_(False)
    check_every_parameter_used(module[:2], update=3)
    with pytest.raises(ValueError, match=r"in update 3: 2.weight, .*11.weight\."):
        check_every_parameter_used(module, update=3)
    module.append(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="11.weight and 2 more"):
        check_every_parameter_used(module, update=3)
