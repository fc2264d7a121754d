"""Two processes and one train the same network, on 21 samples in batches of 8, and measure and show the same.

In float64, where sums in another order differ by no more than 1e-9 on any CPU.
"""

import csv
import json
import re

import pytest
import torch
from processes import SAF, TINY, but, command, together

from recipes.checkpoints.load import CheckpointStore

pytestmark = pytest.mark.fault
#: 21 samples leave a last batch of 5: shares of 2 and 3.
WORDS = [
    *but([word for word in TINY if word != "callback=[]"], "data.limit_train=21"),
    "trainer.precision=64-true",
    "data.drop_last=false",
    "data.eval_batch_size=16",
]
MESA = ["regularizer=mesa", "regularizer.mesa.start_epoch=0", "regularizer.mesa.decay=0.9", "task.ema_decay=0.9"]
#: No term in the first epoch, so that it begins as the sum, with the hooks of the trainer.
ALIGNED = [*SAF, "gradient=aligned"]
CASES = {
    "saf": SAF,
    "mesa": [*MESA, "task.micro_batches=2", "task.clip_norm=1.0"],
    "sam": [*SAF, "gradient=sam", "gradient.rho=0.5", "task.micro_batches=2"],
    "aligned": [*ALIGNED, "task.micro_batches=2", "task.clip_norm=1.0"],
    "aligned by features": [*ALIGNED, "gradient.scope=feature"],
}
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module", params=list(CASES))
def runs(request, tmp_path_factory):
    """The run directories of one process and of two, and what the first process of each printed."""
    folder, texts = tmp_path_factory.mktemp("runs"), []
    for world in (1, 2):
        words = [*WORDS, *CASES[request.param], f"output={folder}", f"name=world_{world}"]
        ended = together(command, ["recipe=grocery_saf", *words], folder=folder, world=world)
        assert [process.code for process in ended] == [0] * world, ended[-1].text
        texts.append(ended[0].text)
    return folder / "grocery_saf" / "world_1", folder / "grocery_saf" / "world_2", texts


def rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if value and key not in TIMES}
            for row in csv.DictReader(file)
        ]


def test_metrics_are_equal(runs):
    one, two = (rows(run) for run in runs[:2])
    assert len(one) == 3 and [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-9, abs=1e-9)
    assert one[2]["update"] == 9


def test_the_loss_on_display_is_that_of_the_whole_batch(runs):
    """Of the last update of each epoch, a batch of 5 in shares of 2 and 3."""
    one, two = (re.findall(r"^epoch (\d)/3 .* loss ([\d.e+-]+)", text, re.MULTILINE) for text in runs[2])
    assert one == two and [epoch for epoch, _ in one] == ["1", "2", "3"]


def test_results_are_equal(runs):
    one, two = (json.loads((run / "results.json").read_text()) for run in runs[:2])
    assert two["test"] == pytest.approx(one["test"], rel=1e-9, abs=1e-9)
    assert two["parts"] == one["parts"] and two["split"] == one["split"]
    assert one["split"]["counts"] == {"train": 21, "val": one["split"]["counts"]["val"], "test": 21}
    assert (runs[1] / "report.html").stat().st_size > 1000


def test_weights_and_state_are_equal(runs):
    one, two = (CheckpointStore(run / "checkpoints").newest("last")[0] for run in runs[:2])
    assert one["training"]["task"].keys() == two["training"]["task"].keys()
    for name, value in one["training"]["task"].items():
        if "activity" not in name:  # each process counts its own
            torch.testing.assert_close(two["training"]["task"][name], value, rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-9, atol=1e-9)
    assert [len(one["processes"]), len(two["processes"])] == [1, 2]
    stores = [state for name, state in two["training"]["task"].items() if name.endswith("saf.written")]
    if stores:
        assert int((stores[0][0] == 2).sum()) == 21, "every sample of both processes has its row of the last epoch"
