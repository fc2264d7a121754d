"""Terms of distillation in two processes: gradients and state of the global batch."""

import pytest
import torch
from processes import saved

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.coefficients import reduce_terms
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.regularizers.crd import CRD
from lightning_modules.regularizers.dist import DIST
from lightning_modules.regularizers.dkd import DKD
from lightning_modules.regularizers.kd import KD
from lightning_modules.regularizers.rkd import RKD

pytestmark = pytest.mark.fault
MAKE = {
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "rkd": RKD,
    "standardized": lambda: DIST(standardize=True),
    "normalized": lambda: RKD(normalize="both"),
    "crd": lambda: CRD(dim=4, num_negatives=6),
}
SIZE, CLASSES = 9, 3  # shares of 4 and 5


class Net(torch.nn.Module):
    """Features of three numbers, and a classifier."""

    gives = frozenset({"logits", "features"})

    def __init__(self, seed, width):
        super().__init__()
        torch.manual_seed(seed)
        self.num_features = width
        self.body = torch.nn.Linear(3, width).double()
        self.classifier = torch.nn.Linear(width, CLASSES).double()

    def forward(self, x):
        features = self.body(x).tanh()
        return Output(features=features, logits=self.classifier(features))


def two_updates(name, rank, world):
    """Gradients of network and term after each of two updates, summed over the processes, and the state."""
    net, teacher, term = Net(1, 5), Net(2, 7), MAKE[name]()
    networks = {"teacher": teacher.requires_grad_(False)}
    parts, found = Parts(CrossEntropy(), {"term": term}, networks=networks).double(), []
    parts.setup(Context(CLASSES, 40, 5, 5, net, networks=networks))
    parts.double()
    for update in range(2):
        torch.manual_seed(10 + update)
        x, index = torch.randn(SIZE, 3, dtype=torch.float64), torch.randperm(40)[:SIZE]
        mine = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
        batch = Batch(torch.zeros(len(index[mine]), 3, 1, 1), index[mine] % CLASSES, index[mine])
        outputs = {"main": net(x[mine]), "teacher/main": teacher(x[mine])}
        step = Step(0, update, 0, net, None, SIZE)
        total = reduce_terms(parts, {}, {}, outputs, batch, step)["term"]
        parameters = [p for p in (*net.parameters(), *term.parameters())]
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        values = [
            total.detach(),
            *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)),
        ]
        for value in values:
            if world > 1:
                torch.distributed.all_reduce(value)
        term.commit(Update({view: output.detach() for view, output in outputs.items()}, batch), step)
        found.append(values)
    state = {key: value for key, value in term.state_dict().items() if "activity" not in key}
    return found, [*state.values()], term.end_epoch()["value"]


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    return saved(two_updates, list(MAKE), tmp_path_factory.mktemp("terms"))


@pytest.mark.parametrize("name", list(MAKE))
def test_two_processes_are_one(in_two, name):
    one, state, mean = two_updates(name, 0, 1)
    assert all(bool(value.any()) for values in one for value in values[:2]), "nothing to compare"
    for two, other, of_two in in_two[name]:
        for ours, theirs in zip(two, one, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        for a, b in zip(other, state, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert of_two == pytest.approx(mean, rel=1e-9)
    assert name != "crd" or len(state) >= 7, "banks, constants and labels"
