"""The resume contract over every YAML: a part or recipe added tomorrow is tested the moment its file exists."""

from contextlib import suppress

import pytest
import yaml
from tiny import TINY, but

import recipes
from recipes.catalogue import CONFIGS, header, holds_several, options
from recipes.checkpoint import CheckpointStore
from recipes.compose import compose_config
from recipes.make import make
from recipes.self_check import differing
from recipes.stages import compose_run
from recipes.stop import Stopped

pytestmark = pytest.mark.fault

WORDS = [*TINY, "data.limit_train=24", "trainer.max_epochs=2", "evaluator=[]"]
SMALL = {"backbone": "backbone=test_efficientnet", "schedule": "schedule.warmup_fraction=0.2"}
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
)
PARTS = [(kind, name) for kind in KINDS for name in options(kind)]
#: The words that let a part act in two short epochs, where its own defaults are made for long runs.
EARLY = {"start_epoch": 0, "lag": 1}


def words_of(kind, name):
    """The command line that puts a part into the plainest recipe."""
    node = yaml.safe_load((CONFIGS / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    path = f"{kind}.{name}" if holds_several(kind) else kind
    own = node if "_target_" in node else node[name]
    early = [f"{path}.{key}={value}" for key, value in EARLY.items() if key in own]
    chosen = f"{kind}=[{name}]" if holds_several(kind) else f"{kind}={name}"
    return [SMALL["backbone"], chosen, *early, *_companions(kind, name, own)]


def _companions(kind, name, own):
    """What a part that trains an embedding, or mixes pairs of them, needs beside it."""
    part = make(own, *((4, 4) if kind == "head" else ())) if kind in ("loss", "head", "mixing") else None
    embeds = "embedding" in getattr(part, "needs", ()) or (kind == "head" and "logits" not in part.gives)
    words = {"head": "head=embedding", "loss": "loss=contrastive", "task": "task=metric_learning"}
    words["data"] = "data.val_fraction=0.1"  # two of a class at least, to be retrieved
    return [word for group, word in words.items() if group != kind] if embeds else []


def on_embedded_photographs():
    """Recipes that need no data of the user's, by their headers; tests/recipes/test_compose.py holds these to it. Those
    of stages are resumed by tests/recipes/test_stages.py."""
    return [
        name
        for name in options("recipe")
        if "(embedded)" in header(name)["data"] and "stages" not in compose_run([f"recipe={name}"])
    ]


def train(recipe, folder, name, words, *more):
    with suppress(Stopped):
        recipes.build(recipe, but(WORDS, *words, f"output={folder}", f"name={name}", *more)).run()
    return CheckpointStore(folder / recipe / name / "checkpoints").newest("last")[0]


def check(recipe, folder, words):
    """A stop in mid-epoch, and the rest; tests/recipes/test_resume.py stops everywhere and many times."""
    whole = train(recipe, folder, "whole", words)
    assert whole["update"] == 6
    assert train(recipe, folder, "broken", words, "stop_after=4")["update"] == 4
    recipes.resume_run(folder / recipe / "broken", ["stop_after=null"]).run()
    again = CheckpointStore(folder / recipe / "broken" / "checkpoints").newest("last")[0]
    assert not (found := differing(whole, again)), found[:5]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}/{name}" for kind, name in PARTS])
def test_every_part_resumes_exactly(kind, name, tmp_path):
    check("grocery_baseline", tmp_path, words_of(kind, name))


@pytest.mark.parametrize("recipe", on_embedded_photographs())
def test_every_recipe_resumes_exactly(recipe, tmp_path):
    config = compose_config([f"recipe={recipe}"])
    regularizers = config.get("regularizer", {})
    early = [
        f"regularizer.{name}.{key}={value}"
        for name, node in regularizers.items()
        for key, value in EARLY.items()
        if key in node
    ]
    pairs = ["data.samples_per_class=2"] if config["data"]["samples_per_class"] else []
    check(recipe, tmp_path, [SMALL["backbone"], *pairs, *early])


def test_the_contract_looks_at_what_is_there():
    assert len(PARTS) >= 34 and {"grocery_baseline", "grocery_saf", "grocery_mesa"} <= set(on_embedded_photographs())
