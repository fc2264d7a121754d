"""One grammar for ``key=value`` in all commands: the text of a key that is text arrives as it was typed."""

import ast
import shlex
from types import SimpleNamespace

import pytest
import yaml
from tiny import but

import recipes.building.assemble
from recipes.cli import evaluate, export, train
from recipes.configuration.compose import compose_config, to_yaml
from recipes.configuration.plain import read_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.values import read_value
from recipes.configuration.words import parse, split_words, take
from recipes.evaluate import change_data, configure
from recipes.running import sweep as sweep_module
from recipes.running.resume import configure as resume
from recipes.running.sweep import expand

ODD = [
    "2024", "007", "1e3", "1_000", "0x1F", "12:30:45", "2001-01-01", "true", "No", "nan", "Null", "~", "-", "--x",
    "x.y", "[x]", "[x", "{a: b}", "x: y", "photos #2", "#2", "@at", "~t", "a,b", "/x=y", "=x", "(1)", "range(3)",
    "it's=x", "<<", "'quoted'", '"quoted"', "$HOME", "a\\b", "a\\,b", "!tag", "&anchor", "*alias", "%x", "`x`",
    "|", ">", "?", " spaces  inside ", "tab\there", "Käse", "写真", "\U0001f600",
    "caf\u00e9", "cafe\u0301", "a\u202fb", "a\u00a0b",
]  # fmt: skip
FOLDER = ["recipe=grocery_baseline", "data=folder"]


@pytest.fixture
def run_directory(tmp_path):
    """A directory that says it is a run's."""
    (tmp_path / "config.yaml").write_text(to_yaml(compose_config([*FOLDER, "data.root=a", "max_time=1s"])))
    return tmp_path


def problems(function, *arguments):
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    return "\n".join(error.value.problems)


@pytest.mark.parametrize("text", ODD)
def test_text_is_text_in_every_command(text, run_directory):
    config = compose_config([*FOLDER, f"data.root={text}", f"output={text}", f"name={text}"])
    assert (config["data"]["root"], config["output"], config["name"]) == (text, text, text)
    assert read_yaml(to_yaml(config)) == config == yaml.safe_load(to_yaml(config)), "so it is read from config.yaml"
    assert resume([f"resume={run_directory}", f"data.root={text}"])[0]["data"]["root"] == text
    words = [f"checkpoint={text}", f"output={text}", f"data.root={text}"]
    found, data_words = configure(words)
    assert found["checkpoint"] == found["output"] == text and data_words == words[2:]
    given = compose_config([*FOLDER, "data.root=a"])["data"]
    assert change_data(given, data_words)["root"] == text
    grocery = compose_config(["recipe=grocery_baseline"])["data"]
    assert change_data(grocery, data_words, {"predict": {}})["root"] == text, "a folder in place of data without a root"
    replaced, _ = configure([*words, "data=folder"])
    assert replaced["data"]["root"] == text
    exported = compose_config(words[:2], "export", "recipes.exporting.export_checkpoint.export_checkpoint")
    assert exported["checkpoint"] == exported["output"] == text


