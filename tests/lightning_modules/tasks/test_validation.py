"""Validation: columns by evaluator, what selects, and names that are refused before anything is trained."""

import math

import pytest

import recipes
from lightning_modules.evaluators.base import Evaluator, Measurement
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.evaluators.embedding import EmbeddingEvaluator
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.tasks.validation import Validation
from recipes.configuration.problems import ConfigError
from tests.recipes.tiny import TINY, but

BOTH = {"classification": ClassificationEvaluator(), "embedding": EmbeddingEvaluator()}


class Constant(Evaluator):
    """Gives these metrics, and remembers what was closed."""

    def __init__(self, closed, **metrics):
        self.closed, self.metrics = closed, metrics

    def begin(self, network, data):
        outer = self

        class Given(Measurement):
            def result(self):
                if not outer.metrics:
                    raise ValueError("nothing was measured here")
                return Evaluation(metrics=outer.metrics)

            def close(self):
                outer.closed.append(outer.metrics)

        return Given()


def test_columns_are_those_of_the_first_and_of_named_others():
    closed = []
    validation = Validation({"a": Constant(closed, x=1.0), "b": Constant(closed, x=2.0)}, ["-b/x", "x"])
    validation.begin(None, None)
    assert validation.columns() == {"val/x": 1.0, "val/b/x": 2.0} and len(closed) == 2
    assert validation.columns.__self__._under_way == {}
    assert validation.rank({"val/x": 3.0, "val/b/x": 2.0}) == (-2.0, 3.0)
    assert validation.rank({"val/x": 3.0}) is None and validation.rank({"val/x": 3.0, "val/b/x": math.nan}) is None


def test_one_that_fails_leaves_nothing_open():
    closed = []
    validation = Validation({"a": Constant(closed), "b": Constant(closed, x=2.0)}, [])
    validation.begin(None, None)
    with pytest.raises(ValueError, match="nothing was measured here"):
        validation.columns()
    assert closed == [{}, {"x": 2.0}]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (["--loss"], r"select=--loss: classification measures accuracy, loss, and no '-loss'"),
        ([""], "classification measures accuracy, loss, and no ''"),
        (["embedding/recall@2"], "embedding measures recall@1, .*, and no 'recall@2'"),
        (
            ["robustness/x"],
            "select=robustness/x: no evaluator robustness validates; there are classification, emb",
        ),
        (["accuracy", "-classification/accuracy"], "select names val/accuracy twice; it decides once"),
    ],
)
def test_names_that_nothing_measures(select, message):
    with pytest.raises(ValueError, match=message):
        Validation(BOTH, select)


@pytest.mark.parametrize("evaluator", ["classification", "embedding"])
def test_what_is_declared_is_what_is_measured(evaluator):
    words = but(TINY, "data.batch_size=10", "data.val_fraction=0.12", "data.limit_test=100")
    run = recipes.build("grocery_multi_similarity" if evaluator == "embedding" else "grocery_baseline", words)
    network, data = run.task.network.eval(), run.data
    validation = run.task.validation
    run.task.on_validation_start()
    for batch in data.val_dataloader():
        validation.add(batch, network(batch.image))
    measured = {name.removeprefix("val/") for name in validation.columns()}
    assert measured == set(validation.evaluators[evaluator].measures)


def test_a_selection_without_validation_images_is_refused():
    with pytest.raises(ConfigError, match="select has no effect without validation images"):
        recipes.build("grocery_baseline", [*but(TINY, "data.val_fraction=0"), "select=[accuracy]"])
    recipes.build("grocery_baseline", but(TINY, "data.val_fraction=0"))
