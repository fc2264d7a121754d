"""An imbalanced set in a run: what is recorded, what a resume refuses, and that an evaluation sees the same samples."""

import json

import pytest
import torch
from tiny import TINY, but

import recipes
from datamodules.order import imbalance
from lightning_modules.evaluators.utilization import Utilization
from recipes.building.subject import source_of
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.evaluate import _subject
from recipes.processes.stop import Stopped

WORDS = [*but(TINY, "data.limit_train=null"), "backbone=test_efficientnet", "trainer.max_epochs=1", "evaluator=[]"]
WORDS += ["data.imbalance=exponential", "data.imbalance_ratio=20"]


def test_words():
    found = compose_config(["recipe=grocery_baseline", "data.imbalance=step", "data.imbalance_ratio=4"])["data"]
    assert (found["imbalance"], found["imbalance_ratio"]) == ("step", 4)
    with pytest.raises(ConfigError, match="imbalance_ratio=0.5 is out of range; allowed: imbalance_ratio >= 1"):
        compose_config(["recipe=grocery_baseline", "data.imbalance=step", "data.imbalance_ratio=0.5"])
    with pytest.raises(ConfigError, match="data.imbalance='linear' has the wrong type; allowed: "):
        compose_config(["recipe=grocery_baseline", "data.imbalance=linear"])
    with pytest.raises(ConfigError, match="data.imbalance_ratio=4 does nothing by itself"):
        recipes.build("grocery_baseline", ["data.imbalance_ratio=4"])


def test_a_run_records_its_counts_and_goes_on_with_them_alone(tmp_path, monkeypatch):
    run = recipes.build("grocery_baseline", [*WORDS, f"output={tmp_path}", "name=one", "stop_after=1"])
    with pytest.raises(Stopped):
        run.run()
    with pytest.raises(ConfigError, match="data.imbalance_ratio is 20 in the run and 10 now"):
        recipes.resume_run(run.directory, ["data.imbalance_ratio=10"])
    with monkeypatch.context() as patch:  # the same settings, and a code that draws otherwise
        draw = imbalance.drawn_rank
        patch.setattr(
            imbalance, "drawn_rank", lambda labels, index, seed, stream: draw(labels, index, seed + 1, stream)
        )
        with pytest.raises(ConfigError, match="the data have changed: imbalance: [0-9]+ before and now, but other sam"):
            recipes.resume_run(run.directory, ["stop_after=null"]).run()
    run = recipes.resume_run(run.directory, ["stop_after=null"])
    found = run.run()["split"]["imbalance"]
    expected = [int(25 * 20 ** (-label / 39) + 1e-9) for label in range(40)]
    assert found["profile"] == "exponential" and found["ratio"] == 20 and found["counts"]["kept"] == expected
    parts = zip(found["counts"]["train"], found["counts"]["val"], strict=True)
    assert [train + val for train, val in parts] == expected
    assert json.loads((run.directory / "results.json").read_text())["split"]["imbalance"] == found
    subject = _subject(str(run.directory), None, None, [], {})
    seen = torch.cat([b.index for b in source_of(Utilization(), subject, None, run.directory).data.train()])
    assert torch.equal(seen, run.data.train_index), "an evaluation that reads the training part reads the same samples"
