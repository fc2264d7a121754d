"""Every YAML is found, has a contract here, and builds what its folder says."""

import pytest
from bench import CONTRACTS, EVALUATORS, KINDS, PARTS, build, kinds, nodes

AT_LEAST = {"loss": 16, "regularizer": 2, "mixing": 3, "head": 3, "gradient": 1, "reweighting": 1, "evaluator": 3}
CONFIGS_TO_FOLDERS = {"loss": "losses", "mixing": "mixing", "validation": "evaluators"}


def check_contracts(found):
    """Fail for a kind that no test of this file would look at."""
    for kind in found:
        assert kind in CONTRACTS, (
            f"write a contract for kind {kind}: its parts are in configs/{kind}/ and untested here"
        )


def test_every_kind_has_a_contract():
    check_contracts(kinds())
    assert set(AT_LEAST) <= set(kinds())


def test_the_first_part_of_a_new_kind_is_seen(tmp_path):
    for kind in ("attack", "data", "purification", "nothing_yet"):
        (tmp_path / kind).mkdir()
    for kind in ("attack", "data", "purification"):
        (tmp_path / kind / "first.yaml").write_text("_target_: a.b.C")
    assert kinds(tmp_path) == ["attack", "purification"]
    check_contracts(["attack"])
    with pytest.raises(AssertionError, match="write a contract for kind purification"):
        check_contracts(kinds(tmp_path))


@pytest.mark.parametrize("kind", sorted({*AT_LEAST, *KINDS}))
def test_every_yaml_of_a_kind_was_found(kind):
    assert len(nodes(kind)) >= AT_LEAST.get(kind, 1)
    listed = [name for other, name in [*PARTS, *EVALUATORS] if other == kind]
    assert sorted(nodes(kind)) == sorted(listed)


@pytest.mark.parametrize(("kind", "name"), [*PARTS, *EVALUATORS])
def test_builds_as_what_its_folder_says(kind, name):
    part = build(kind, name)
    assert isinstance(part, CONTRACTS[kind])
    assert type(part).__module__ == f"lightning_modules.{CONFIGS_TO_FOLDERS.get(kind, kind + 's')}.{name}"
