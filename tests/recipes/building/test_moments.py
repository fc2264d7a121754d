"""The moments of a part in a real run: when each comes, what it sees, and that what it leaves is in the checkpoint."""

import sys

import pytest
import torch
from tiny import TINY

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

PARTS = '''
import torch
from torch import Tensor
from kernels.batch import Step, Update
from lightning_modules.heads.linear import Linear
from lightning_modules.part import Regularizer

class Cut(Linear):
    """A head with a cut that validation decides."""
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.register_buffer("cut", torch.tensor(16))

class Probe(Regularizer):
    """Notes every moment."""
    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.register_buffer("means", torch.zeros(40))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(()))

    def prepare(self, data):
        self.calls.append("prepare")
        for batch in data.batches():
            self.means.index_add_(0, batch.label.to(data.device), batch.image.mean((1, 2, 3)).to(data.device))

    def begin(self, step):
        self.calls.append("begin")
        self.drawn.fill_(step.update + 1)

    def forward(self, outputs, batch, step):
        self.calls.append("forward")
        return 0.01 * outputs[self.view].class_scores.square().mean(1) * self.drawn / (1 + step.update)

    def commit(self, result: Update, step: Step) -> None:
        self.calls.append("commit")
        self.seen += result.losses["cross_entropy"].sum() + result.outputs["main"].logits.sum() * 0

    def validated(self, network, metrics):
        self.calls.append("validated")
        network.head.cut.fill_(step_of(metrics))
        metrics["val/cut"] = float(network.head.cut)

def step_of(metrics):
    return int(1000 * metrics["val/loss"])
'''


@pytest.fixture
def words(tmp_path, monkeypatch):
    name = f"moments_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}_pkg").mkdir()
    (tmp_path / f"{name}_pkg" / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    package = f"{name}_pkg"
    yield (
        package,
        [
            *TINY,
            "backbone=test_efficientnet",
            "data.limit_train=24",
            "trainer.max_epochs=2",
            "evaluator=[]",
            f"head={package}.parts.Cut",
            f"regularizer=[{package}.parts.Probe]",
            f"output={tmp_path}",
        ],
    )
    sys.modules.pop(f"{package}.parts", None)


def build(words, *more):
    package, common = words
    return recipes.build("grocery_baseline", [*common, *more], allow=[package])


def stored(run, name):
    return CheckpointStore(run.directory / "checkpoints").newest(name)[0]


@pytest.mark.parametrize("average", [[], ["task.ema_decay=0.9"]], ids=["plain", "average"])
def test_each_moment_comes_in_its_place(words, average):
    run = build(words, "name=whole", *average)
    run.run()
    probe = run.task.parts.regularizers["probe"]
    epoch = ["begin", "forward", "commit"] * 3 + ["validated"]
    assert probe.calls == ["prepare", *epoch, *epoch]
    labels = run.data.train_labels[run.data.train_index]
    assert ((probe.means > 0) == (labels.bincount(minlength=40) > 0)).all()
    best = stored(run, "best")
    cut = int(best["network"]["head.cut"])
    assert cut == int(1000 * best["metrics"]["val/loss"]) == best["metrics"]["val/cut"] != 16, "as the row says"


def test_what_the_moments_leave_is_resumed_exactly(words, tmp_path):
    whole = build(words, "name=whole")
    whole.run()
    broken = build(words, "name=broken", "stop_after=4")
    with pytest.raises(Stopped):
        broken.run()
    again = recipes.resume_run(broken.directory, ["stop_after=null"], allow=[words[0]])
    again.run()
    assert not (found := differing(stored(whole, "last"), stored(again, "last"))), found[:5]
    assert "prepare" not in again.task.parts.regularizers["probe"].calls, "never after a resume"
    assert torch.equal(again.task.parts.regularizers["probe"].means, whole.task.parts.regularizers["probe"].means)
