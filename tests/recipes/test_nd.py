"""ND in whole runs: through a projector, stopped and resumed bit for bit, exported, and what stands in its way."""

import json

import pytest
import torch
from resuming import last
from tiny import TINY, but

import recipes
from lightning_modules.class_means import load_class_means
from lightning_modules.frozen import state_digest
from lightning_modules.regularizers.nd import ND
from lightning_modules.weights_file import read_weights
from recipes.checkpoints.load import load_checkpoint
from recipes.cli import evaluate, export
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

SMALL = ["backbone=conv4", "backbone.kwargs.channels=[4,8]"]
PLUS = ["regularizer=[kd,nd]", "teaching=live", "teaching.check=false"]  # KD++


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    common = [*TINY, *SMALL, "data.limit_train=24", "trainer.max_epochs=2", "evaluator=[]", f"output={output}"]

    def make(name, *words):
        return recipes.build("grocery_baseline", but([*common, f"name={name}"], *words))

    make.output = output
    return make


@pytest.fixture(scope="module")
def teacher(build):
    """A run of a wider network than the students."""
    run = build("teacher", "seed=7", "backbone.kwargs.channels=[4,12]")
    run.run()
    return run.directory


@pytest.fixture(scope="module")
def whole(build, teacher):
    run = build("whole", *PLUS, f"teacher={teacher}", "evaluator=[classification,nearest_mean]")
    return run, run.run()


def test_it_is_resumed_bit_for_bit_and_its_means_are_never_taken_again(build, teacher, whole, monkeypatch):
    broken = build("broken", *PLUS, f"teacher={teacher}", "stop_after=4", "evaluator=[classification,nearest_mean]")
    with pytest.raises(Stopped):
        broken.run()

    def never(*given):
        raise AssertionError("a resumed run has the means in its state")

    monkeypatch.setattr(ND, "prepare", never)
    recipes.resume_run(broken.directory, ["stop_after=null"]).run()
    contents = [last(build.output, "grocery_baseline", name) for name in ("whole", "broken")]
    assert not (found := [line for line in differing(*contents) if "config" not in line]), found[:5]
    state = contents[0]["training"]["task"]
    assert state["parts.regularizers.nd.means.means"].shape == (40, 12)
    assert "parts.regularizers.nd.projector.linear.weight" in state
    files = [
        build.output / "grocery_baseline" / name / "parts" / "nd" / "class_means.safetensors"
        for name in ("whole", "broken")
    ]
    one, two = map(load_class_means, files)
    assert torch.equal(one.means, two.means) and torch.equal(one.counts, two.counts)
    assert (one.network, one.data) == (two.network, two.data)


def test_the_report_and_the_file(whole, teacher):
    run, results = whole
    assert results["parts"]["nd"]["projector_in"] == 8 and results["parts"]["nd"]["projector_out"] == 12
    row = dict(
        zip(*[line.split(",") for line in (run.directory / "metrics.csv").read_text().splitlines()[:2]], strict=True)
    )
    assert {"regularizer/nd/value", "regularizer/nd/cosine", "regularizer/nd/norm_ratio", "train/nd"} <= set(row)
    network = run.task.parts.networks["teacher"]
    found = load_class_means(
        run.directory / "parts" / "nd" / "class_means.safetensors",
        network=network.checksum(),
        data=run.data.key("train_eval"),
        width=12,
        num_classes=40,
    )
    with torch.no_grad():  # another way: all images at once, a loop over classes
        batches = list(run.data.train_eval_dataloader())
        features = torch.cat([network(batch.image).features for batch in batches]).double()
    label = torch.cat([batch.label for batch in batches])
    assert len(label) == 24 and int((found.counts == 0).sum()) > 0
    for c in label.unique():
        torch.testing.assert_close(found.means[c], features[label == c].mean(0), rtol=1e-6, atol=1e-7)


