"""``evaluate.py`` on networks that embed: a run on other classes, a backbone as it is."""

import json

import pytest

import recipes
from recipes.cli import evaluate

TINY = [
    "recipe=grocery_multi_similarity",
    "backbone=conv4",
    "backbone.kwargs.channels=[4,8]",
    "head.dim=6",
    "data.limit_train=80",
    "data.limit_test=60",
    "data.batch_size=20",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "callback=[]",
    "evaluator=[retrieval,utilization]",
]
SMALL = ["data=grocery_disjoint", "data.limit_test=60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    built = recipes.build(overrides=[*TINY, f"output={tmp_path_factory.mktemp('runs')}", "name=run"])
    return built, built.run()


def metrics(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_reports_retrieval_as_its_test(run):
    built, results = run
    test = results["test"]
    assert 0 <= test["map@r"] <= test["r_precision"] <= 1 and test["recall@1"] == test["precision@1"]
    assert results["test"]["queries"] == 60 and set(results["val"]) >= {"recall@1", "map@r", "uniformity", "tolerance"}
    assert (
        results["evaluators"]["utilization"]["utilization_mixed"] <= results["evaluators"]["utilization"]["utilization"]
    )
    assert results["split"]["classes"] == {"train": 16, "val": 4, "test": 20}
    page = (built.directory / "report.html").read_text()
    assert "Worst queries" in page and "Embedding" in page


def test_the_checkpoint_gives_the_same_numbers(run, tmp_path):
    built, results = run
    output = tmp_path / "again"
    words = [f"checkpoint={built.directory}", "evaluator=[retrieval]", f"output={output}", "device=cpu"]
    assert evaluate(words) == 0
    assert metrics(output)["retrieval"] == pytest.approx(results["test"]) and (output / "report.html").is_file()


def test_it_is_read_on_a_set_with_other_classes(run, tmp_path):
    """Retrieval needs no class of training; classification does."""
    built, _ = run
    words = [f"checkpoint={built.directory}", "data=grocery", "data.limit_test=80", "device=cpu"]
    assert evaluate([*words, "evaluator=[retrieval]", f"output={tmp_path / 'other'}"]) == 0
    assert metrics(tmp_path / "other")["retrieval"]["queries"] == 80
    assert evaluate([*words, "evaluator=[classification]", f"output={tmp_path / 'none'}"]) == 2
    assert not (tmp_path / "none").exists()


def test_a_backbone_as_it_is(tmp_path, capsys):
    words = ["backbone=conv4", "evaluator=[retrieval]", "device=cpu", *SMALL]
    assert evaluate([*words, f"output={tmp_path / 'frozen'}"]) == 0
    assert metrics(tmp_path / "frozen")["retrieval"]["queries"] == 60
    assert "retrieval: recall@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone=conv4", "evaluator=[retrieval]"], "backbone=NAME needs data=NAME"),
        (["backbone=conv4", "checkpoint=x"], "give either checkpoint=PATH or backbone=NAME"),
        (["backbone=conv4", "evaluator=[classification]", *SMALL], "a backbone alone knows no classes"),
        (["backbone=conv4", "evaluator=[predict]", *SMALL], "a backbone alone predicts no classes"),
        (["backbone=conv5", "evaluator=[retrieval]", *SMALL], "backbone"),
    ],
)
def test_what_cannot_be_evaluated(words, message, tmp_path, capsys):
    assert evaluate([*words, f"output={tmp_path / 'out'}", "device=cpu"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