@pytest.mark.parametrize("text", ODD)
def test_words_that_are_run_again_mean_the_same(text, monkeypatch, tmp_path):
    """What command.txt holds, what a job of a sweep is started with, and the path of a run that goes on."""
    given = []
    stub = lambda **keys: given.append(keys) or SimpleNamespace(run=str)  # noqa: E731
    monkeypatch.setattr(recipes.building.assemble, "assemble", stub)
    assert train([*FOLDER, f"data.root={text}"]) == 0
    python, program, *again = shlex.split(given[0]["command"])
    assert (python, program) == ("python", "train.py") and compose_config(again)["data"]["root"] == text
    started = []
    monkeypatch.setattr(sweep_module, "run_child", lambda command: started.append(command) or 0)
    escaped = text.replace(",", "\\,")  # a comma separates there, and range() is Hydra's
    if text != "range(3)":
        assert train(["-m", *FOLDER, f"data.root={escaped}", "seed=0,1"]) == 0
        assert [compose_config(command[2:])["data"]["root"] for command in started] == [text, text]
    with pytest.raises(ConfigError, match="is no run directory") as error:
        resume([f"resume={tmp_path / 'none' / text}"])
    assert str(tmp_path / "none" / text) in str(error.value) or text == "-"


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("str", "null", "null"), ("str | None", "null", None), ("Optional[str]", "null", None), ("str | None", "", ""),
        ("Union[str, None]", "null", None), ("'str | None'", "007", "007"), ("Annotated[str, Path()]", "1,2", "1,2"),
        ("bool | str", "true", True), ("bool | str", "True", True), ("bool | str", "2024", "2024"),
        ("bool | str", "a,b", "a,b"), ("int | float | str | None", "90", 90), ("int | float | str", "90s", "90s"),
        ("int | str | list[int]", "[0,1]", [0, 1]), ("int | str | list[int]", "0,1", "0,1"),
        ("int | str | list[int]", "[a]", "[a]"), ("int | str | list[int]", "[0", "[0"),
        ("Literal['1', 'b']", "1", "1"), ("Literal['a'] | None", "null", None), ("Literal['a', 2]", "2", 2),
        ("int", "-3", -3), ("int", "1_000", 1000), ("int", " 3 ", 3), ("Annotated[int, Range(1)] | None", "3", 3),
        ("float", "1e-4", 1e-4), ("float", ".5", 0.5), ("float", "2", 2), ("float", "1E3", 1000.0),
        ("int", "007", "007"), ("bool", "FALSE", False), ("int", "'3'", "3"), ("int", "${seed}", "${seed}"),
        ("list[float]", "[0.3, 6]", [0.3, 6]), ("list[str] | None", "[0002,1998, true ]", ["0002", "1998", "true"]),
        ("list[str]", "[a b,'c,d',\"]\",it's,x=y]", ["a b", "c,d", "]", "it's", "x=y"]), ("list[int]", "[]", []),
        ("list[str]", r"['it\'s','a\\']", ["it's", "a\\"]), ("list[list[int]]", "[[1],[2,3]]", [[1], [2, 3]]),
        ("dict", "{a:1,b: x,c:[1,{d:null}]}", {"a": 1, "b": "x", "c": [1, {"d": None}]}), ("dict", "{}", {}),
        ("dict[str, str]", "{a:1,'b:c':C:/x}", {"a": "1", "b:c": "C:/x"}), ("Any", "'1,2'", "1,2"),
        ("Any", "x y", "x y"),
        ("Part | None", "null", None), ("Any", "inf", float("inf")),
    ],
)  # fmt: skip
def test_values_by_type(annotation, text, value):
    found = read_value(text, ast.parse(annotation, mode="eval").body)
    assert found == value and type(found) is type(value)


def test_the_type_is_that_of_the_part_that_is_in_force():
    """The recipe's data have no ``root``; those on the command line have."""
    data = compose_config(["recipe=grocery_baseline", "data.root=2024", "data=folder"])["data"]
    assert data["root"] == "2024"
    named = ["recipe=grocery_baseline", "data.root=007", f"data._target_={data['_target_']}"]
    assert compose_config(named)["data"]["root"] == "007"
    assert compose_config(["schedule.milestones=[0.5]", "schedule=step"])["schedule"]["milestones"] == [0.5]
    assert compose_config(["backbone.kwargs.x=007"])["backbone"]["kwargs"]["x"] == "007"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1", "seed=1"], "'seed=1' and 'seed=1' both say what seed is; write one of them"),
        (["seed=1", "++seed=2"], "'seed=1' and '++seed=2' both say what seed is"),
        (["recipe=cifar_saf", "recipe=cifar_mesa"], "both say what recipe is"),
        (["head=linear", "head=cosine"], "both say what head is"),
        (["regularizer=[saf,mesa,saf]"], "'regularizer=[saf,mesa,saf]' names saf twice; write it once"),
        (["+evaluator=[retrieval,retrieval]"], "names retrieval twice; write it once"),
        (["mixing=cutmix", "~mixing"], "both say what mixing is"),
        (["regularizer=mesa", "~regularizer"], "both say what regularizer is"),
        (["~schedule.milestones", "schedule.milestones=[0.5]"], "both say what schedule.milestones is"),
        (["backbone=convnext_atto", "backbone.name=resnet50"], "both say what backbone.name is"),
        (["backbone.kwargs.a=1", "backbone.kwargs={a:1}"], "both say what backbone.kwargs.a is"),
        (["backbone.kwargs.a.b=1", "backbone.kwargs={a:1}"], "both say what backbone.kwargs.a.b is"),
        (["data.augment=null", "data.augment.crop_padding=1"], "both say what data.augment.crop_padding is"),
    ],
)
def test_a_key_is_said_once(words, message):
    assert message in problems(compose_config, words)


