"""Ranges in a configuration: the words of the error, before torch is imported, also for parts of other packages."""

import ast
import subprocess
import sys

import pytest

from recipes.configuration.allow import allowing
from recipes.configuration.annotation import allowed, without_ranges
from recipes.configuration.compose import compose_config
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import signature
from recipes.configuration.validate import problems_of


@pytest.mark.parametrize(
    ("annotation", "words", "plain"),
    [
        ("Annotated[float, '0 <= x < 1'] | None", "0 <= key < 1 or null", "float | None"),
        ("Annotated[int, 'x >= 1']", "key >= 1 (int)", "int"),
        ("list[Annotated[float, 'x > 0']] | None", "a list, each x > 0 or null", "list[float] | None"),
        ("dict[str, Annotated[int, 'x >= 1']]", "a dict, each value x >= 1 (int)", "dict[str, int]"),
        (
            "Annotated[int, 'x >= -1'] | Annotated[float, '0 < x < 1']",
            "key >= -1 (int) or 0 < key < 1",
            "int | float",
        ),
        ("Annotated[float, 'finite'] | str", "any finite key or str", "float | str"),
        ("Annotated[float, Field(gt=0)]", "float", "float"),
    ],
)
def test_words(annotation, words, plain):
    tree = ast.parse(annotation, mode="eval").body
    assert allowed(tree, "key") == words
    assert ast.unparse(without_ranges(tree)) == plain
    assert ast.unparse(tree) == ast.unparse(ast.parse(annotation)), "the annotation itself is left as it is"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.momentum=1.5"], "optimizer.momentum=1.5 is out of range; allowed: 0 <= momentum < 1 or null"),
        (["optimizer.momentum=fast"], "optimizer.momentum='fast' has the wrong type; allowed: float | None"),
        (["optimizer.layer_decay=0"], "optimizer.layer_decay=0 is out of range; allowed: 0 < layer_decay <= 1 or null"),
        (["schedule.min_lr=-1"], "schedule.min_lr=-1 is out of range; allowed: min_lr >= 0 or null"),
        (
            ["schedule=step", "schedule.milestones=[0.5,2]"],
            "schedule.milestones=[0.5, 2] is out of range; allowed: a list, each 0 <= x <= 1 or null",
        ),
        (
            ["data.num_workers=1000000"],
            "data.num_workers=1000000 is out of range; allowed: 0 <= num_workers <= 1024 (int)",
        ),
        (
            ["data.augment.cutout_size=-1"],
            "data.augment.cutout_size=-1 is out of range; allowed: cutout_size >= 0 (int)",
        ),
        (
            ["evaluator.classification.num_mistakes=-1"],
            "evaluator.classification.num_mistakes=-1 is out of range; allowed: num_mistakes >= 0 (int)",
        ),
        (["regularizer.saf.start_epoch=1.5"], "allowed: start_epoch >= -1 (int) or 0 < start_epoch < 1"),
        (["seed=-1"], "seed=-1 is out of range; allowed: 0 <= seed <= 4294967295 (int)"),
        (["save_every=0"], "save_every=0 is out of range; allowed: save_every >= 1 (int) or null"),
        (["max_time=0"], "max_time=0 is out of range"),
    ],
)
def test_messages(words, message):
    with pytest.raises(ConfigError) as error:
        compose_config(words)
    assert len(error.value.problems) == 1 and message in error.value.problems[0]


def test_torch_is_not_imported():
    code = (
        "import sys; from recipes.cli import train; status = train(['optimizer.momentum=1.5']); "
        "assert status == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer.momentum=1.5 is out of range" in done.stdout + done.stderr


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    name = f"other_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "class Plain:\n    def __init__(self, *, scale: float = 1.0, lag: int = 1) -> None: ...\n"
        "class Stated:\n    def __init__(self, *, scale: Annotated[float, 'x > 0'] = 1.0) -> None: ...\n"
        "class Wrong:\n    def __init__(self, *, scale: Annotated[float, 'above 0'] = 1.0) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with allowing([name]):
        yield name


def test_parts_of_other_packages(other_package):
    assert not problems_of({"scale": -1e9, "lag": -7}, f"{other_package}.Plain", "loss")
    assert problems_of({"scale": -1.0}, f"{other_package}.Stated", "loss") == [
        "loss.scale=-1.0 is out of range; allowed: scale > 0"
    ]
    (line,) = problems_of({"scale": 1.0}, f"{other_package}.Wrong", "loss")
    assert "the annotation of scale: 'above 0' is no range; write" in line


def test_what_a_missing_key_may_be_is_said_without_its_range():
    assert signature("recipes.processes.trainer.create_trainer")["max_epochs"].type_name == "int"
