"""What README.md says of the parts is what configs/ holds."""

import re

from recipes.configuration.catalogue import CONFIGS
from recipes.configuration.signature import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ABSENT = TEXT.partition("## What is not there yet")[2].partition("\n## ")[0]


def options(group):
    """None for a group whose folder does not exist."""
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


def test_seats_and_their_parts_are_named():
    assert len(options("attack")) == 9 and "with nine attacks" in TEXT
    assert (options("gradient") == {"sum"}) == ("gradients other than the plain sum" in ABSENT)
    assert (options("reweighting") == {"uniform"}) == ("reweightings other than the plain mean" in ABSENT)


def test_every_evaluator_is_named():
    [sentence] = re.findall(r"^- Evaluators are (.*?)[.;:]$", ABSENT, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == options("evaluator")


def test_every_recipe_is_in_the_table():
    table = TEXT.partition("## Recipes")[2].partition("\n## ")[0]
    named = set[str]()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        names = re.findall(r"`(\w+\*?)`", row)
        stem = names[0].partition("_")[0] if not names[0].endswith("*") else ""
        starts = [name.removesuffix("_*") for name in names if name.endswith("*")]
        ends = [name for name in names if name.startswith("_")]
        named |= {start + end for start in starts for end in ends}
        named |= {name for name in names if not name.startswith("_") and not name.endswith("*")}
        named |= {stem + end for end in ends if not starts}
    assert named == options("recipe")


def test_losses_are_counted():
    others = {"cross_entropy", "binary_cross_entropy", "generalized_cross_entropy", "comp_sum", "logit_adjustment"}
    others |= {"trades", "mart"}
    assert len(options("loss") - others) == 14 and "fourteen losses on pairs and class vectors" in TEXT
