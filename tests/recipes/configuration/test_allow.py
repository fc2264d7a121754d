"""Parts of a package of the user's own: used where the flag names it, refused everywhere else, never imported early."""

import re
import subprocess
import sys

import pytest
import yaml

import recipes
from recipes.building.make import build_network, make, maker
from recipes.checkpoints.load import save_checkpoint
from recipes.cli import evaluate, export, train
from recipes.configuration.allow import allow_words, allowed, allowing, take_allow
from recipes.configuration.compose import compose_config
from recipes.configuration.layers import key_of
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT

pytestmark = pytest.mark.fault
DOCUMENT = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
SMALL = ["recipe=grocery_baseline", "data.limit_train=80"]
PARTS = '''
import os
from pathlib import Path
from torch import Tensor
from kernels.batch import Output
from lightning_modules.heads.base import Head
from .losses import ScaledCrossEntropy
Path({marker!r}).touch()

class Mine(ScaledCrossEntropy):
    """Inherits its keys from a module beside it."""

class Own(Head):
    def __init__(self, in_features: int, num_classes: int, *, bias: bool = True) -> None:
        super().__init__(in_features, num_classes)

def remove(*positional: object, path: str = "") -> None:
    os.unlink(path)

class Unrelated:
    def __init__(self, *, path: str = "") -> None:
        os.unlink(path)

def _private() -> None: ...
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the example of the documentation, a name of its own for each test, and its import's marker."""
    name, marker = f"own_{tmp_path.name}".replace("-", "_"), tmp_path / "imported"
    folder = tmp_path / name
    folder.mkdir()
    [source] = re.findall(
        r"```python\n(from torch import Tensor\n.*?class ScaledCrossEntropy.*?)```", DOCUMENT, re.DOTALL
    )
    (folder / "losses.py").write_text(source)
    (folder / "parts.py").write_text(PARTS.format(marker=str(marker)))
    (folder / "broken.py").write_text("class Broken:\n  def __init__(self, *, x: int = 0): return (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name, marker


def problems(words, allow=()):
    with pytest.raises(ConfigError) as error, allowing(allow):
        compose_config(words)
    return "\n".join(error.value.problems)


def test_the_documented_example_trains(package):
    name, _ = package
    words = [f"loss={name}.losses.ScaledCrossEntropy", "loss.scale=2.0", *SMALL]
    run = recipes.build(None, words, allow=[name])
    assert run.config["loss"] == {"_target_": f"{name}.losses.ScaledCrossEntropy", "scale": 2.0}
    assert type(run.task.parts.loss).__name__ == "ScaledCrossEntropy" and run.task.parts.loss.scale == 2.0
    assert allowed() == ()


def test_the_command_line_takes_the_flag(package, capsys):
    name, marker = package
    words = [f"loss={name}.parts.Mine", "loss.scale=3.0", f"+regularizer={name}.parts.Mine", "--config"]
    for flag in (["--allow", name], [f"--allow={name}"]):
        assert train([*flag, *words]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["loss"] == {"_target_": f"{name}.parts.Mine", "scale": 3.0}
        assert config["regularizer"]["mine"] == {"_target_": f"{name}.parts.Mine"}
    assert not marker.exists(), "a configuration is checked without importing what it names"


def test_the_script_takes_it_in_another_process(package):
    name, _ = package
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--allow",
        name,
        f"loss={name}.losses.ScaledCrossEntropy",
        "--config",
    ]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0 and f"{name}.losses.ScaledCrossEntropy" in child.stdout, child.stderr


def test_without_the_flag_it_is_refused_and_not_imported(package, tmp_path, capsys, monkeypatch):
    name, marker = package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALLOW", name)
    hint = f"it is outside this library; if you trust it, add --allow {name}"
    assert hint in problems([f"loss={name}.parts.Mine"])
    assert hint in problems([f"loss._target_={name}.parts.Mine"])
    assert hint in problems([f"loss={name}.parts.Mine"], ["another_package"])
    assert hint in problems([f"loss={name}.parts.Mine"], [f"{name}.losses"])
    node = {"_target_": f"{name}.parts.Own"}
    with pytest.raises(ConfigError, match="add --allow"):
        make(node, 4, 2, group="head")
    config = {**compose_config(["recipe=grocery_baseline"]), "head": node, "allow": [name]}
    sizes = {"image_size": 48, "resize_size": 48, "interpolation": "bicubic"}
    content = {"config": yaml.safe_dump(config), "classes": ["a"], "network": {}, "preprocessing": sizes}
    save_checkpoint(tmp_path / "foreign.ckpt", content)
    assert evaluate([f"checkpoint={tmp_path / 'foreign.ckpt'}"]) == 2
    assert hint in capsys.readouterr().err and not marker.exists()
    assert evaluate([f"checkpoint={tmp_path / 'foreign.ckpt'}", "--allow", name]) == 2  # built, and without weights
    assert "does not fit its recipe's network" in capsys.readouterr().err and marker.exists()


@pytest.mark.parametrize("there", [True, False], ids=["package there", "package gone"])
def test_foreign_parts_of_training_are_nothing_to_evaluation_and_export(package, tmp_path, monkeypatch, there):
    """A checkpoint opens without the flag where its network and data are of this library; nothing else is imported."""
    name, marker = package
    config = compose_config(["recipe=grocery_baseline", "data.limit_test=41"])
    network, _ = build_network(config["backbone"], {}, config["head"], 40)
    data = make(config["data"], 0, group="data")
    data.setup()
    foreign = {"_target_": f"{name}.parts.Mine"}
    config |= {group: dict(foreign) for group in ("loss", "optimizer", "schedule", "trainer", "task", "mixing")}
    config |= {group: {"mine": dict(foreign)} for group in ("regularizer", "callback", "evaluator")}
    sizes = {"image_size": 48, "resize_size": 48, "interpolation": "bicubic"}
    content = {"config": yaml.safe_dump(config), "classes": list(data.classes), "network": network.state_dict()}
    save_checkpoint(tmp_path / "foreign.ckpt", {**content, "preprocessing": sizes})
    if there:
        monkeypatch.syspath_prepend(tmp_path)
    else:
        (tmp_path / name).rename(tmp_path / "elsewhere")
    words = [f"checkpoint={tmp_path / 'foreign.ckpt'}"]
    assert evaluate([*words, f"output={tmp_path / 'out'}", "device=cpu"]) == 0
    assert export([*words, f"output={tmp_path / 'out.safetensors'}"]) == 0
    assert not marker.exists() and not [module for module in sys.modules if module.startswith(name)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("parts.nothing", "defines no 'nothing'"),
        ("parts.os.unlink", "there is no .*was looked for on sys.path"),
        ("parts.os", "defines no 'os'"),
        ("parts._private", "is not a part of this library that can stand here"),
        ("nowhere.Mine", "was looked for on sys.path and in the folder this was started in"),
        ("broken.Broken", "is no Python source"),
        ("parts.Mine.scale", "there is no"),
    ],
)
def test_what_an_allowed_package_does_not_hold(package, target, message):
    name, marker = package
    assert re.search(message, problems([f"loss._target_={name}.{target}"], [name]))
    assert not marker.exists()


def test_keys_are_those_of_the_class(package):
    name, _ = package
    assert "loss.scal is not a key; did you mean loss.scale?" in problems(
        [f"loss={name}.parts.Mine", "loss.scal=1"], [name]
    )
    assert "allowed: float" in problems([f"loss={name}.parts.Mine", "loss.scale=x"], [name])


@pytest.mark.parametrize("target", ["remove", "Unrelated", "Own"])
def test_what_is_of_another_kind_is_not_called(package, tmp_path, target):
    name, _ = package
    victim = tmp_path / "victim"
    victim.touch()
    node = {"_target_": f"{name}.parts.{target}", **({} if target == "Own" else {"path": str(victim)})}
    with (
        allowing([name]),
        pytest.raises(ConfigError, match=r"makes no lightning_modules.part.Loss: a class derives from"),
    ):
        make(node, group="loss")
    assert victim.exists()


def test_our_own_functions_of_another_kind_are_not_called():
    node = {"_target_": "lightning_modules.backbones.small_stem.base_name"}
    with pytest.raises(ConfigError, match="makes no lightning_modules.backbones.timm_backbone.Backbone"):
        make(node, "resnet18", group="backbone")


def test_a_nested_part_is_of_the_annotated_class():
    data = compose_config(["recipe=grocery_baseline"])["data"]
    data["augment"] = {"_target_": "datamodules.sources.grocery.Grocery"}
    with pytest.raises(ConfigError, match="data.*makes no datamodules.augmentation.augment.BatchAugment"):
        make(data, 0, group="data")


def test_a_part_that_is_built_later_keeps_what_was_allowed(package):
    name, _ = package
    with allowing([name]):
        later = maker({"_target_": f"{name}.losses.ScaledCrossEntropy"}, "loss")
    assert allowed() == () and later().scale == 1.0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "'' is no package"),
        ("../x", "'../x' is no package; write --allow NAME"),
        ("a-b", "is no package"),
        ("_x", "is no package"),
        ("os", "the standard library holds no parts"),
        ("subprocess.run", "the standard library holds no parts"),
    ],
)
def test_words_that_name_no_package(capsys, word, message):
    assert train(["--allow", word, "--config"]) == 2
    assert message in capsys.readouterr().err


def test_words_of_the_flag():
    assert take_allow(["a=1", "--allow", "x", "--allow=y.z", "b=2"]) == (["x", "y.z"], ["a=1", "b=2"])
    assert take_allow(["--allow"]) == ([""], [])
    with allowing(["x"]), allowing(["y", "x"]):
        assert allow_words() == ["--allow=x", "--allow=y"]
    with pytest.raises(ConfigError, match=r"give a list of packages"), allowing("x"):
        pass
    assert key_of("p.ConfidencePenalty") == "confidence_penalty" and key_of("p.SAF") == "saf"
