"""Recipes outside of the repository: a path in place of a name, under the same checks, and not needed again."""

import pytest
import yaml
from tiny import TINY

import recipes
from recipes.cli import train
from recipes.configuration.allow import allowing
from recipes.configuration.catalogue import CONFIGS
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped

TEXT = """
defaults:
  - grocery_baseline
  - override /backbone: test_efficientnet
  - override /loss: {loss}
  - override /regularizer: [saf, {term}]
  - override /evaluator: []

seed: 5
trainer:
  max_epochs: 2
data:
  limit_train: 24
regularizer:
  saf: {{lag: 1, start_epoch: 0}}
  smooth: {{weight: 1e-2}}
"""
EVALUATE = "recipes.evaluate.evaluate_checkpoint"
PARTS = '''
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Regularizer

class Mine(CrossEntropy):
    """Ours, from outside."""

class Smooth(Regularizer):
    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs, batch, step):
        return self.weight * outputs[self.view].logits.square().mean(1)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A recipe file and the package of its parts."""
    package = f"outside_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{package}.py").write_text(PARTS)
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.format(loss=f"{package}.Mine", term=f"{package}.Smooth"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return path, package


def problems(*words):
    with pytest.raises(ConfigError) as error:
        compose_config(words)
    return "\n".join(error.value.problems)


def test_it_composes_from_the_command_line(mine, capsys):
    path, package = mine
    for word in (f"recipe={path}", "recipe=mine.yaml", "recipe=./mine.yaml"):
        assert train([word, "--allow", package, "seed=6", "--config"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert (config["recipe"], config["seed"]) == ("mine", 6)
        assert config["loss"] == {"_target_": f"{package}.Mine"} and "label_smoothing" not in config["loss"]
        assert config["regularizer"]["smooth"] == {"_target_": f"{package}.Smooth", "weight": 0.01}
        assert config["backbone"]["name"] == "test_efficientnet" and config["regularizer"]["saf"]["lag"] == 1
    assert train([f"recipe={path}", "--config"]) == 2
    assert f"if you trust it, add --allow {package}" in capsys.readouterr().err


def test_a_run_needs_the_file_no_more(mine, tmp_path):
    path, package = mine
    words = [word for word in TINY if not word.startswith("callback")]
    run = recipes.build(str(path), [*words, "callback=[]", "output=runs", "name=trial", "stop_after=4"], [package])
    with pytest.raises(Stopped):
        run.run()
    assert run.directory.resolve() == tmp_path / "runs" / "mine" / "trial"
    path.unlink()
    again = recipes.resume_run(run.directory, ["stop_after=null"], [package])
    results = again.run()
    assert results["recipe"] == "mine" and results["updates"] == 6 and again.config["loss"] == run.config["loss"]


def test_two_parts_of_one_name(mine, tmp_path):
    _, package = mine
    (tmp_path / f"{package}.py").write_text(PARTS + "\n\nclass SAF(Smooth): ...\n")
    with allowing([package]):
        said = "regularizer: two parts are called saf; choose one of them, or rename your class"
        assert said in problems(f"regularizer=[saf,{package}.SAF]") and said in problems(f"+regularizer={package}.SAF")
        (tmp_path / "both.yaml").write_text(f"defaults:\n  - override /regularizer: [saf, {package}.SAF]")
        assert said in problems("recipe=both.yaml")
        assert compose_config([f"regularizer={package}.SAF"])["regularizer"]["saf"] == {"_target_": f"{package}.SAF"}


def test_a_backbone_from_outside_has_keys_of_its_own(mine):
    _, package = mine
    with allowing([package]):
        assert problems(f"backbone={package}.Mine", "backbone.x=1").startswith("backbone.x is not a key")
    assert compose_config(["checkpoint=x", "backbone=null"], "evaluate", EVALUATE).get("backbone") is None


def test_a_changed_file_is_read_again(mine, tmp_path):
    (tmp_path / "other.yaml").write_text("defaults: [grocery_saf]\nseed: 1")
    assert compose_config(["recipe=other.yaml"])["seed"] == 1
    (tmp_path / "other.yaml").write_text("defaults: [grocery_saf]\nseed: 2")
    assert compose_config(["recipe=other.yaml"])["seed"] == 2


def test_the_path_of_a_shipped_recipe_is_its_name():
    assert compose_config([f"recipe={CONFIGS / 'recipe' / 'cifar_saf.yaml'}"]) == compose_config(["recipe=cifar_saf"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("grocery_saf", "seed: 1", "grocery_saf is a recipe of this library; give the file another name, such as my_"),
        ("-x", "seed: 1", "'-x' names the folder of its runs; use letters, digits"),
        ("no", "seed: ${oc.env:HOME}", r"recipe no: seed: '${oc.env:HOME}': only ${KEY}"),
        ("no", "defaults: [mine.yaml]", "defaults: 'mine.yaml' is no recipe; recipes are cars_metrix"),
        ("no", "output: /x", "output (where runs are left) is not part of a recipe"),
        ("no", "seed: !!python/name:os.system x", "the tag tag:yaml.org,2002:python/name:os.system"),
        ("no", "defaults:\n  - override /loss: os.Mine", "loss=os.Mine is not known"),
    ],
)
def test_it_is_checked_as_shipped_ones_are(tmp_path, name, text, message):
    (tmp_path / f"{name}.yaml").write_text(text)
    assert message in problems(f"recipe={tmp_path / name}.yaml")


def test_a_path_without_a_file(tmp_path):
    assert "there is no such file; without .yaml it is the name of a recipe" in problems("recipe=nowhere/mine.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "there is no such file" in problems(f"recipe={tmp_path}/folder.yaml")