def test_nearest_mean_is_an_evaluator_of_a_run_and_of_a_backbone_without_classifier(whole, tmp_path):
    run, results = whole
    test = results["evaluators"]["nearest_mean"]
    assert 0 <= test["accuracy_low"] <= test["accuracy"] <= test["accuracy_high"] <= 1 and test["images"] == 8
    words = ["evaluator=[nearest_mean]", "device=cpu", "data=grocery", "data.limit_test=8", "data.limit_train=60"]
    words += ["evaluator.nearest_mean.save=true", "evaluator.nearest_mean.metric=euclidean"]
    assert evaluate(["backbone=test_resnet", *words, f"output={tmp_path / 'alone'}"]) == 0
    found = json.loads((tmp_path / "alone" / "results.json").read_text())["nearest_mean"]
    assert set(found) == {"accuracy", "accuracy_low", "accuracy_high", "images"} and found["images"] == 8
    kept = load_class_means(tmp_path / "alone" / "class_means.safetensors", num_classes=40)
    assert int(kept.counts.sum()) == 60 and len(kept.classes) == 40


def test_nearest_mean_of_other_classes_is_refused(build, tmp_path, capsys):
    with pytest.raises(ConfigError, match="evaluator nearest_mean compares with the classes of training, and the test"):
        recipes.build("grocery_multi_similarity", [*TINY[2:], *SMALL, "evaluator=[nearest_mean]", f"output={tmp_path}"])
    words = ["backbone=test_resnet", "evaluator=[nearest_mean]", "data=grocery_disjoint", f"output={tmp_path / 'x'}"]
    assert evaluate(words) != 0
    assert "compares with class means of training, and the test part of this data has other" in capsys.readouterr().err


def test_the_exported_student_has_no_projector(whole):
    run, _ = whole
    assert export([f"checkpoint={run.directory}"]) == 0
    assert not any("projector" in key for key in load_checkpoint(run.directory)["network"])
    (path,) = (run.directory / "export").glob("*.safetensors")
    shapes = {key: list(value.shape) for key, value in read_weights(path)[0].items()}
    assert shapes["linear.weight"] == [40, 8], "the classifier"
    assert not any(12 in shape for shape in shapes.values()), "nothing has the width of the teacher"


def test_weight_zero_is_training_without_it_bit_for_bit(build, teacher):
    words = ["teaching=live", "teaching.check=false", f"teacher={teacher}", "trainer.max_epochs=1"]
    off, plain = (
        build("off", *words, "regularizer=[kd,nd]", "regularizer.nd.weight=0"),
        build("kd", *words, "regularizer=[kd]"),
    )
    nets = []
    for run in (off, plain):
        run.run()
        nets.append(state_digest(run.task.network.state_dict()))
    assert nets[0] == nets[1] and not any("projector" in name for name, _ in off.task.named_modules())
    with_it = build("x", *words, "regularizer=[kd,nd]").task.network.state_dict()
    without = build("x", *words, "regularizer=[kd]").task.network.state_dict()
    assert state_digest(with_it) == state_digest(without), "the network starts as it does without a projector"


def test_what_is_refused_before_anything_is_trained(build, teacher):
    several = f"teacher=[{teacher},{teacher}]"
    with pytest.raises(ConfigError, match="nd reads the features of one teacher, and several have no features in comm"):
        build("x", *PLUS, several)
    with pytest.raises(ConfigError, match="nd takes the class means of 'average' once, and that network changes"):
        words = ["regularizer=[nd]", "regularizer.nd.teacher=average/main", "task.ema_decay=0.9"]
        build("x", *words)
    with pytest.raises(ConfigError, match=r"a batch of 1 image\(s\) .* leaves batch norm a single sample"):
        words = [*TINY, "backbone=test_vit", "data.limit_train=25", "data.drop_last=false", *PLUS]
        recipes.build("grocery_baseline", [*words, f"teacher={teacher}", f"output={build.output}"])