def test_a_key_is_said_once_in_every_command(run_directory, capsys):
    twice = ["data.root=a", "data.root=b"]
    for command, words in (
        (train, [f"resume={run_directory}", *twice]),
        (train, [f"resume={run_directory}", f"resume={run_directory}"]),
        (train, ["self_check=true", "self_check=false"]),
        (train, ["-m", "seed=0,1", *twice]),
        (evaluate, ["checkpoint=a", "checkpoint=b"]),
        (evaluate, ["checkpoint=a", *twice]),
        (evaluate, ["backbone=conv4", "data=grocery", "data=folder"]),
        (evaluate, ["checkpoint=a", "evaluator=predict", "evaluator=retrieval"]),
        (export, ["checkpoint=a", "output=x", "output=y"]),
    ):
        assert command(words) == 2, words
        assert "write one of them" in capsys.readouterr().err, words


def test_what_appends_may_be_said_often_and_anywhere():
    several = ["+regularizer=mesa", "regularizer=saf"]
    assert list(compose_config(several)["regularizer"]) == ["saf", "mesa"]
    assert list(compose_config(["+evaluator=retrieval", "+evaluator=utilization"])["evaluator"])[1:] == [
        "retrieval",
        "utilization",
    ]
    words = ["backbone=resnet18", "backbone.kwargs.b=2", "backbone.kwargs={a:1}"]
    assert compose_config(words)["backbone"]["kwargs"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("x", "cannot read 'x': write key=value, group=NAME"),
        ("", "cannot read '': write key=value"),
        ("a b=1", "cannot read 'a b=1': write key=value"),
        ("+seed", r"cannot read '+seed': write key=value"),
        (f"{'a.' * 50}b=1", "a key has at most 40 names"),
        ("output=caf\udce9", "output: 'caf\\udce9' is not valid Unicode"),
        ("data/batch_size=3", "'data/batch_size=3': write data.batch_size=3"),
        ("seed=1,2", "'seed=1,2' names several values: for one run each add -m"),
        ("schedule.milestones=0.3,0.6", "several values: for a list write schedule.milestones=[A,B]; for one run each"),
        ("backbone.kwargs.x=1,2", "for one text quote it, in a shell as \"backbone.kwargs.x='1,2'\"; for one run each"),
        ("schedule.milestones=[0.3", "cannot read 'schedule.milestones=[0.3': a ] is missing; brackets come in pairs"),
        ("schedule.milestones=0.3]", "a ] closes nothing; brackets come in pairs, and a text that holds one in quotes"),
        ("regularizer=[saf", "cannot read 'regularizer=[saf': a ] is missing"),
        (f"schedule.milestones={'[' * 3000}", "nested more than 40 levels deep"),
        ("backbone.kwargs={a}", "'a' is no KEY:VALUE; write {KEY:VALUE,KEY:VALUE}"),
        (f"seed={'9' * 5000}", "a number of 5,000 digits; numbers fit into 64 bits"),
        ("seed.x=1", "cannot read 'seed.x=1': seed is 0, which has no keys; see --config"),
        ("head={linear:1}", "head holds one part; write head=NAME"),
        ("data.root=${data.root}", "Recursive interpolation"),
        ("output=\\${seed}", "is an interpolation, and a stored configuration has none"),
        ("trainer.precision=16", "trainer.precision=16 has the wrong type"),
    ],
)
def test_messages(word, message):
    assert message in problems(compose_config, [word])


