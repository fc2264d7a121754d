"""Recipe files, stored configurations and command-line words hold plain values: no resolvers, no bombs, no paths."""

import os
import shutil

import pytest
import yaml

import recipes.configuration.catalogue
import recipes.configuration.compose
import recipes.configuration.overrides
import recipes.configuration.recipe_file
from recipes.checkpoints.load import save_checkpoint
from recipes.checkpoints.stored import stored_config, without_download
from recipes.cli import evaluate, export
from recipes.configuration.compose import compose_config, to_yaml
from recipes.configuration.plain import MAX_CHARACTERS, brackets_open, read_yaml, value_problems
from recipes.configuration.problems import ConfigError
from recipes.report.run_files import read_run
from recipes.running.directory import read_status
from recipes.running.sweep import expand

pytestmark = pytest.mark.fault
HEAD = "# @package _global_\ndefaults:\n  - grocery_baseline\n"
BASELINE = yaml.safe_dump(compose_config(["recipe=grocery_baseline"]))
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def write_recipe(tmp_path, monkeypatch):
    """Writes a recipe file into a copy of configs/."""
    configs = tmp_path / "configs"
    shutil.copytree(recipes.configuration.catalogue.CONFIGS, configs)
    monkeypatch.setattr(recipes.configuration.catalogue, "CONFIGS", configs)
    return lambda name, text: (configs / "recipe" / f"{name}.yaml").write_text(text)


def problems(function, *arguments):
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    return "\n".join(error.value.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "seed: ${oc.env:SECRET_NUMBER}", r"only ${KEY} and ${GROUP.KEY} are replaced; resolvers such as"),
        (HEAD + "data:\n  root: ${oc.decode:'[1]'}", r"data.root: \"${oc.decode:'[1]'}\": only"),
        (HEAD + "data:\n  root: ${oc.select:seed}", "only ${KEY}"),
        (HEAD + "data:\n  root: ${oc.create:x}", "only ${KEY}"),
        (HEAD + "data:\n  root: ${hydra:runtime.cwd}", "only ${KEY}"),
        (HEAD + "data:\n  root: ${${x}:y}", "only ${KEY}"),
        (HEAD + "data:\n  root: \\${seed", "only ${KEY}"),
        (HEAD + "hydra:\n  searchpath: [file:///tmp]", "hydra (Hydra's own settings) is not part of a recipe"),
        (HEAD + "hydra:\n  callbacks:\n    x: {_target_: os.system, command: id}", "hydra (Hydra's own settings)"),
        (HEAD + "  - override /hydra/launcher: basic", "'override /hydra/launcher' is not 'override /GROUP'"),
        (HEAD + "  - override /hydra/sweeper: basic", "'override /hydra/sweeper' is not 'override /GROUP'"),
        (HEAD + "  - /../../../tmp/other", "'/../../../tmp/other' is no recipe; recipes are"),
        (HEAD + "  - override /data: ../../other", "data=../../other is not known. Allowed: cars, cifar10"),
        (HEAD + "  - override /data: ${oc.env:HOME}", "is not known. Allowed: cars, cifar10"),
        (HEAD + "  - override /regularizer@hydra.callbacks: saf", "is not 'override /GROUP'"),
        (HEAD + "output: /home/victim", "output (where runs are left) is not part of a recipe"),
        (HEAD + "name: ../../x", "name (the name of a run) is not part of a recipe"),
        (HEAD + "seed: 1\nseed: 2", "the key 'seed' is given twice"),
        (HEAD + LAUGHS, "anchors and aliases"),
        (HEAD + "x: " + "[" * 3000 + "]" * 3000, "nested more than 40 levels deep"),
        (HEAD + "optimizer:\n  lr: .nan", "optimizer.lr: nan is not a finite number"),
        (HEAD + "seed: !!python/object/apply:os.getcwd []", "the tag tag:yaml.org,2002:python/object/apply:os.getcwd"),
        (HEAD + f"seed: {'9' * 30}", "seed: the number does not fit into 64 bits"),
        (HEAD + f"seed: {'9' * 20_000}", "a value has more than 10,000 characters"),
        (HEAD + "data:\n  _recursive_: false", "data._recursive_ is not a key"),
        (HEAD + "loss:\n  _partial_: true", "loss._partial_ is not a key"),
        (HEAD + "loss:\n  _args_: [1]", "loss._args_ is not a key"),
        (HEAD + "regularizer:\n  ../x:\n    _target_: lightning_modules.losses.x.X", "../x: the name of a part"),
        ("# @package hydra\nseed: 1", "@package hydra: a recipe is # @package _global_"),
        ("# @package _global_\ndefaults: [evil]", "recipe evil builds on itself: evil -> evil"),
        ("- 1", "recipe evil must be a mapping of groups"),
    ],
)  # fmt: skip
def test_recipe_files_are_plain(write_recipe, monkeypatch, text, message):
    monkeypatch.setenv("SECRET_NUMBER", "41")
    write_recipe("evil", text)
    found = problems(compose_config, ["recipe=evil", "~regularizer"])
    assert message.replace('\\"', '"') in found and "41" not in found.replace("41.", "")


def test_a_recipe_is_checked_with_those_it_builds_on(write_recipe):
    write_recipe("base", HEAD + "data:\n  root: ${oc.env:HOME}")
    write_recipe("child", "# @package _global_\ndefaults: [base]")
    assert "recipe base: data.root" in problems(compose_config, ["recipe=child"])


def test_plain_interpolation_is_resolved_before_it_is_saved(write_recipe):
    write_recipe("fine", HEAD + "seed: 7\ndata:\n  split_seed: ${seed}")
    config = compose_config(["recipe=fine"])
    assert config["data"]["split_seed"] == 7 and "${" not in to_yaml(config)


