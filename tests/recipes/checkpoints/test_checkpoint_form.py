"""The form of an intact checkpoint: each key that is read is there and of its kind, and the message names it."""

import copy
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import recipes
from recipes.checkpoints.form import check_evaluable, check_resumable
from recipes.checkpoints.load import CheckpointStore, load_checkpoint, save_checkpoint
from recipes.cli import evaluate, export
from recipes.configuration.problems import ConfigError

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks.fuzz_checkpoints import MUTATIONS, mutated, outcome, outcome_in_child, source  # noqa: E402

pytestmark = [pytest.mark.fault, pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzz forks")]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The directory of a run that was stopped in its second epoch."""
    return source(tmp_path_factory.mktemp("form")).parents[1]


@pytest.fixture(scope="module")
def whole(stopped):
    content = load_checkpoint(stopped / "checkpoints" / "last.ckpt")
    content.pop("format_version")
    return content


def changed(content, path, value):
    """A copy with a value at a dotted path; KeyError as a value leaves it out."""
    content = copy.deepcopy(content)
    *parents, last = [int(name) if name.isdigit() else name for name in path.split("/")]
    node = content
    for name in parents:
        node = node[name]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return content


BN = "network/backbone.bn1.running_var"
NAN, MINUS = torch.full((24,), float("nan")), torch.full((24,), -1.0)


def test_whole_ones_pass(stopped, whole):
    path = stopped / "checkpoints" / "last.ckpt"
    check_evaluable(whole, path), check_resumable(whole, path)
    check_evaluable(load_checkpoint(stopped), path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network", KeyError, r"x.ckpt cannot be used: network is missing"),
        ("network", None, r"x.ckpt cannot be used: network must be a dict, got None"),
        ("network", torch.zeros(2), "network must be a dict, got a Tensor"),
        ("network/head.bias", "x", "network.head.bias must be a tensor, got 'x'"),
        ("network/3", torch.zeros(1), "network has the key 3, which is no name"),
        ("config", 3, "config must be text, got 3"),
        ("classes", KeyError, "classes is missing"),
        ("classes", ["a", 3], "classes.1 must be text, got 3"),
        ("preprocessing", [], "preprocessing must be a dict, got a list of 0"),
        (
            "network/head.bias",
            torch.zeros(40, dtype=torch.int8),
            "head.bias: numbers of type int8; allowed are float64",
        ),
        ("network/head.bias", torch.zeros(40, dtype=torch.bool), "head.bias: numbers of type bool; allowed are"),
        ("network/head.bias", torch.zeros(40, dtype=torch.complex64), "head.bias: numbers of type complex64; allowed"),
        ("network/backbone.bn1.num_batches_tracked", torch.zeros(()), "numbers of type float32; allowed are int64"),
        ("network/head.bias", torch.zeros(3), r"head.bias: \[3\] in the file, \[40\] in the network"),
        ("network/head.bias", torch.full((40,), float("nan")), "head.bias holds 40 value.s. that are not finite"),
        (
            "network/head.bias",
            torch.full((40,), 1e300, dtype=torch.float64),
            "head.bias holds 40 value.s. that are not",
        ),
        (BN, NAN, "running_var holds 24 value.s. that are not finite numbers"),
        (BN, MINUS, "running_var is a variance and holds negative values"),
    ],
)
def test_what_cannot_be_evaluated(tmp_path, capsys, whole, key, value, message):
    save_checkpoint(tmp_path / "x.ckpt", changed(whole, key, value))
    for program in (evaluate, export):
        assert program([f"checkpoint={tmp_path / 'x.ckpt'}"]) == 2
    seen = capsys.readouterr().err
    assert re.search(message, seen), seen
    assert "Traceback" not in seen and not list(tmp_path.glob("**/*.json"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floating_point_numbers_of_another_width_are_converted(whole, dtype):
    from recipes.building.make import rebuild_network
    from recipes.checkpoints.stored import stored_config

    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in whole["network"].items()}
    network = rebuild_network(stored_config(whole), 40, state)
    assert network.head.bias.dtype == torch.float32
    assert torch.equal(network.head.bias, state["head.bias"].float())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("position", KeyError, "position is missing; only last.ckpt holds the state of training"),
        ("position", [0], "position must be a list of 2, got a list of 1"),
        ("position", [0, -1], "position.1 must be a whole number from 0 on, got -1"),
        ("position", "00", "position must be a list of 2, got '00'"),
        ("update", 2, "update is 2, and training.update is 3"),
        ("training", KeyError, "training is missing"),
        ("training/task", None, "training.task must be a dict, got None"),
        ("training/optimizers", {}, "training.optimizers must be a list, got a dict"),
        ("training/guard/total", KeyError, "training.guard.total is missing"),
        ("training/guard/in_row", 0.5, "training.guard.in_row must be a whole number from 0 on, got 0.5"),
        ("processes/0/random/torch", KeyError, "processes.0.random.torch is missing"),
        ("processes/0/random/torch", torch.zeros(3), "processes.0.random.torch is no state of a generator"),
        (
            "processes/0/random/python",
            [3, torch.zeros(9), None],
            "processes.0.random.python is no state of a generator",
        ),
        (
            "processes/0/random/numpy/2",
            10**6,
            r"processes.0.random.numpy is no state of a generator \(position 1000000",
        ),
        (
            "processes/0/meter/sums",
            {"loss": 1.0},
            "processes.0.meter.sums.loss must be a tensor of one number, got 1.0",
        ),
        ("processes/0/meter/pending", {"loss": [torch.zeros(2, 2)]}, "must be a tensor of at most one dimension"),
        ("processes/0/samples", -3, "processes.0.samples must be a whole number from 0 on"),
        ("processes/0/seconds", float("nan"), "processes.0.seconds must be a number from 0 on, got nan"),
        ("processes/0/terms", [None], "processes.0.terms.0 must be text, got None"),
        ("record/rows/0", {"epoch": 0}, r"record.rows \(the last one is record.best\).0.update is missing"),
        ("record/best", {}, r"record.rows \(the last one is record.best\).1.epoch is missing"),
        ("record/best_key", 3, "record.best_key must be a list, or None, got 3"),
        ("data/manifest/train", 3, "data.manifest.train must be a dict, got 3"),
        ("config", KeyError, "config is missing"),
    ],
)
def test_what_cannot_be_gone_on_from(tmp_path, whole, key, value, message):
    with pytest.raises(ValueError, match=rf"x.ckpt is none to go on from: .*{message}"):
        check_resumable(changed(whole, key, value), tmp_path / "x.ckpt")


