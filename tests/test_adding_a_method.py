"""docs/adding_a_method.md as a new user reads it: its files are written down, and its commands and its test run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"^    (python train\.py .*)$", PAGE, flags=re.MULTILINE)]
#: What makes a run tiny, where a command does not say otherwise.
TINY = ["data.limit_train=32", "data.limit_test=16", "data.batch_size=16", "trainer.max_epochs=2", "callback=[]"]
DRIVER = """
import contextlib, io, json, sys, pytest
from recipes.cli import train
found = {}
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = train(words)
    found[" ".join(words)] = [code, said.getvalue()]
from recipes.configuration.help import help_text
found["--help"] = [0, help_text("train.py")]
found["pytest"] = [int(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "tests/lightning_modules"])), ""]
open("found.json", "w").write(json.dumps(found))
"""


def tiny(words):
    """Commands on data of the user's own are composed alone."""
    if "data.root=FOLDER" in words:
        return [*words, "--config"]
    said = {word.partition("=")[0] for word in words}
    return [*words, *(word for word in TINY if word.partition("=")[0] not in said), "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The library with the files of the page, and what came of its commands."""
    copy = tmp_path_factory.mktemp("copy")
    for room in ("kernels", "datamodules", "lightning_modules", "recipes", "configs"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/conftest.py", "setup.cfg", "pyproject.toml", *FILES):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if name in FILES:
            assert not (copy / name).exists(), f"{name} would change a file: a method is new files only"
            (copy / name).write_text(FILES[name])
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    commands = [tiny(words) for words in COMMANDS if not any(word.startswith("resume=") for word in words)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], cwd=copy, capture_output=True, text=True, timeout=300
    )
    assert (copy / "found.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return copy, json.loads((copy / "found.json").read_text()), done.stdout


def test_the_page_has_every_kind():
    folders = {Path(name).parent.as_posix() for name in FILES}
    kinds = ["losses", "reweightings", "gradients", "surgery", "evaluators", "diagnostics", "freezing", "regularizers"]
    assert {f"lightning_modules/{kind}" for kind in kinds} | {"datamodules", "configs/group", "my_package"} <= folders
    assert len(COMMANDS) >= 14


def test_every_command_runs(found):
    _, results, _ = found
    failed = {words: said[-600:] for words, (code, said) in results.items() if code}
    assert not failed, failed
    assert len(results) >= 14


def test_every_part_of_the_page_is_in_help(found):
    _, results, _ = found
    for name in FILES:
        folder, _, file = name.rpartition("/")
        if folder.startswith("configs/") and folder != "configs/group":
            [line] = [line for line in results["--help"][1].splitlines() if line.startswith(f"  {folder[8:]}")]
            assert file.removesuffix(".yaml") in line


def test_what_the_runs_leave(found):
    copy, _, _ = found
    results = [json.loads(path.read_text()) for path in copy.glob("runs/*/*/results.json")]
    assert {"my_recipe", "grocery_baseline"} <= {result["recipe"] for result in results}
    [table] = copy.glob("runs/*/*/parts/diagnostics/forgetting/forgetting.npy")
    columns = (table.parents[3] / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "diagnostics/forgetting/events" in columns
    assert any("confidence" in result.get("evaluators", {}) for result in results)