@pytest.mark.parametrize("resolver", ["oc.env:HOME", "oc.decode:x", "oc.select:seed", "hydra:runtime.cwd"])
def test_the_command_line_has_no_resolvers_either(resolver):
    found = problems(compose_config, ["recipe=cifar_saf", f"data.root=${{{resolver}}}"])
    assert "only ${KEY} and ${GROUP.KEY} are replaced" in found and os.environ["HOME"] not in found


def test_hydra_settings_cannot_be_typed():
    for word in (
        "hydra.run.dir=/tmp/x",
        "hydra/launcher=basic",
        "hydra.searchpath=[file:///tmp]",
        "++hydra.job.name=x",
    ):
        assert "Hydra's own settings are not part of a run" in problems(compose_config, [word])


def content_of(**changes):
    sizes = {"image_size": 48, "resize_size": 48, "interpolation": "bicubic"}
    return {"config": BASELINE, "classes": ["a", "b"], "preprocessing": sizes, "network": {}} | changes


def test_what_is_stored_is_accepted():
    assert stored_config(content_of())["recipe"] == "grocery_baseline"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"seed": 0}}, "expected YAML text, got a dict"),
        ({"config": "x" * (MAX_CHARACTERS + 1)}, "at most 1,000,000 are read"),
        ({"config": LAUGHS}, "anchors and aliases"),
        ({"config": "[" * 100_000}, "nested more than 40 levels deep"),
        ({"config": "seed: 0\nseed: 0"}, "given twice"),
        ({"config": "seed: 2001-01-01"}, "no configuration of a run"),
        ({"config": "seed: true"}, "no configuration of a run"),
        ({"config": "seed: -1"}, "no configuration of a run"),
        ({"config": "seed: 0\nx: .inf"}, "x: inf is not a finite number"),
        ({"config": "seed: 0\nx: 2001-01-01"}, "a date is no plain value"),
        ({"config": "seed: 0\nx: ${oc.env:HOME}"}, "is an interpolation, and a stored configuration has none"),
        ({"config": "seed: 0\nx: ${seed}"}, "is an interpolation"),
        ({"config": 'seed: 0\nx: "\\0"'}, "holds a control character"),
        ({"config": f"seed: 0\nrecipe: {'x' * 200}"}, "is no name of a recipe"),
        ({"classes": "ab"}, "classes must be a list of 1 to 100,000 names, got ab"),
        ({"classes": []}, "classes must be a list"),
        ({"classes": ["a", 3]}, "class names are text of at most 1000 characters, got '3'"),
        ({"classes": ["a" * 2000]}, "class names are text"),
        ({"preprocessing": None}, "preprocessing must be a dict, got None"),
        ({"preprocessing": {}}, "preprocessing.image_size must be of type int, got 'None'"),
        ({"preprocessing": {"image_size": 10**9, "resize_size": 8, "interpolation": "x"}}, "must lie in 1..16384"),
        ({"preprocessing": {"image_size": True, "resize_size": 8, "interpolation": "x"}}, "must be of type int"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_form(changes, message):
    assert message in problems(stored_config, content_of(**changes))


@pytest.mark.parametrize(
    "text",
    ["[" * 50, "x: " + "[" * 3000 + "]" * 3000, "{" * 3000, "{a: " * 3000, "[[{" * 900, "- " * 3000, "? " * 3000],
    ids=lambda text: f"{text[:6]}_{len(text)}",
)  # fmt: skip
def test_our_limit_of_depth_comes_before_that_of_any_parser(text):
    with pytest.raises(ValueError, match="^nested more than 40 levels deep$"):
        read_yaml(text)


def test_forty_levels_are_read_and_other_mistakes_keep_their_reason():
    assert brackets_open("[" * 40 + "]" * 40) == 40 and brackets_open("[1], {}") == 1 and brackets_open("") == 0
    read_yaml("[" * 40 + "]" * 40)
    read_yaml("x: '" + "[" * 100 + "'")  # brackets of a text nest nothing
    with pytest.raises(ValueError, match="while parsing a flow node"):
        read_yaml("[" * 40)


@pytest.mark.parametrize("depth", [41, 3000])
def test_words_are_not_nested_without_bound(depth):
    word = f"optimizer.kwargs.x={'[' * depth}{']' * depth}"
    assert "nested more than 40 levels deep" in problems(compose_config, [word])
    assert "nested more than 40 levels deep" in problems(expand, ["seed=0,1", f"{word},1"])


def test_files_of_a_run_that_are_nested_thousands_deep(tmp_path):
    for name in ("status.json", "config.yaml", "results.json"):
        (tmp_path / name).write_text("[" * 100_000)
    assert read_status(tmp_path) == {}
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON"):
        read_run(tmp_path)
    (tmp_path / "results.json").unlink()
    assert read_run(tmp_path).recipe == tmp_path.parent.name


@pytest.mark.parametrize("program", [evaluate, export])
def test_the_commands_refuse_it(tmp_path, capsys, program):
    save_checkpoint(tmp_path / "evil.ckpt", content_of(config=LAUGHS))
    assert program([f"checkpoint={tmp_path / 'evil.ckpt'}", f"output={tmp_path / 'out.safetensors'}"]) == 2
    assert "anchors and aliases" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_a_stored_configuration_starts_no_download():
    assert without_download({"root": "data", "download": True}) == {"root": "data", "download": False}
    assert without_download({"root": "data"}) == {"root": "data"}


def test_plain_yaml_is_read_as_usual():
    text = "a: [1, 2.5, x, null, true]\nb: {c: '3'}\n"
    assert read_yaml(text) == yaml.safe_load(text) == {"a": [1, 2.5, "x", None, True], "b": {"c": "3"}}
    assert value_problems(read_yaml(text)) == []
