"""Recipes in layers: what a child inherits, and what goes with a part that it swaps, as on the command line."""

import pytest

import recipes
from recipes.configuration import catalogue
from recipes.configuration.compose import compose_config
from recipes.configuration.layers import Layers, merged
from recipes.configuration.problems import ConfigError


@pytest.fixture
def write(tmp_path):
    """Writes a recipe of one's own and gives its path."""

    def to_file(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return f"recipe={path}"

    return to_file


def child(*lines, parent="grocery_baseline"):
    """A recipe on another: overrides, then keys."""
    overrides = "".join(f"  - override {line}\n" for line in lines if line.startswith("/"))
    keys = "\n".join(line for line in lines if not line.startswith("/"))
    return f"defaults:\n  - {parent}\n{overrides}\n{keys}\n"


def problems(*words):
    with pytest.raises(ConfigError) as error:
        compose_config(words)
    return "\n".join(error.value.problems)


def alike(ours, theirs):
    return {**ours, "recipe": ""} == {**theirs, "recipe": ""}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("/loss: arc_face", "loss=arc_face"),
        ("/optimizer: adamp", "optimizer=adamp"),
        ("/optimizer: sgd", "optimizer=sgd"),
        ("/data: cifar10", "data=cifar10"),
        ("/backbone: convnext_atto", "backbone=convnext_atto"),
        ("/trainer: bf16", "trainer=bf16"),
        ("/schedule: step", "schedule=step"),
        ("/mixing: mixup", "mixing=mixup"),
        ("/surgery: [ws, tract]", "surgery=[ws,tract]"),
        ("/regularizer: mesa", "regularizer=mesa"),
        ("/regularizer: []", "~regularizer"),
        ("/regularizer: [mesa, saf]", "regularizer=[mesa,saf]"),
        ("/callback: null", "~callback"),
    ],
)
@pytest.mark.parametrize("parent", ["grocery_saf", "cub_metrix"])
def test_a_child_swaps_as_the_command_line_does(write, entry, word, parent):
    if parent == "cub_metrix" and word == "~regularizer":
        word = "regularizer=[]"  # it has none to remove
    assert alike(
        compose_config([write("mine", child(entry, parent=parent))]), compose_config([f"recipe={parent}", word])
    )


def test_a_swapped_part_leaves_the_settings_of_the_other(write):
    """The parent sets loss.label_smoothing, which another loss has no such key as."""
    config = compose_config([write("mine", child("/loss: norm_softmax", "loss: {temperature: 0.2}"))])
    assert config["loss"] == {
        "_target_": "lightning_modules.losses.norm_softmax.NormSoftmax",
        "temperature": 0.2,
        "lr_scale": 1.0,
    }
    assert config["optimizer"]["weight_decay"] == 5e-4, "what is not swapped is inherited"


def test_settings_of_the_same_part_are_inherited(write):
    config = compose_config([write("mine", child("/loss: cross_entropy", "optimizer: {lr: 1e-3}"))])
    assert config["loss"]["label_smoothing"] == 0.1
    assert config["optimizer"]["lr"] == 1e-3 and config["optimizer"]["weight_decay"] == 5e-4


def test_a_trainer_keeps_its_settings(write):
    config = compose_config([write("mine", child("/trainer: ddp", parent="imagenet_saf"))])["trainer"]
    assert (config["strategy"], config["max_epochs"], config["precision"]) == ("ddp", 90, "bf16-mixed")


def test_names_of_several_parts_take_their_settings_along(write):
    kept = compose_config([write("kept", child("/regularizer: [mesa, saf]", parent="grocery_saf"))])["regularizer"]
    assert list(kept) == ["mesa", "saf"] and kept["saf"]["start_epoch"] == 0.3
    dropped = compose_config([write("dropped", child("/regularizer: [mesa]", parent="grocery_saf"))])["regularizer"]
    assert list(dropped) == ["mesa"]
    words = [write("dropped", child("/regularizer: [mesa]", parent="grocery_saf")), "+regularizer=saf"]
    assert compose_config(words)["regularizer"]["saf"]["start_epoch"] == 5, "it comes back with its own defaults"


