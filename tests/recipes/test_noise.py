"""Label noise in a run: what is recorded, what a resume refuses, and that an evaluation sees the same labels."""

import json

import pytest
import torch
from tiny import TINY

import recipes
from datamodules.labels.symmetric import Symmetric
from lightning_modules.evaluators.utilization import Utilization
from recipes.building.subject import source_of
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.evaluate import _subject
from recipes.processes.stop import Stopped

WORDS = [*TINY, "backbone=test_efficientnet", "data.limit_train=48", "trainer.max_epochs=2"]
WORDS += ["noise=symmetric", "noise.rate=0.5", "evaluator=[utilization]"]


@pytest.fixture
def stopped(tmp_path):
    """The directory of a run that was stopped after its first update."""
    run = recipes.build("grocery_baseline", [*WORDS, f"output={tmp_path}", "name=one", "stop_after=1"])
    with pytest.raises(Stopped):
        run.run()
    return run.directory


def test_no_noise_is_a_seat_that_stays_empty():
    config = compose_config(["recipe=grocery_baseline"])
    assert config.get("noise") is None
    with pytest.raises(ConfigError, match="noise.rate: no noise is chosen; choose one with noise=NAME"):
        compose_config(["recipe=grocery_baseline", "noise.rate=0.1"])
    with pytest.raises(ConfigError, match="noise.rate=2 is out of range; allowed: 0 <= rate <= 1"):
        compose_config(["recipe=grocery_baseline", "noise=symmetric", "noise.rate=2"])
    with pytest.raises(ConfigError, match="noise.validation=noisy: nothing is held out"):
        words = ["noise=symmetric", "noise.validation=noisy", "data.val_fraction=0"]
        recipes.build("grocery_baseline", words)


def test_a_run_records_its_noise_and_goes_on_with_that_alone(stopped, monkeypatch):
    with pytest.raises(ConfigError, match="noise.rate is 0.5 in the run and 0.4 now"):
        recipes.resume_run(stopped, ["noise.rate=0.4"])
    with monkeypatch.context() as patch:  # the same settings, and a code that draws otherwise
        original = Symmetric.apply
        patch.setattr(Symmetric, "apply", lambda self, labels, classes, seed: original(self, labels, classes, seed + 1))
        with pytest.raises(ConfigError, match="the data have changed: noise: "):
            recipes.resume_run(stopped, ["stop_after=null"]).run()
    run = recipes.resume_run(stopped, ["stop_after=null"])
    results = run.run()
    found = results["split"]["noise"]
    wrong = (run.data.train_labels != run.data.stored_labels)[run.data.train_index]
    assert found["measured"] == {"train": float(wrong.double().mean())} and 0.2 < found["measured"]["train"] < 0.8
    assert found["rate"] == 0.5 and found["include_true"] is False and found["validation"] == "clean"
    assert json.loads((stopped / "results.json").read_text())["split"]["noise"] == found
    subject = _subject(str(stopped), None, None, [], {})
    for batch in source_of(Utilization(), subject, None, stopped).data.train():
        assert torch.equal(batch.label, run.data.train_labels[batch.index]), "an evaluation sees the labels of the run"
        assert torch.equal(batch.clean_label, run.data.stored_labels[batch.index])
    assert _subject(str(stopped), None, {"_target_": "datamodules.sources.grocery.Grocery"}, [], {}).noise is None