@pytest.fixture
def run_with(tmp_path, stopped):
    """Goes on with a copy of the run whose ``last`` is another content."""

    def go(content):
        shutil.copytree(stopped, tmp_path / "run")
        for old in (tmp_path / "run" / "checkpoints").glob("last*"):
            old.unlink()
        save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", content)
        recipes.resume_run(tmp_path / "run", []).run()

    return go


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("position", [0, 10**9], r"position is \[0, 1000000000\] at update 3, and the run has 2 epochs of 2 updates"),
        ("position", [5, 0], r"position is \[5, 0\] at update 3"),
        ("position", [1, 0], r"position is \[1, 0\] at update 3"),
        (
            "training/task/network.head.bias",
            torch.zeros(40, dtype=torch.int8),
            "network.head.bias: numbers of type int8",
        ),
        ("training/task/network.head.bias", KeyError, "network.head.bias is missing"),
        ("training/task/network.head.bias", torch.zeros(3), r"network.head.bias: \[3\] in the file, \[40\] in the"),
        ("training/task/stranger", torch.zeros(3), "its state does not fit: .*stranger"),
        ("training/optimizers", [], "its state does not fit: there are 1 optimizer.s. now and 0 in the checkpoint"),
        ("training/optimizers/0", {"state": {}}, "its state does not fit: 'param_groups'"),
        ("processes/0/parts", {"nothing": {}}, "its state does not fit: .*nothing"),
    ],
)
def test_what_does_not_fit_the_run(run_with, whole, key, value, message):
    with pytest.raises(ConfigError, match=f"cannot go on .*{message}"):
        run_with(changed(whole, key, value))


def test_best_in_the_place_of_last(run_with, stopped, whole):
    best = load_checkpoint(stopped)
    best.pop("format_version")
    with (
        pytest.warns(UserWarning, match="last.ckpt is ignored: .*position is missing; only last.ckpt holds the state"),
        pytest.raises(ConfigError, match="none of last.ckpt in .* can be read .*, and the run is not started over"),
    ):
        run_with(best)


def test_the_generation_before_takes_the_place_of_one_of_another_form(tmp_path, whole):
    save_checkpoint(tmp_path / "last.ckpt", whole)
    save_checkpoint(tmp_path / "last.ckpt", {"update": 4})
    with pytest.warns(UserWarning, match="last.ckpt is ignored: .* is none to go on from: position is missing"):
        content, path = CheckpointStore(tmp_path).newest("last", form=check_resumable)
    assert (content["update"], path.name) == (3, "last.previous.ckpt")


def test_a_mutated_checkpoint_is_refused_or_read_as_what_it_is(tmp_path, stopped):
    """``python -m benchmarks.fuzz_checkpoints`` makes hundreds."""
    path = stopped / "checkpoints" / "last.ckpt"
    data, whole, counts = path.read_bytes(), load_checkpoint(path), Counter()
    assert outcome(path, whole) == "equal"
    for number in range(3 * len(MUTATIONS)):
        name, changed = mutated(data, 1, number)
        assert mutated(data, 1, number) == (name, changed), "a function of seed and number"
        target = tmp_path / "mutated.ckpt"
        target.write_bytes(changed)
        kind, said = outcome_in_child(target, whole)
        assert kind in ("equal", "other", "refused"), f"{name}, number {number}: {kind}: {said}"
        counts[kind] += 1
    assert counts["refused"] > len(MUTATIONS)
