"""The command line's grammar: what composes to what, and every message for what does not."""

import copy

import pytest
import yaml

from recipes.configuration.catalogue import CONFIGS, groups, header, is_backbone, options
from recipes.configuration.compose import compose_config, to_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import UnknownTarget, root_signature, signature
from recipes.configuration.validate import problems_of

RECIPES = options("recipe")
FILES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in ("recipe", "group"))


def problems(*words):
    with pytest.raises(ConfigError) as error:
        compose_config(words)
    return error.value.problems


def test_everything_under_configs_was_seen():
    assert len(RECIPES) >= 8 and len(FILES) >= 35
    read = len(FILES) + len(RECIPES) + len(options("group")) + 4  # the roots
    assert read == len(list(CONFIGS.rglob("*.yaml"))), "a YAML lies where nothing reads it"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_compose_and_say_what_they_are(recipe):
    config = compose_config([f"recipe={recipe}"])
    assert config["recipe"] == recipe
    fields = header(recipe)
    assert all(fields.get(name) for name in ("what", "paper", "data", "command", "expect", "cost"))
    assert f"recipe={recipe}" in fields["command"] and "TBD" not in str(fields)
    assert ("(embedded)" in fields["data"]) == config["data"]["_target_"].startswith("datamodules.sources.grocery.")
    assert yaml.safe_load(to_yaml(config)) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_part_binds_to_its_signature(path):
    node = yaml.safe_load(path.read_text())
    parts = [node] if "_target_" in node else list(node.values())
    assert parts
    for part in parts:
        wrong = [p for p in problems_of(part, part["_target_"], path.stem) if "must be given" not in p]
        assert not wrong
    if "_target_" not in node:
        assert list(node) == [path.stem], "several parts of a group are told apart by their file's name"


def test_lists_append_remove_and_replace():
    assert list(compose_config(["+regularizer=mesa"])["regularizer"]) == ["saf", "mesa"]
    assert list(compose_config(["+regularizer=[mesa]"])["regularizer"]) == ["saf", "mesa"]
    assert list(compose_config(["regularizer=mesa"])["regularizer"]) == ["mesa"]
    assert list(compose_config(["regularizer=[mesa,saf]"])["regularizer"]) == ["mesa", "saf"]
    assert compose_config(["~regularizer"])["regularizer"] == {}
    assert list(compose_config(["recipe=grocery_baseline", "+regularizer=saf"])["regularizer"]) == ["saf"]
    assert compose_config(["mixing=mixup", "~regularizer"])["mixing"]["alpha"] == 0.2
    assert list(compose_config(["+regularizer=mesa", "~regularizer.saf"])["regularizer"]) == ["mesa"]


def test_any_timm_backbone_by_name():
    assert compose_config(["backbone=convnext_atto"])["backbone"]["name"] == "convnext_atto"
    assert compose_config(["backbone=resnet50.a1_in1k"])["backbone"]["name"] == "resnet50.a1_in1k"
    assert compose_config(["backbone=resnet26d_small"])["backbone"]["name"] == "resnet26d_small"
    assert is_backbone("cifar_resnet110") and not is_backbone("resnet51")
    assert problems("backbone=resnet51")[0].startswith("backbone=resnet51 is not known; did you mean resnet")


def test_keys_that_a_signature_has_need_no_plus():
    config = compose_config(["optimizer.kwargs.nesterov=true", "backbone.kwargs.drop_path_rate=0.1"])
    assert config["optimizer"]["kwargs"] == {"nesterov": True}
    assert config["backbone"]["kwargs"]["drop_path_rate"] == 0.1


def test_the_command_line_wins_over_the_recipe():
    config = compose_config(["trainer.max_epochs=3", "data.batch_size=8", "recipe=cifar_saf"])
    assert config["trainer"]["max_epochs"] == 3 and config["data"]["batch_size"] == 8


def test_a_swapped_part_comes_with_its_own_defaults():
    config = compose_config(["recipe=imagenet_saf", "optimizer=adamp", "optimizer.weight_decay=0.3", "data=cifar10"])
    assert config["optimizer"]["lr"] == 1e-3 and config["optimizer"]["weight_decay"] == 0.3
    assert config["data"]["batch_size"] == compose_config(["recipe=cifar_saf"])["data"]["batch_size"]
    ddp = compose_config(["recipe=imagenet_saf", "trainer=ddp"])["trainer"]
    assert (ddp["strategy"], ddp["max_epochs"], ddp["precision"]) == ("ddp", 90, "bf16-mixed"), "no part of the method"
    assert compose_config(["recipe=imagenet_saf", "optimizer=sgd"])["optimizer"]["lr"] == 0.4, "the same is no swap"


