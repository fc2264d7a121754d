"""A checkpoint from a stranger: what its YAML names is checked before anything is imported, built or run."""

import ast
import copy
import re
import sys

import pytest
import yaml

from recipes.building.make import make, rebuild_network
from recipes.checkpoints.load import save_checkpoint
from recipes.cli import evaluate, export
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT, UnknownTarget, check_target, place_of
from recipes.configuration.validate import group_problems

pytestmark = pytest.mark.fault


@pytest.fixture
def attack(tmp_path):
    """(a script that leaves a marker, the marker, nodes that would run or import something)."""
    marker, script = tmp_path / "marker", tmp_path / "evil.py"
    script.write_text(f"open({str(marker)!r}, 'w').close()")
    nodes = {
        "sweep": {"_target_": "recipes.running.sweep.sweep", "program": str(script), "words": ["a=1"]},
        "import": {"_target_": "recipes.building.assemble.import_module", "name": "this"},
        "re-exported": {"_target_": "lightning_modules.backbones.timm_backbone.timm.create_model"},
        "imported name": {"_target_": "lightning_modules.backbones.timm_backbone.load_weights"},
        "private": {"_target_": "lightning_modules.backbones.timm_backbone._start", "name": "resnet18"},
        "path": {"_target_": f"lightning_modules.surgery.{tmp_path}/evil.run"},
        "another folder": {"_target_": "lightning_modules.finite.check.check_finite"},
        "trainer": {"_target_": "recipes.processes.trainer.create_trainer", "max_epochs": 1},
        "nothing": {"_target_": 3},
    }
    return marker, nodes


NAMES = ["sweep", "import", "re-exported", "imported name", "private", "path", "another folder", "trainer", "nothing"]
BACKBONE = {"_target_": "lightning_modules.backbones.timm_backbone.create_backbone"}
SIZES = {"image_size": 48, "resize_size": 48, "interpolation": "bicubic"}
BASELINE = compose_config(["recipe=grocery_baseline"])
SEATS = {
    "surgery": lambda config, node: config.update(surgery={"x": node}),
    "backbone": lambda config, node: config.update(backbone=node),
    "head": lambda config, node: config.update(head=node),
    "noise": lambda config, node: config.update(noise=node),
    "data": lambda config, node: config.update(data=node),
    "nested": lambda config, node: config["data"].update(augment=node),
    "in plain keys": lambda config, node: config["backbone"].update(kwargs={"deep": [{"x": node}]}),
    "as plain keys": lambda config, node: config["backbone"].update(kwargs=node),
    "as a number": lambda config, node: config["data"].update(batch_size=node),
    "unknown key": lambda config, node: config["head"].update(extra=node),
}


def crafted(folder, change):
    """A checkpoint whose stored configuration was changed; nothing else in it is ever reached."""
    config = copy.deepcopy(BASELINE)
    change(config)
    content = {"config": yaml.safe_dump(config), "classes": ["a", "b"], "network": {}, "preprocessing": SIZES}
    save_checkpoint(folder / "evil.ckpt", content)
    return [f"checkpoint={folder / 'evil.ckpt'}", f"output={folder / 'out.safetensors'}"], config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seat", SEATS)
def test_nothing_of_a_checkpoint_is_run(tmp_path, capsys, attack, seat, name):
    marker, nodes = attack
    words, config = crafted(tmp_path, lambda config: SEATS[seat](config, copy.deepcopy(nodes[name])))
    for program in (evaluate, export) if seat == "nested" else (evaluate,):  # both read it with the same function
        assert program(words) == 2
        assert "in the configuration of the checkpoint" in capsys.readouterr().err
    if not seat.startswith(("noise", "data", "nested", "as a number")):
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
    assert re.search(r"the checkpoint .*evil.ckpt holds no configuration", capsys.readouterr().err)


@pytest.mark.parametrize("group", ["data", "backbone", "head", "surgery", "loss", "mixing", "regularizer", "trainer"])
def test_places(group):
    places = {
        "data": "datamodules.",
        "surgery": "lightning_modules.surgery.",
        "loss": "lightning_modules.losses.",
        "mixing": "lightning_modules.mixing.",
        "trainer": "recipes.processes.trainer.create_trainer",
    }
    assert place_of(group) == places.get(group, f"lightning_modules.{group}s.")
    with pytest.raises(UnknownTarget, match="is not a part of this library that can stand here; allowed here: "):
        check_target("recipes.processes.trainer._quiet", place_of(group))


def test_the_shipped_configuration_passes():
    config = compose_config(["recipe=grocery_saf"])
    groups = ("data", "backbone", "head", "regularizer", "optimizer", "schedule", "trainer", "task", "loss")
    assert not [line for group in groups for line in group_problems(group, config[group])]


def definitions(room):
    """Dotted paths of every public class and function at the top of a file of a room, and whether it is a function."""
    for path in sorted((ROOT / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "__" not in module:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    yield f"{module}.{node.name}", isinstance(node, ast.FunctionDef)


@pytest.mark.parametrize(("group", "room"), [("data", "datamodules"), ("task", "lightning_modules")])
def test_no_function_of_ours_can_be_called_but_those_that_make_the_part(group, room):
    functions = [target for target, is_function in definitions(room) if is_function]
    near = [target for target in functions if target.startswith(place_of(group))]
    assert len(functions) > 10 and near
    for target in functions:
        # Outside of the group's folder the place is refused; in it the schema, with needed keys missing, or the kind.
        refused = (
            r"makes no |must be given|return in \w+ cannot be resolved" if target in near else "can stand here; allowed"
        )
        with pytest.raises(ConfigError, match=refused):
            make({"_target_": target}, group=group)


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp",
        "https://x/y",
        "timm/resnet18",
        "../resnet18",
        "x:y",
    ],
)
def test_a_name_of_a_model_reaches_no_hub_and_no_folder(monkeypatch, tmp_path, capsys, name):
    for reader in ("load_model_config_from_hf", "load_model_config_from_path"):
        monkeypatch.setattr(f"timm.models._factory.{reader}", lambda *_, **__: pytest.fail("timm asked for the model"))
    words, config = crafted(tmp_path, lambda config: config.update(backbone={**BACKBONE, "name": name}))
    with pytest.raises(ValueError, match="hub and folder sources are not allowed"):
        rebuild_network(config, 2, {})
    assert evaluate(words) == 2 and "hub and folder sources are not allowed" in capsys.readouterr().err


@pytest.mark.parametrize("pretrained", [True, "/etc/passwd", "https://x/y.safetensors"])
def test_a_stored_backbone_reads_and_fetches_no_weights(monkeypatch, pretrained):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights were fetched"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("a file was read"))
    config = copy.deepcopy(BASELINE)
    config["backbone"] = {**BACKBONE, "name": "resnet18", "pretrained": pretrained}
    with pytest.raises(ValueError, match="does not fit its recipe's network .* is missing"):
        rebuild_network(config, 2, {})


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained"]
)
def test_arguments_of_the_model_name_no_file(key):
    config = copy.deepcopy(BASELINE)
    config["backbone"] = {**BACKBONE, "name": "resnet18", "kwargs": {key: "/etc/passwd"}}
    with pytest.raises(ValueError, match=f"backbone.kwargs.{key}='/etc/passwd' is not allowed"):
        rebuild_network(config, 2, {})
