"""What a person at the shell sees: help, listings on stderr, exit codes, sweeps, and no torch before it is needed."""

import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from tiny import but

from recipes.cli import evaluate, export, train
from recipes.configuration.catalogue import groups, header, options
from recipes.configuration.compose import compose_config, to_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import ROOT
from recipes.processes.trainer import create_trainer
from recipes.running import sweep as sweep_module
from recipes.running.directory import write_status
from recipes.running.run import NeverActed
from recipes.running.sweep import expand

TORCH_FREE = """
import contextlib, io, sys
from recipes.cli import evaluate, export, train
words = [(train, ["--help"], 0), (train, ["recipe=cifar_saff"], 2), (train, ["optimizer.lrr=1", "head=linaer"], 2),
         (train, ["backbone=resnet51"], 2), (train, ["recipe=cifar_mesa", "--config"], 0),
         (train, ["-m", "seed=0,x"], 2), (evaluate, ["--help"], 0), (evaluate, [], 2), (export, ["formt=x"], 2)]
for function, given, code in words:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        found = function(given)
    assert found == code, (given, found, err.getvalue())
    assert bool(out.getvalue()) == (code == 0) and bool(err.getvalue()) == (code == 2), given
    heavy = {"torch", "timm", "lightning", "numpy"} & set(sys.modules)
    assert not heavy, (given, heavy)
print("done", len(words))
"""


