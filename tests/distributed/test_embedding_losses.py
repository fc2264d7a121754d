"""Losses on pairs in two processes: loss and gradients of the global batch, with mixed pairs and a memory."""

import csv
import json

import pytest
import torch
from processes import TINY, but, command, saved, together

from kernels.batch import Batch, Output, Step, Update
from kernels.mixed_pairs import MixedPairs
from lightning_modules.coefficients import reduce_terms
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.lifted import Lifted
from lightning_modules.losses.multi_similarity import MultiSimilarity
from lightning_modules.losses.proxy_anchor import ProxyAnchor
from lightning_modules.losses.proxy_nca_pp import ProxyNCAPP
from lightning_modules.losses.sup_con import SupCon
from lightning_modules.losses.triplet import Triplet
from lightning_modules.losses.unpg import UNPG
from lightning_modules.part import Context
from lightning_modules.parts import Parts

pytestmark = pytest.mark.fault
MAKE = {
    "multi_similarity": MultiSimilarity,
    "remembering": lambda: MultiSimilarity(memory=7),
    "contrastive": Contrastive,
    "nonzero": lambda: Contrastive(distance="l2", over="nonzero", memory=7),
    "triplet": lambda: Triplet(over="nonzero"),
    "lifted": Lifted,
    "sup_con": SupCon,
    "proxy_anchor": ProxyAnchor,
    "proxy_nca_pp": ProxyNCAPP,
    "unpg": UNPG,
}
SIZE, CLASSES = 9, 3  # shares of 4 and 5


class Net(torch.nn.Module):
    """A linear embedding of three numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.head = torch.nn.Linear(3, 5).double()
        self.head.embedding_dim = 5


def two_updates(name, rank, world):
    """Gradients of network and loss after each of two updates, summed over the processes, and the loss."""
    net, loss = Net(), MAKE[name]()
    loss.setup(Context(CLASSES, 40, 5, 5, net))
    parts, found = Parts(loss.double()), []
    for update in range(2):
        torch.manual_seed(10 + update)
        x, y = torch.randn(SIZE, 3, dtype=torch.float64), torch.arange(SIZE) % CLASSES
        mine = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
        mixed = {"mixed_pairs": MixedPairs("pos_neg", 0.3, 0.4)} if loss.pair_form is not None else {}
        batch = Batch(torch.zeros(len(y[mine]), 3, 1, 1), y[mine], y[mine], extra=mixed)
        outputs = {"main": Output(embedding=net.head(x[mine]))}
        step = Step(0, update, 0, net, None, SIZE)
        total = sum(reduce_terms(parts, loss(outputs, batch, step), {}, outputs, batch, step).values())
        parameters = [*net.parameters(), *loss.parameters()]
        values = [total.detach(), *torch.autograd.grad(total, parameters)]
        for value in values:
            if world > 1:
                torch.distributed.all_reduce(value)
        loss.commit(Update({"main": outputs["main"].detach()}, batch), step)
        found.append(values)
    return found, [value for value in loss.state_dict().values()]


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    return saved(two_updates, list(MAKE), tmp_path_factory.mktemp("losses"))


@pytest.mark.parametrize("name", list(MAKE))
def test_two_processes_are_one(in_two, name):
    loss = MAKE[name]()
    one, state = two_updates(name, 0, 1)
    assert all(bool(value.any()) for values in one for value in values[:2]), "nothing to compare"
    for two, other in in_two[name]:
        for ours, theirs in zip(two, one, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        for a, b in zip(other, state, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert loss.gathers or loss.per_sample


WORDS = [
    *(word for word in but(TINY, "trainer.max_epochs=2", "data.limit_test=51") if "val_fraction" not in word),
    "recipe=grocery_metrix",
    "data.samples_per_class=2",
    "head.dim=8",
    "loss.memory=12",
    "backbone.pretrained=false",
    "trainer.precision=64-true",
]


def test_a_run_in_two_processes_is_that_of_one(tmp_path):
    """Training, validation and test: batches of 8 in shares of 4, 51 test images in shares of 25 and 26."""
    rows, tests = [], []
    for world in (1, 2):
        words = [*WORDS, f"output={tmp_path}", f"name=world_{world}"]
        ended = together(command, words, folder=tmp_path, world=world)
        assert [process.code for process in ended] == [0] * world, ended[-1].text
        run = tmp_path / "grocery_metrix" / f"world_{world}"
        with open(run / "metrics.csv", newline="") as file:
            found = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        rows.append([{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found])
        tests.append(json.loads((run / "results.json").read_text())["test"])
    sampled = ("val/uniformity", "val/tolerance")  # of the images of the first process
    for one, two in zip(*rows, strict=True):
        assert {k: v for k, v in two.items() if k not in sampled} == pytest.approx(
            {k: v for k, v in one.items() if k not in sampled}, rel=1e-9, abs=1e-9
        )
    assert tests[1] == pytest.approx(tests[0], rel=1e-9, abs=1e-9) and tests[0]["queries"] == 51