def test_all_problems_are_listed_at_once():
    found = problems("head=linaer", "optimizer.lrr=1", "seed=x", "data.batch_size=2.5", "+regularizer=meso")
    assert len(found) == 5
    text = "\n".join(found)
    assert "head=linaer is not known; did you mean linear" in text
    assert "optimizer.lrr is not a key; did you mean optimizer.lr?" in text
    assert "seed='x' has the wrong type; allowed: int" in text
    assert "data.batch_size=2.5 has the wrong type; allowed: int" in text
    assert "regularizer=meso is not known; did you mean mesa?" in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("recipe=cifar_saff", "recipe=cifar_saff is not known; did you mean cifar_saf"),
        ("regularizr=mesa", "regularizr is not a key; did you mean regularizer?"),
        ("regularizer=mesa,saf", r"for several parts write regularizer=[A,B]"),
        ("regularizer+=mesa", "write key=value, group=NAME"),
        ("mesa", "write key=value, group=NAME"),
        ("head=[linear,cosine]", "head holds one part; write head=NAME"),
        ("+head=cosine", "head holds one part, and the recipe has linear; replace it with head=cosine"),
        ("~mixing", "~mixing: the recipe has no mixing to remove"),
        ("~loss", "~loss: every run has a loss; replace it with loss=NAME"),
        ("loss=null", "loss=null: every run has a loss; replace it with loss=NAME"),
        ("seed={_target_:x.y}", "has the wrong type; allowed: int"),
        ("attack=pgdd", "attack=pgdd is not known; did you mean pgd"),
        (
            "regularizer.mesa.weight=1",
            "regularizer.mesa is not part of this configuration; add it with +regularizer=mesa",
        ),
        ("mixing.alpha=1", "mixing.alpha: no mixing is chosen; choose one with mixing=NAME"),
        ("backbone=timm", "backbone.name must be given: backbone.name=VALUE (str)"),
        ("hydra.run.dir=x", "Hydra's own settings are not part of a run"),
        ("seed=1,2", "'seed=1,2' names several values: for one run each add -m"),
        ("head=linear,cosine", "'head=linear,cosine' names several values: for one run each add -m"),
        ("seed=-1", "seed=-1 is out of range; allowed: 0 <= seed <= 4294967295"),
        ("seed=4294967296", "seed=4294967296 is out of range; allowed: 0 <= seed <= 4294967295"),
        ("trainer.precision=16-mixed", "allowed: Literal['32-true', 'bf16-mixed', '64-true']"),
        ("~regularizer.mesa", "~regularizer.mesa: there is no regularizer.mesa to remove"),
        ("~regularizer/saf", "~regularizer/saf: write ~regularizer.saf"),
        ("~data.limt_train", "~data.limt_train: there is no data.limt_train to remove"),
        ("~seed", "~seed: only parts and keys of parts can be removed"),
        ("~data._target_", "data={"),
        ("regularizer.saf=null", "regularizer.saf is a part, not a value; to remove it write ~regularizer.saf"),
        ("regularizer.mesa=null", "regularizer.mesa is not part of this configuration; add it with +regularizer=mesa"),
        ("max_epochs=2", "max_epochs is not a key; did you mean trainer.max_epochs?"),
        ("max_epoch=2", "max_epoch is not a key; did you mean trainer.max_epochs?"),
        ("lr=0.1", "lr is not a key; did you mean optimizer.lr?"),
        ("layer_decay=0.1", "layer_decay is not a key; did you mean optimizer.layer_decay?"),
        ("crop_padding=1", "did you mean data.augment.crop_padding?"),
        ("saf.lag=2", "saf is not a key; did you mean regularizer.saf?"),
        ("sed=1", "sed is not a key; did you mean seed"),
        ("_target_=os.system", "_target_ is not a key"),
        (
            "head._target_=recipes.running.sweep.sweep",
            "'recipes.running.sweep.sweep' is not a part of this library that can stand here",
        ),
        ("head._target_=lightning_modules.losses.cross_entropy.CrossEntropy", "allowed here: lightning_modules.heads."),
        ("data.augment._target_=lightning_modules.heads.linear.Linear", "allowed here: datamodules."),
        ("backbone.kwargs._target_=lightning_modules.heads.linear.Linear", "has the wrong type; allowed: dict | None"),
        ("data._target_=os.system", "'os.system' is not a part of this library"),
        ("data.augment._target_=shutil.rmtree", "'shutil.rmtree' is not a part of this library"),
    ],
)
def test_messages(word, message):
    assert message in "\n".join(problems(word))


def test_an_empty_seat_may_be_named():
    assert compose_config(["mixing=null", "~regularizer"]) == compose_config(["~regularizer"])


def test_removed_keys_take_the_default_of_the_signature():
    assert "limit_train" not in compose_config(["~data.limit_train"])["data"]
    assert "milestones" not in compose_config(["schedule=step", "~schedule.milestones"])["schedule"]
    assert compose_config(["recipe=grocery_baseline", "~trainer.devices=null"])["trainer"].get("devices") is None
    (message,) = problems("regularizer.saf.lag=2", "~regularizer.saf")
    assert message == "~regularizer.saf removes what regularizer.saf.lag sets; write one of the two"


def test_a_configuration_is_plain_and_fresh():
    first = compose_config([])
    second = copy.deepcopy(first)
    first["data"]["batch_size"] = -1
    assert compose_config([]) == second


def test_groups_are_all_keys_of_the_root():
    assert set(groups()) <= set(root_signature("recipes.building.assemble.assemble"))
    assert not set(groups()) & set(root_signature("recipes.exporting.export_checkpoint.export_checkpoint"))
    with pytest.raises(UnknownTarget):
        signature("recipes.building.assemble.nothing")
