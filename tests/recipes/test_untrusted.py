"""A checkpoint from a stranger: what its YAML names is checked before anything is imported, built or run."""

import copy
import sys

import pytest
import yaml

from recipes.assemble import make, rebuild_network
from recipes.checkpoint import save_checkpoint
from recipes.cli import evaluate, export
from recipes.compose import compose_config
from recipes.signature import UnknownTarget, check_target, place_of
from recipes.validate import ConfigError, group_problems


@pytest.fixture
def attack(tmp_path):
    """(a script that leaves a marker, the marker, nodes that would run or import something)."""
    marker, script = tmp_path / "marker", tmp_path / "evil.py"
    script.write_text(f"open({str(marker)!r}, 'w').close()")
    nodes = {
        "sweep": {"_target_": "recipes.sweep.sweep", "program": str(script), "words": ["a=1"]},
        "import": {"_target_": "recipes.assemble.import_module", "name": "this"},
        "re-exported": {"_target_": "lightning_modules.backbones.timm_backbone.timm.create_model"},
        "imported name": {"_target_": "lightning_modules.backbones.timm_backbone.load_weights"},
        "private": {"_target_": "lightning_modules.backbones.timm_backbone._create", "name": "resnet18"},
        "path": {"_target_": f"lightning_modules.surgery.{tmp_path}/evil.run"},
        "another folder": {"_target_": "lightning_modules.finite.check_finite"},
        "trainer": {"_target_": "recipes.trainer.create_trainer", "max_epochs": 1},
        "nothing": {"_target_": 3},
    }
    return marker, nodes


NAMES = ["sweep", "import", "re-exported", "imported name", "private", "path", "another folder", "trainer", "nothing"]
SEATS = {
    "surgery": lambda config, node: config.update(surgery={"x": node}),
    "backbone": lambda config, node: config.update(backbone=node),
    "head": lambda config, node: config.update(head=node),
    "data": lambda config, node: config.update(data=node),
    "nested": lambda config, node: config["data"].update(augment=node),
    "in plain keys": lambda config, node: config["backbone"].update(kwargs={"deep": [{"x": node}]}),
    "as plain keys": lambda config, node: config["backbone"].update(kwargs=node),
    "as a number": lambda config, node: config["data"].update(batch_size=node),
    "unknown key": lambda config, node: config["head"].update(extra=node),
}


def crafted(folder, change):
    """A checkpoint whose stored configuration was changed; nothing else in it is ever reached."""
    config = compose_config(["recipe=grocery_baseline"])
    change(config)
    content = {"config": yaml.safe_dump(config), "classes": ["a", "b"], "network": {}, "preprocessing": {}}
    save_checkpoint(folder / "evil.ckpt", content)
    return [f"checkpoint={folder / 'evil.ckpt'}", f"output={folder / 'out.safetensors'}"], config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seat", SEATS)
def test_nothing_of_a_checkpoint_is_run(tmp_path, capsys, attack, seat, name):
    marker, nodes = attack
    words, config = crafted(tmp_path, lambda config: SEATS[seat](config, copy.deepcopy(nodes[name])))
    for program in (evaluate, export):
        assert program(words) == 2
        assert "in the configuration of the checkpoint" in capsys.readouterr().err
    if not seat.startswith(("data", "nested", "as a number")):
        with pytest.raises(
            ConfigError, match="not a part of this library|wrong type|must be|is not a key|defines|there is no"
        ):
            rebuild_network(config, 2, {})
    assert not marker.exists() and "this" not in sys.modules and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["sweep", "import", "re-exported", "imported name", "private", "path"])
def test_make_imports_nothing_that_is_no_part(attack, name):
    marker, nodes = attack
    with pytest.raises(ConfigError, match=r"is not a part of this library|defines no|there is no"):
        make(nodes[name])
    head = {"_target_": "lightning_modules.heads.linear.Linear", "bias": nodes[name]}
    with pytest.raises(ConfigError, match="bias=.* has the wrong type; allowed: bool"):
        make(head, 4, 2)
    assert not marker.exists() and "this" not in sys.modules


def test_make_keeps_to_the_folder_of_a_group():
    head = {"_target_": "lightning_modules.heads.linear.Linear"}
    assert make(head, 4, 2, group="head").num_classes == 2
    with pytest.raises(ConfigError, match=r"backbone: .* allowed here: lightning_modules\.backbones\.$"):
        make(head, 4, 2, group="backbone")
    with pytest.raises(ConfigError, match="part.in_features is not a key"):
        make({**head, "in_features": 4}, 4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(recipe="../../x"), "recipe='../../x' is no name of a recipe"),
        (lambda config: config.update(seed="x"), "no configuration of a run"),
        (lambda config: config.pop("head"), "head must be a part: a dict with _target_, got None"),
        (lambda config: config.update(surgery=["x"]), "surgery must hold parts by name"),
    ],
)
def test_other_damage(tmp_path, capsys, change, message):
    assert export(crafted(tmp_path, change)[0]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "!!python/object/apply:os.getcwd []", "5", "a: ${oc.env:HOME}"])
def test_text_that_is_no_configuration(tmp_path, capsys, text):
    save_checkpoint(tmp_path / "evil.ckpt", {"config": text, "classes": ["a"], "network": {}, "preprocessing": {}})
    assert evaluate([f"checkpoint={tmp_path / 'evil.ckpt'}"]) == 2
    assert "the checkpoint holds no configuration" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["data", "backbone", "head", "surgery", "loss", "mixing", "regularizer", "trainer"])
def test_places(group):
    places = {
        "data": "datamodules.",
        "surgery": "lightning_modules.surgery.",
        "loss": "lightning_modules.losses.",
        "mixing": "lightning_modules.mixing.",
        "trainer": "recipes.trainer.create_trainer",
    }
    assert place_of(group) == places.get(group, f"lightning_modules.{group}s.")
    with pytest.raises(UnknownTarget, match="is not a part of this library that can stand here; allowed here: "):
        check_target("recipes.trainer._quiet", place_of(group))


def test_the_shipped_configuration_passes():
    config = compose_config(["recipe=grocery_saf"])
    groups = ("data", "backbone", "head", "regularizer", "optimizer", "schedule", "trainer", "task", "loss")
    assert not [line for group in groups for line in group_problems(group, config[group])]
