"""The resume contract over every YAML: a part or recipe added tomorrow is tested the moment its file exists."""

from contextlib import suppress

import pytest
from partners import QUICK, command, said
from tiny import TINY, but

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.catalogue import header, options
from recipes.configuration.compose import compose_config
from recipes.configuration.stages import compose_run
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault

#: Of any run: two epochs of three updates; of each class two validation images, so that embeddings can be retrieved.
WORDS = but(TINY, "data.limit_train=24", "trainer.max_epochs=2", "data.val_fraction=0.1", "evaluator=[]")
BASE = ["backbone=conv4", "evaluator=[]"]
#: Groups whose parts decide what training does. Others have tests of their own, or no state.
KINDS = (
    "attack",
    "gradient",
    "head",
    "loss",
    "mixing",
    "noise",
    "optimizer",
    "regularizer",
    "reweighting",
    "schedule",
    "surgery",
    "task",
)
PARTS = [(kind, name) for kind in KINDS for name in options(kind)]


def on_embedded_photographs():
    """Recipes that need no data of the user's, by their headers; configuration/test_compose.py holds these to it. Those
    of stages are resumed by test_stages.py."""
    return [
        name
        for name in options("recipe")
        if "(embedded)" in header(name)["data"] and "stages" not in compose_run([f"recipe={name}"])
    ]


def train(recipe, folder, name, words, *more):
    with suppress(Stopped):
        recipes.build(recipe, but(words, *WORDS, f"output={folder}", f"name={name}", *more)).run()
    return CheckpointStore(folder / recipe / name / "checkpoints").newest("last")[0]


def check(recipe, folder, words):
    """A stop in mid-epoch, and the rest; tests/recipes/running/test_resume.py stops everywhere and many times."""
    whole = train(recipe, folder, "whole", words)
    assert whole["update"] == 6
    assert train(recipe, folder, "broken", words, "stop_after=4")["update"] == 4
    recipes.resume_run(folder / recipe / "broken", ["stop_after=null"]).run()
    again = CheckpointStore(folder / recipe / "broken" / "checkpoints").newest("last")[0]
    assert not (found := differing(whole, again)), found[:5]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Words with a teacher in the place of ``teacher=REFERENCE``: a run of a few updates, which knows nothing yet."""
    folder = tmp_path_factory.mktemp("teacher")

    def replaced(words):
        if "teacher=REFERENCE" not in words:
            return words
        run = folder / "grocery_baseline" / "teacher"
        if not run.exists():
            train("grocery_baseline", folder, "teacher", BASE)
        rest = [word for word in words if word != "teacher=REFERENCE"]
        return [*rest, f"teacher={run}", "teaching=live", "teaching.check=false"]

    return replaced


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}/{name}" for kind, name in PARTS])
def test_every_part_resumes_exactly(kind, name, tmp_path, taught):
    check("grocery_baseline", tmp_path, taught(command([(kind, name)], BASE)))


@pytest.mark.parametrize("recipe", on_embedded_photographs())
def test_every_recipe_resumes_exactly(recipe, tmp_path):
    config = compose_config([f"recipe={recipe}"])
    quick = [word for name in config.get("regularizer", {}) for word in said(QUICK, "regularizer", name)]
    if config.get("reweighting"):
        quick += said(QUICK, "reweighting", config["reweighting"]["_target_"].split(".")[-2])
    pairs = ["data.samples_per_class=2"] if config["data"]["samples_per_class"] else []
    check(recipe, tmp_path, [*command([("backbone", "conv4")]), *pairs, *quick])


def test_the_contract_looks_at_what_is_there():
    assert len(PARTS) >= 34 and {"grocery_baseline", "grocery_saf", "grocery_mesa"} <= set(on_embedded_photographs())