def test_answers_that_need_no_torch_import_none():
    child = subprocess.run([sys.executable, "-c", TORCH_FREE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.stdout.strip() == "done 9", child.stderr


def test_the_script_ends_with_code_2_and_the_listing_on_stderr():
    command = [sys.executable, "train.py", "recipe=cifar_saff", "sed=1"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 2 and child.stdout == ""
    assert "recipe=cifar_saff is not known; did you mean cifar_saf" in child.stderr and "Traceback" not in child.stderr


def test_all_problems_are_listed_on_stderr(capsys):
    assert train(["optimizer.lrr=1", "head=linaer", "seed=x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "3 problems:" and len(lines) == 4 and all(line.startswith("- ") for line in lines[1:])
    assert train(["seed=x"]) == 2
    assert capsys.readouterr().err == "error: seed='x' has the wrong type; allowed: int\n"


@pytest.mark.parametrize("flag", ["--verbose", "--seed=1", "-x"])
def test_flags_that_do_not_exist(flag, capsys):
    assert train([flag]) == 2
    assert f"{flag} is not an option; write key=value, or one of --help, --config, -m" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_recipe_and_every_part(flag, capsys):
    assert train([flag, "recipe=nonsense"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    for recipe in options("recipe"):
        for field in ("what", "data", "expect", "cost"):
            assert header(recipe)[field] in rows[recipe], (recipe, field)
    for group in set(groups()) - {"recipe"}:
        assert all(name in rows[group] for name in options(group)), group


def test_the_other_programs_have_a_help_of_their_own(capsys):
    for function, word in ((evaluate, "evaluator=predict data.root=FOLDER"), (export, "format=timm")):
        assert function(["--help"]) == 0
        assert word in capsys.readouterr().out


def test_config_prints_what_would_run_and_stops(capsys):
    words = ["recipe=cifar_mesa", "seed=7", "backbone.kwargs.drop_path_rate=0.1"]
    assert train([*words, "--config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config == compose_config(words) and config["seed"] == 7 and config["recipe"] == "cifar_mesa"


def stub_assemble(monkeypatch, run):
    given = []
    stub = lambda **keys: given.append(keys) or SimpleNamespace(run=run)  # noqa: E731
    monkeypatch.setattr("recipes.building.assemble.assemble", stub)
    return given


def test_the_command_is_handed_on_as_it_was_typed(monkeypatch):
    given = stub_assemble(monkeypatch, lambda: None)
    words = ["recipe=grocery_baseline", "data.root=a folder", "data=cifar10"]
    assert train(words) == 0
    config = dict(given[0])
    assert shlex.split(config.pop("command")) == ["python", "train.py", *words] and config.pop("resume") is None
    assert config.pop("needs_images") is True
    assert config == compose_config(words)


def test_errors_of_a_run_that_explain_themselves_end_with_code_1(monkeypatch, capsys):
    def idle():
        raise NeverActed("saf never had an effect in this run")

    stub_assemble(monkeypatch, idle)
    assert train([]) == 1
    assert capsys.readouterr().err == "error: saf never had an effect in this run\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.devices=0", "trainer.accelerator=cpu with trainer.devices=0 cannot be had here"),
        ("trainer.devices=32-true", "trainer.devices=32-true cannot be had here: "),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 is out of range; allowed: "),
        ("trainer.num_nodes=0", "trainer.num_nodes=0 is out of range; allowed: num_nodes >= 1"),
        ("trainer.accelerator=mps", "trainer.accelerator=mps: Apple's MPS has no float64"),
        ("trainer.precision=16-mixed", "trainer.precision='16-mixed' has the wrong type; allowed: Literal['32-true'"),
        ("schedule.milestones=[0.5]", "schedule.milestones=[0.5] has no effect on cosine; it belongs to schedule=step"),
        ("optimizer.name=adamw", "optimizer.momentum=0.9: adamw takes no momentum; its momentum is optimizer.kwargs.b"),
        ("backbone.pretrained=true", "could not get timm's weights for resnet18"),
    ],
)
def test_what_only_building_finds_ends_with_code_2(monkeypatch, capsys, tmp_path, word, message):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    words = ["recipe=grocery_baseline", "backbone=resnet18", "data.limit_train=128", "trainer.accelerator=cpu"]
    assert train(but([*words, f"output={tmp_path / 'runs'}"], word)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="trainer.accelerator=gpu with trainer.devices=1 cannot be had here: .*=auto"):
        create_trainer(max_epochs=1, accelerator="gpu")


def test_apples_mps_is_never_taken(monkeypatch):
    monkeypatch.setattr("recipes.processes.trainer.MPSAccelerator.is_available", lambda: True)
    assert isinstance(create_trainer(max_epochs=1).accelerator, CPUAccelerator)
    for name in ("mps", "gpu"):
        with pytest.raises(ValueError, match=f"trainer.accelerator={name}: Apple's MPS has no float64"):
            create_trainer(max_epochs=1, accelerator=name)


def test_only_ddp_takes_every_device():
    found = {name: compose_config([f"trainer={name}"])["trainer"]["devices"] for name in options("trainer")}
    assert found == {"default": 1, "bf16": 1, "ddp": "auto"}


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["seed=0,1"], [["seed=0"], ["seed=1"]]),
        (["head=linear,cosine", "seed=0,1", "name=null"],
         [["head=linear", "seed=0", "name=null"], ["head=linear", "seed=1", "name=null"],
          ["head=cosine", "seed=0", "name=null"], ["head=cosine", "seed=1", "name=null"]]),
        (["seed=range(3)"], [["seed=0"], ["seed=1"], ["seed=2"]]),
        (["regularizer=[saf],[saf,mesa]"], [["regularizer=[saf]"], ["regularizer=[saf,mesa]"]]),
        (["+regularizer=mesa", "~evaluator", "optimizer.lr=0.1,1e-2"],
         [["+regularizer=mesa", "~evaluator", "optimizer.lr=0.1"],
          ["+regularizer=mesa", "~evaluator", "optimizer.lr=1e-2"]]),
        ([], [[]]),
    ],
)  # fmt: skip
def test_expansion_of_a_sweep(words, jobs):
    assert expand(words) == jobs
    assert all(compose_config(job) for job in jobs), "a job is spelled as the command line spells it"


def test_a_sweep_that_cannot_be_read():
    with pytest.raises(ConfigError, match=r"cannot read the sweep 'seed=\[0,1': .* values of a sweep are KEY=1,2,3"):
        expand(["seed=[0,1", "mesa"])


@pytest.fixture
def started(monkeypatch):
    """Commands that a sweep starts instead of running them; jobs with seed=1 fail."""
    commands = []

    def run(command):
        commands.append(command)
        return 3 if "seed=1" in command else 0

    monkeypatch.setattr(sweep_module, "run_child", run)
    return commands


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_failed_job_does_not_stop_the_others(started, capsys, flag):
    assert train([flag, "recipe=grocery_baseline", "seed=0,1,2"]) == 1
    jobs = [["recipe=grocery_baseline", f"seed={seed}"] for seed in range(3)]
    assert started == [[sys.executable, str(ROOT / "train.py"), *job] for job in jobs]
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["ok", "exit", "ok"] and table[1].startswith("exit 3    recipe=")
    assert train([flag, "seed=0,2"]) == 0


def test_every_job_is_validated_before_the_first_starts(started, capsys):
    assert train(["-m", "seed=0,1", "head=linear,linaer", "optimizer.lr=0.1,fast"]) == 2
    assert started == []
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 problems:", "a problem that several jobs share is said once"
    assert "head=linaer is not known" in lines[1] + lines[2] and "optimizer.lr='fast'" in lines[1] + lines[2]


def test_jobs_of_one_name_have_names_of_their_own_and_run_once(started, capsys, tmp_path):
    """What is finished is not run again, and the table says so."""
    words = ["-m", "recipe=grocery_baseline", "seed=0,1", "head=linear,cosine", "name=trial", f"output={tmp_path}"]
    assert train(words) == 1
    names = [next(word for word in command if word.startswith("name=")) for command in started]
    assert names == [f"name=trial-seed={seed}-head={head}" for seed in (0, 1) for head in ("linear", "cosine")]
    for name in ("trial-seed=0-head=linear", "trial-seed=0-head=cosine", "trial-seed=1-head=cosine"):
        directory, head = tmp_path / "grocery_baseline" / name, name.rpartition("=")[2]
        directory.mkdir(parents=True)
        write_status(directory, "finished")
        (directory / "results.json").write_text('{"seed": 0}')
        own = ["recipe=grocery_baseline", f"seed={name[11]}", f"head={head}", f"name={name}", f"output={tmp_path}"]
        (directory / "config.yaml").write_text(to_yaml(compose_config(own)))
    started.clear()
    assert train(words) == 1 and len(started) == 1 and names[2] in started[0]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["finished", "finished", "exit", "finished"]
    started.clear()
    assert train([*words, "optimizer.lr=0.3"]) == 1 and len(started) == 4, "another configuration is another run"


def test_long_names_are_shortened_and_stay_apart(started):
    words = ["recipe=grocery_baseline", "seed=0,1", f"name={'n' * 60}"]
    words += ["optimizer.weight_decay=0.00011,0.00012", "schedule.warmup_fraction=0.10001,0.10002"]
    assert train(["-m", *words]) == 1
    names = {next(word for word in command if word.startswith("name=")) for command in started}
    assert len(names) == 8 and all(len(name) <= 100 + len("name=") for name in names)


def test_a_single_name_is_kept(started):
    assert train(["-m", "recipe=grocery_baseline", "seed=0", "name=trial"]) == 0
    assert "name=trial" in started[0]
