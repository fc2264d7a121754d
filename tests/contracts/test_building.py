"""Every YAML is found, has a contract here, and builds what its folder says."""

import inspect
from importlib import import_module

import pytest
from bench import (
    ALL,
    AROUND_A_STEP,
    BESIDE,
    EVALUATORS,
    PARTS,
    PARTS_OF_A_STEP,
    TRAINED,
    build,
    each,
    kinds,
    names,
)
from partners import PARTNERS, QUICK, command, configure, node, said

from recipes.configuration.catalogue import CONFIGS, header
from recipes.configuration.compose import compose_config
from recipes.configuration.kinds import check_callable, kinds_of
from recipes.configuration.signature import place_of, signature

AT_LEAST = {"loss": 16, "surgery": 6, "data": 14, "backbone": 8, "mixing": 3, "head": 3, "gradient": 3, "evaluator": 4}


def check_contracts(found):
    """Fail for a kind that no test of this folder would look at."""
    for kind in found:
        assert kind in (*PARTS_OF_A_STEP, *AROUND_A_STEP, *BESIDE), (
            f"write a contract for kind {kind}: its parts are in configs/{kind}/ and untested here; give it a seat in "
            "tests/contracts/bench.py (PARTS_OF_A_STEP, AROUND_A_STEP), or a file of its own here and a place in BESIDE"
        )


def test_every_kind_has_a_contract():
    check_contracts(kinds())
    for kind, least in AT_LEAST.items():
        assert len(names(kind)) >= least
    others = ("group", "recipe")  # they declare groups, and choose parts
    assert len(ALL) == len([path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in others]) >= 78
    assert {kind for kind, _ in [*TRAINED, *EVALUATORS]} | set(BESIDE) == set(kinds())


def test_the_first_part_of_a_new_kind_is_seen(tmp_path):
    for kind in ("attack", "recipe", "purification", "nothing_yet"):
        (tmp_path / kind).mkdir()
    for kind in ("attack", "recipe", "purification"):
        (tmp_path / kind / "first.yaml").write_text("_target_: a.b.C")
    assert kinds(tmp_path) == ["attack", "purification"]
    check_contracts(["attack"])
    with pytest.raises(AssertionError, match="write a contract for kind purification: .* give it a seat in"):
        check_contracts(kinds(tmp_path))


@each(ALL)
def test_makes_what_its_folder_says(kind, name):
    target = node(kind, name)["_target_"]
    module, _, made = target.rpartition(".")
    found = getattr(import_module(module), made)
    check_callable(found, kinds_of(kind), target)
    assert target.startswith(place_of(kind))
    # A function serves several YAMLs, each of which has the keys that mean something for it; a class has one.
    if inspect.isclass(found):
        assert set(signature(target)) == set(node(kind, name)) - {"_target_"}, "a key does not stand in the YAML"


@each([*PARTS, *EVALUATORS])
def test_the_file_of_a_part_has_its_name(kind, name):
    assert type(build(kind, name)).__module__.rpartition(".")[2] == name


@pytest.mark.parametrize("group", kinds())
def test_headers_are_words_of_the_command_line(group):
    """Beside the plainest recipe, partners and quick words compose to a valid configuration; each form once."""
    forms = {(said(PARTNERS, group, name) or [""])[0] + str(said(QUICK, group, name)): name for name in names(group)}
    for name in forms.values():
        fields = set(header(name, group)) - {PARTNERS, QUICK}
        assert not fields, f"configs/{group}/{name}.yaml: {fields} is no header of a part: partners or quick"
        if words := [*said(PARTNERS, group, name), *said(QUICK, group, name)]:
            root = ["data.root=x"] if "root" in node(group, name) else []
            compose_config(["recipe=grocery_baseline", *command([(group, name)]), *root])
            assert all("=" in word for word in words)


def test_partners_and_quick_words_are_put_where_they_belong():
    words = command([("regularizer", "saf"), ("loss", "arc_face")], ["head=linear", "backbone=conv4"])
    assert words == [
        "head=embedding",
        "backbone=conv4",
        "task=metric_learning",
        "evaluator=[retrieval]",
        "regularizer=[saf]",
        "loss=arc_face",
        "head.dim=8",
        "backbone.kwargs.channels=[4,8]",
        "regularizer.saf.start_epoch=0",
        "regularizer.saf.lag=1",
    ]
    nodes = configure(words)
    assert nodes["head"]["dim"] == 8 and nodes["backbone"]["kwargs"] == {"channels": [4, 8]}
    assert nodes["regularizer"]["saf"]["lag"] == 1 and node("regularizer", "saf")["lag"] == 3
    assert command([("head", "linear"), ("loss", "arc_face")])[-1] == "loss=arc_face", "what is chosen stays"