def test_the_advice_is_a_word_that_works():
    for value in ("1,2", "it's,2", "$HOME,2", 'a",b', "a\\,'b"):
        advice = problems(compose_config, [f"backbone.kwargs.x={value}"])
        (word,) = shlex.split(advice.partition("in a shell as ")[2].removesuffix("; for one run each add -m"))
        assert compose_config([word])["backbone"]["kwargs"]["x"] == value


def test_a_word_says_a_value(run_directory):
    """``data.root=$FOLDER`` of a variable that is not set is no word for the folder one stands in."""
    for empty in ("data.root=", "output=", "seed=", "backbone=", "+mixing="):
        message = f"{empty!r} says no value: write {empty.strip('+')}VALUE, or leave the word out"
        assert message in problems(compose_config, [*FOLDER, empty])
    assert "'resume=' says no value" in problems(resume, ["resume="])
    assert "'data.root=' says no value" in problems(resume, [f"resume={run_directory}", "data.root="])
    assert "'checkpoint=' says no value" in problems(configure, ["checkpoint="])
    assert "'data.root=' says no value" in problems(configure, ["checkpoint=a", "data.root="])


def test_messages_of_the_other_commands(run_directory):
    grocery = compose_config(["recipe=grocery_baseline"])["data"]
    assert "write data.KEY=VALUE" in problems(change_data, grocery, ["~data.limit_test"])
    assert "data.num_workers='many' has the wrong type" in problems(
        change_data, grocery, ["data.root=x", "data.num_workers=many"], {"predict": {}}
    )
    assert "'data.num_workers=1,2' names several values" in problems(change_data, grocery, ["data.num_workers=1,2"])
    assert "'~data.root' cannot be applied to a run that is resumed" in problems(
        resume, [f"resume={run_directory}", "~data.root"]
    )
    assert "callback is not a key" in problems(configure, ["checkpoint=a", "callback=true"])
    assert "cannot read 'x'" in problems(resume, [f"resume={run_directory}", "x"])
    assert "'save_every=1,2' names several values" in problems(resume, [f"resume={run_directory}", "save_every=1,2"])
    assert resume([f"resume={run_directory}", "max_time=null", "save_every=3"])[0]["max_time"] is None


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a,b", ["a", "b"]), ("a, b", ["a", "b"]), ("a b", ["a b"]), (r"a\,b,c", ["a,b", "c"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]), ("[x", ["[x"]),
        ("'a,b',c", ["'a,b'", "c"]), ("it's,don't", ["it's", "don't"]), ("range(1,4)", ["1", "2", "3"]),
        ("choice(a,b)", ["a", "b"]), ("photos (1),photos (2)", ["photos (1)", "photos (2)"]),
        ("{a:1,b:2}", ["{a:1,b:2}"]),
    ],
)  # fmt: skip
def test_values_of_a_sweep(text, texts):
    assert expand([f"data.root={text}"]) == [[f"data.root={value}"] for value in texts]


def test_sweeps_that_cannot_be_read():
    for text in ("[1,2", "range(x)"):
        assert f"cannot read the sweep 'seed={text}'" in problems(expand, [f"seed={text}"])


def test_parts_of_a_word():
    word = parse("++data.root=a=b\nc")
    assert (word.sign, word.path, word.text) == ("++", "data.root", "a=b\nc")
    assert parse("~trainer.devices").sign == "~" and parse("größe=1").path == "größe"
    assert take(["a=1", "b=2", "x y"], "b") == ("2", ["a=1", "x y"]) and take(["a=1"], "b") == (None, ["a=1"])
    assert [word.path for word in split_words(["+evaluator=a", "+evaluator=b", "seed=1"])[0]][:2] == ["evaluator"] * 2
    assert but(["a=1", "b=2"], "a=3") == ["b=2", "a=3"]
