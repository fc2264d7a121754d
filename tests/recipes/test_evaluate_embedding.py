"""``evaluate.py`` on networks that embed: a run on other classes, a backbone as it is."""

import json

import pytest

import recipes
import recipes.evaluate
from lightning_modules.network import Network
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


def test_embeddings_are_kept_for_the_next_command(run, tmp_path, monkeypatch):
    """Those of the same weights on the same data; other data, and other transforms, are embedded."""
    built, results = run
    forward, images = Network.forward, []

    def counting(self, image, *args, **keys):
        images.append(len(image) if len(image) > 1 else 0)  # one image is a probe
        return forward(self, image, *args, **keys)

    monkeypatch.setattr(Network, "forward", counting)

    def images_embedded(name, *words):
        images.clear()
        command = [f"checkpoint={built.directory}", f"output={tmp_path / name}", "device=cpu", *words]
        assert evaluate([*command, f"cache={tmp_path / 'kept'}"]) == 0
        return sum(images)

    both = "evaluator=[retrieval,utilization]"
    assert images_embedded("first", both) == 60 + 80
    assert images_embedded("second", both, "data.eval_batch_size=7") == 0
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert metrics(tmp_path / "first")["retrieval"] == pytest.approx(results["test"])
    assert images_embedded("third", "evaluator=[retrieval]", "data.limit_test=50") == 50
    assert images_embedded("fourth", both, "data.limit_train=40") == 40
    assert images_embedded("fifth", both, "data.augment.flip_prob=0.1") == 0, "which these parts do not show"
    assert not list((tmp_path / "kept").glob(".*")) and len(list((tmp_path / "kept").iterdir())) == 4


def test_a_cache_that_is_of_no_use_is_said(run, tmp_path, capsys):
    built, _ = run
    words = [f"checkpoint={built.directory}", f"output={tmp_path / 'out'}", "device=cpu"]
    with pytest.warns(UserWarning, match="cache=.* was not used: it keeps embeddings"):
        recipes.evaluate.evaluate_checkpoint(
            [],
            evaluator={"embedding": {"_target_": "lightning_modules.evaluators.embedding.EmbeddingEvaluator"}},
            checkpoint=str(built.directory),
            output=str(tmp_path / "out"),
            device="cpu",
            cache=str(tmp_path / "kept"),
        )
    (tmp_path / "file").write_text("")
    assert evaluate([*words, "evaluator=[retrieval]", f"cache={tmp_path / 'file'}"]) == 2
    assert "is no folder; name one, or one that does not exist yet" in capsys.readouterr().err


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
