"""What stages are composed to, and which are refused, all problems at once and before anything is built."""

import pytest
import yaml

from recipes.configuration import catalogue
from recipes.configuration.compose import to_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.stages import compose_run
from recipes.running.resume import apply, differences, read_config

RECIPE = "grocery_probe_finetune"
TWO = {"probe": ["backbone.freeze=true"], "finetune": ["init=probe", "optimizer.lr=0.01"]}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe with these stages on top of grocery_baseline; its name."""
    for entry in catalogue.CONFIGS.iterdir():
        if entry.name != "recipe":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "recipe").mkdir()
    for entry in (catalogue.CONFIGS / "recipe").iterdir():
        (tmp_path / "recipe" / entry.name).symlink_to(entry)
    monkeypatch.setattr(catalogue, "CONFIGS", tmp_path)

    def write(stages, name="mine", parent="grocery_baseline"):
        content = {"defaults": [parent], "stages": stages}
        (tmp_path / "recipe" / f"{name}.yaml").write_text(
            "# @package _global_\n" + yaml.safe_dump(content, sort_keys=False)
        )
        return name

    return write


def problems(*words):
    with pytest.raises(ConfigError) as caught:
        compose_run(words)
    return "\n".join(caught.value.problems)


def test_words_are_those_of_the_command_line_and_a_later_one_wins(recipe):
    name = recipe({**TWO, "last": ["init=finetune", "optimizer=adamw", "+regularizer=mesa", "trainer.max_epochs=7"]})
    stages = compose_run([f"recipe={name}", "seed=4", "stages.finetune.seed=5", "stages.probe.head=cosine"])["stages"]
    assert [stage["seed"] for stage in stages.values()] == [4, 5, 4]
    assert stages["probe"]["backbone"]["freeze"] and not stages["finetune"]["backbone"].get("freeze")
    assert (stages["finetune"]["optimizer"]["lr"], stages["last"]["optimizer"]["lr"]) == (0.01, 1e-3)
    assert stages["finetune"]["optimizer"]["weight_decay"] == 5e-4 and stages["last"]["optimizer"]["name"] == "adamw"
    assert list(stages["last"]["regularizer"]) == ["mesa"] and not stages["finetune"].get("regularizer")
    assert stages["probe"]["head"]["_target_"].endswith("Cosine")
    for stage in compose_run([f"recipe={name}", "trainer.max_epochs=1"])["stages"].values():
        assert stage["trainer"]["max_epochs"] == 1 and "stages" not in stage


def test_a_part_typed_for_every_stage_leaves_the_keys_of_the_old_one_behind(recipe):
    name = recipe(TWO)
    stages = compose_run([f"recipe={name}", "optimizer=adamw", "backbone=resnet18", "trainer=ddp"])["stages"]
    assert [stage["optimizer"]["lr"] for stage in stages.values()] == [1e-3, 1e-3]
    assert stages["probe"]["backbone"]["name"] == "resnet18" and stages["probe"]["backbone"]["freeze"] is True
    assert stages["probe"]["trainer"]["max_epochs"] == 60
    same = compose_run([f"recipe={name}", "optimizer=sgd"])["stages"]
    assert same["finetune"]["optimizer"]["lr"] == 0.01, "it is the part it has already"


def test_what_the_first_stage_begins_with_is_not_for_the_others(recipe, tmp_path):
    stages = compose_run([f"recipe={recipe(TWO)}", f"init={tmp_path}", "backbone.pretrained=true"])["stages"]
    assert [stage["init"] for stage in stages.values()] == [str(tmp_path), "probe"]
    assert stages["finetune"]["backbone"]["pretrained"] is False


def test_a_child_changes_a_stage_or_adds_one(recipe):
    recipe(TWO, "two")
    child = recipe({"probe": ["backbone.freeze=true", "seed=9"], "third": ["init=finetune"]}, parent="two")
    stages = compose_run([f"recipe={child}"])["stages"]
    assert [*stages] == ["probe", "finetune", "third"] and stages["probe"]["seed"] == 9


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["a"], "stages must be words by the name of a stage"),
        ({"probe": {"optimizer": {"lr": 1}}}, r"stage probe: write a list of words, such as \[init=probe"),
        ({"probe": [3]}, "stage probe: write a list of words"),
        ({"../up": []}, r"stage \.\./up: the name of a stage is letters, digits, _ and -"),
        ({"checkpoints": []}, "stage checkpoints: the name of a stage .* is not checkpoints"),
        ({3: []}, "stage 3: the name of a stage is letters"),
        ({"probe": [], "Probe": []}, "stages probe and Probe differ in case alone"),
        ({"probe": ["stages.probe.seed=1"]}, "stage probe: .*stages hold no stages"),
        ({"probe": [f"recipe={RECIPE}"]}, "stage probe: .*stages hold no stages"),
        ({"probe": ["output=x"]}, "stage probe: 'output=x': output is that of the whole run"),
        ({"probe": ["nonsense"]}, "stage probe: cannot read 'nonsense'"),
        ({"probe": ["init=probe"]}, "stage probe: init=probe is the stage itself; it is the first"),
        ({"a": ["init=b"], "b": ["init=a"]}, "stage a: init=b is a later stage; it is the first and names none"),
        ({"a": [], "b": ["init=aa"]}, "stage b: init=aa is no stage before it, no file or folder .* it may name a"),
        ({"a": ["optimizer.lrr=1"], "b": ["head=x"]}, "(?s)stage a: optimizer.lrr is no.*stage b: head=x is not known"),
    ],
)  # fmt: skip
def test_stages_that_are_refused(recipe, stages, message):
    with pytest.raises(ConfigError, match=message):
        compose_run([f"recipe={recipe(stages)}"])


def test_a_stage_given_twice_is_refused(recipe):
    path = catalogue.CONFIGS / "recipe" / f"{recipe(TWO)}.yaml"
    path.write_text(path.read_text() + "  probe: []\n")
    assert "the key 'probe' is given twice" in problems("recipe=mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.prob.seed=1"], "'stages.prob.seed=1': write stages.NAME.key=value, with a NAME of probe, finetune"),
        (["stages.probe=1"], "'stages.probe=1': write stages.NAME.key=value"),
        (["stages.probe.max_time=1h"], "max_time is that of the whole run; write max_time=1h"),
        (["stages.probe.seed=x"], "stage probe: seed='x' has the wrong type"),
        (["seed=1", "seed=2"], "'seed=1' and 'seed=2' both say what seed is"),
    ],
)
def test_words_that_are_refused(recipe, words, message):
    assert message in problems(f"recipe={recipe(TWO)}", *words)


def test_what_is_wrong_with_every_stage_is_said_once(recipe):
    assert problems(f"recipe={recipe(TWO)}", "seed=x") == "seed='x' has the wrong type; allowed: int"


def test_a_recipe_without_stages():
    assert (
        problems("recipe=grocery_baseline", "stages.a.seed=1")
        == "'stages.a.seed=1': recipe grocery_baseline has no stages"
    )
    assert "stages" not in compose_run(["recipe=grocery_baseline"])


def test_words_of_a_run_that_goes_on(recipe):
    config = compose_run([f"recipe={recipe(TWO)}"])
    changed = apply(config, ["max_time=2h", "data.num_workers=1", "stages.probe.stop_after=3"])
    assert changed["max_time"] == "2h" and differences(config, changed) == []
    assert [stage["data"]["num_workers"] for stage in changed["stages"].values()] == [1, 1]
    assert [stage["stop_after"] for stage in changed["stages"].values()] == [3, None]
    other = apply(config, ["stages.finetune.optimizer.lr=3"])
    assert differences(config, other) == ["stage finetune: optimizer.lr is 0.01 in the run and 3 now"]
    with pytest.raises(ConfigError, match="^'stages.x.seed=1': write stages.NAME.key=value, with a NAME of probe"):
        apply(config, ["stages.x.seed=1"])
    with pytest.raises(ConfigError, match="^'seeed=1' cannot be applied to a run that is resumed"):
        apply(config, ["seeed=1"])
    one = compose_run(["recipe=grocery_baseline"])
    assert any("stages" in line for line in differences(config, one)) and any(
        "stages" in x for x in differences(one, config)
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"../x": {}}, r"stage \.\./x: the name of a stage is letters"),
        ([], "stages must be the configuration of each stage by its name"),
        ({"a": 3}, "stages must be the configuration of each stage by its name"),
        ({"a": {"seed": 1}}, "recipe must be given"),
    ],
)
def test_a_stored_configuration_is_checked(tmp_path, stages, message):
    config = {"recipe": "x", "seed": 0, "name": None, "output": "runs", "max_time": None, "stages": stages}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)
