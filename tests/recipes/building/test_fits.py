"""What cannot end well is refused before anything is trained, with the way out."""

from types import SimpleNamespace

import pytest
import torch
from tiny import but

import recipes
from lightning_modules.evaluators.classification import ClassificationEvaluator
from recipes.building import fits
from recipes.cli import evaluate
from recipes.configuration.problems import ConfigError

CONV = ["backbone=conv4", "backbone.kwargs.channels=[4,8]", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
METRIC = ["recipe=grocery_metrix", *CONV, "head.dim=8", "data.batch_size=40"]
PLAIN = ["recipe=grocery_baseline", *CONV]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*METRIC, "task=classification"], "validation classification reads class scores, and head Embedding gives"),
        (
            [*METRIC, "evaluator=[retrieval,classification]"],
            "classification reads class scores, and head Emb",
        ),
        ([*METRIC, "evaluator=[predict]"], "evaluator predict reads a folder of images without labels"),
        (
            [*PLAIN, "data=grocery_disjoint"],
            "validation classification compares with the classes of training, and the val part",
        ),
        (
            [*PLAIN, "data=grocery_disjoint", "data.val_fraction=0"],
            "classification compares with the classes of training, and the test part of this data has others",
        ),
        (
            but(METRIC, "data.batch_size=8", "data.samples_per_class=1"),
            "loss MultiSimilarity learns from two samples of a class",
        ),
        ([*METRIC, "data.limit_test=20"], "no test image has another of its class to find for retrieval"),
        (
            [*METRIC, "data.select_on=test_best", "data.limit_test=20", "evaluator=[]"],
            "no validation image has another of its class to find",
        ),
        ([*METRIC, "loss=proxy_nca_pp", "mixing.mode=feature", "mixing.top_k=1"], "mode=feature cannot mix pos_neg"),
        ([*METRIC, "loss=proxy_anchor", "mixing.mode=input", "mixing.top_k=1"], "mode=input cannot mix anc_neg"),
        ([*METRIC, "loss.memory=9", "mixing.mode=input", "mixing.top_k=1"], "mode=input has neither images nor maps"),
        (
            [*METRIC, "~mixing", "loss=info_nce", "loss.temperature=0"],
            "loss.temperature=0 is out of range; allowed: temperature > 0",
        ),
        (
            [*METRIC, "~mixing", "loss=info_nce", "loss.hard_fraction=2.0"],
            "loss.hard_fraction=2.0 is out of range; allowed: 0 < hard_fraction <= 1",
        ),
        (
            [*METRIC, "~mixing", "loss=sup_con", "loss.base_temperature=0"],
            "loss.base_temperature=0 is out of range; allowed: base_temperature > 0",
        ),
        ([*METRIC, "~mixing", "loss=arc_face", "loss.margin=4"], "loss.margin=4 is out of range; allowed: "),
        (
            [*METRIC, "~mixing", "loss=cos_face", "loss.margin=-1"],
            "loss.margin=-1 is out of range; allowed: margin >= 0",
        ),
        (
            [*METRIC, "~mixing", "loss=sphere_face", "loss.margin=0"],
            "loss.margin=0 is out of range; allowed: margin >= 1",
        ),
        ([*METRIC, "~mixing", "loss=unpg", "loss.margin=-1"], "loss.margin=-1 is out of range; allowed: margin >= 0"),
        ([*METRIC, "~mixing", "loss=unpg", "loss.margin_kind=arc_face", "loss.margin=4"], "loss: .*margin of arc_face"),
        (["recipe=grocery_baseline", "schedule.min_lr=0.1"], "schedule.min_lr=0.1 is above optimizer.lr=0.05"),
        ([*METRIC, "evaluator.retrieval.rerank={k1: 1}"], "k1 >= 2"),
        ([*METRIC, "evaluator.retrieval.num_queries=-1"], "num_queries=-1"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_it_is_refused_when_the_run_is_built(words, message):
    with pytest.raises(ConfigError, match=message):
        recipes.build(overrides=words)


def test_a_single_held_out_class_would_say_nothing():
    run = recipes.build(overrides=[*METRIC, "data.val_fraction=0.05"])
    assert len(run.data.classes_of("val")) == 2 and run.data.num_classes == 18


@pytest.mark.parametrize(("gallery", "found"), [([1, 2], True), ([2, 2], False)])
def test_a_query_is_found_by_its_class_in_the_gallery(gallery, found):
    labels = torch.tensor([0, 1, 0, *gallery])
    data = SimpleNamespace(labels_of=lambda part: labels)
    is_query = torch.tensor([True, True, True, False, False])
    assert fits._match(data, "test", torch.arange(5), is_query) is found
    assert fits._match(data, "test", torch.arange(5), None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = recipes.build(
        overrides=[*METRIC, "data.limit_train=80", "data.limit_test=60", "callback=[]", f"output={folder}"]
    )
    run.run()
    return run.directory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the head of this checkpoint gives an embedding and none; take evaluator=[retrieval]"),
        (["evaluator=[predict]", "data.root=."], "take evaluator=[retrieval]"),
        (["evaluator=[retrieval]", "evaluator.retrieval.index=ivf_pq"], "full_map=false"),
        (["evaluator=[retrieval]", "data.limit_test=20"], "none of 20 queries has a relevant item"),
    ],
)
def test_evaluations_that_cannot_be_leave_nothing(checkpoint, words, message, capsys):
    before = sorted((checkpoint / "evaluations").glob("*"))
    assert evaluate([f"checkpoint={checkpoint}", "device=cpu", *words]) == 2
    assert message in capsys.readouterr().err and sorted((checkpoint / "evaluations").glob("*")) == before


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indices_work_as_they_come(checkpoint, index, tmp_path, capsys):
    keys = [f"evaluator.retrieval.index={index}", "evaluator.retrieval.full_map=false"]
    words = [f"checkpoint={checkpoint}", "evaluator=[retrieval]", *keys, f"output={tmp_path / index}", "device=cpu"]
    assert evaluate(words) == 0 and "index_recall@1" in capsys.readouterr().out


def test_evaluating_needs_no_batch_of_training(checkpoint, tmp_path):
    words = [f"checkpoint={checkpoint}", "evaluator=[retrieval]", f"output={tmp_path / 'out'}", "device=cpu"]
    assert evaluate([*words, "data.batch_size=100000"]) == 0


def test_a_classifier_is_validated_and_selected_by_retrieval_of_its_features(tmp_path):
    """The README's words; the columns are those of two evaluators."""
    words = ["validation=[classification,embedding]", "select=[embedding/map@r]"]
    run = recipes.build(overrides=[*PLAIN, *words, "data.batch_size=40", f"output={tmp_path}", "callback=[]"])
    found = run.run()["val"]
    assert set(found) >= {"accuracy", "loss", "embedding/map@r", "embedding/recall@1"}
    assert run.task.validation.selecting == {"val/embedding/map@r": 1.0}


def test_images_smaller_than_an_evaluator_needs_are_refused(monkeypatch):
    """Before training, not after it."""
    monkeypatch.setattr(ClassificationEvaluator, "smallest_image", 64)
    with pytest.raises(ConfigError, match="evaluator classification needs images of at least 64 px a side, and .* 48"):
        recipes.build(overrides=PLAIN)