def test_through_several_levels(tmp_path, monkeypatch):
    """The grandchild comes back to the loss of the grandparent, which starts anew; the head was never touched."""
    for folder in ("recipe", "group"):
        (tmp_path / folder).mkdir()
    for path in catalogue.CONFIGS.rglob("*.yaml"):
        there = tmp_path / path.relative_to(catalogue.CONFIGS)
        there.parent.mkdir(exist_ok=True)
        there.write_text(path.read_text())
    monkeypatch.setattr(catalogue, "CONFIGS", tmp_path)
    one = child("/head: cosine", "head: {scale: 5.0}\nloss: {label_smoothing: 0.3}")
    (tmp_path / "recipe" / "one.yaml").write_text(one)
    two = child("/loss: arc_face", "loss: {margin: 0.2}\nseed: 4", parent="one")
    (tmp_path / "recipe" / "two.yaml").write_text(two)
    (tmp_path / "recipe" / "three.yaml").write_text(child("/loss: cross_entropy", parent="two"))
    assert compose_config(["recipe=one"])["loss"]["label_smoothing"] == 0.3
    second, third = compose_config(["recipe=two"]), compose_config(["recipe=three"])
    assert second["loss"]["margin"] == 0.2 and "label_smoothing" not in second["loss"]
    assert third["loss"] == {
        "_target_": "lightning_modules.losses.cross_entropy.CrossEntropy",
        "label_smoothing": 0.0,
    }
    assert third["head"]["scale"] == 5.0 and third["seed"] == 4


def test_a_nested_part_with_another_target_starts_anew(write):
    node = "{_target_: datamodules.augmentation.albumentations_transforms.FileAugment, min_scale: 0.5}"
    config = compose_config([write("mine", child(f"data:\n  augment: {node}", parent="grocery_saf"))])
    assert config["data"]["augment"] == {
        "_target_": "datamodules.augmentation.albumentations_transforms.FileAugment",
        "min_scale": 0.5,
    }
    assert merged({"_target_": "a.A", "x": 1}, {"y": 2}) == {"_target_": "a.A", "x": 1, "y": 2}
    assert merged({"_target_": "a.A", "x": 1}, {"_target_": "a.B"}) == {"_target_": "a.B"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            child("regularizer: {mesa: {weight: 1.0}}"),
            "recipe mine: regularizer.mesa is set, and no such part is chosen",
        ),
        (child("mixing: {alpha: 1.0}"), "mixing.alpha is set, and no such part is chosen; choose it in defaults with"),
        (child("/head: null"), "defaults: every run has a head; write override /head: NAME"),
        (child("/head: [linear]"), "defaults: head holds one part; write override /head: NAME"),
        (child("/head: 3"), "defaults: 3 is no name"),
        (child("/regularizer: [saf, saf]"), "defaults: regularizer: two parts are called saf; choose one of them"),
        (child("/loss: cross_entrop"), "loss=cross_entrop is not known; did you mean cross_entropy"),
        (child("recipe: grocery_saf"), "recipe (the file's own name) is not part of a recipe; leave it out"),
        ("defaults: [_self_]", "'_self_' is no recipe; recipes are cars_metrix"),
        ("defaults: grocery_saf", "defaults must be a list, got 'grocery_saf'"),
    ],
)
def test_what_a_recipe_cannot_say(write, text, message):
    assert message in problems(write("mine", text))


@pytest.mark.parametrize("name", ["cars", "inshop", "sop"])
def test_shipped_children_say_again_what_a_swap_takes(name):
    """They build on CUB's, with other data."""
    for suffix in ("multi_similarity", "metrix"):
        data = compose_config([f"recipe={name}_{suffix}"])["data"]
        assert (data["batch_size"], data["augment"]["min_scale"]) == (100, 0.08)


def test_layers_alone():
    layers = Layers({"loss": "cross_entropy", "regularizer": ["saf"], "mixing": None})
    layers.set({"loss": {"label_smoothing": 0.1}, "regularizer": {"saf": {"lag": 1}, "mesa": {"weight": 1}}, "seed": 3})
    assert list(layers.strays()) == [("regularizer", "mesa")]
    layers.choose("loss", "arc_face")
    layers.append("regularizer", ["saf", "mesa"])
    assert layers.settings == {"regularizer": {"saf": {"lag": 1}, "mesa": {"weight": 1}}, "seed": 3}
    assert layers.choices["regularizer"] == ["saf", "mesa"] and not layers.holds("mixing")
    config = layers.config()
    assert list(config["regularizer"]) == ["saf", "mesa"] and config["loss"]["margin"] == 0.5 and "mixing" not in config


def test_a_configuration_may_come_from_a_file(write, tmp_path):
    path = write("mine", child("trainer: {max_epochs: 2}\ndata: {limit_train: 40}")).partition("=")[2]
    run = recipes.build(path, [f"output={tmp_path}"])
    assert run.config["recipe"] == "mine" and run.config["trainer"]["max_epochs"] == 2
