"""A run end to end on the embedded photographs: what it leaves, what it refuses, and that it can be repeated."""

import copy
import csv
import hashlib
import json
import shlex

import pytest
import torch
import yaml
from tiny import SAF, but
from torch.nn.functional import cross_entropy

import recipes
from datamodules.sources.grocery import Grocery
from lightning_modules.part import Regularizer
from lightning_modules.tasks.classification import Classification
from lightning_modules.tasks.validation import Validation
from recipes.building.make import rebuild_network
from recipes.checkpoints.load import load_checkpoint
from recipes.configuration.problems import ConfigError
from recipes.running.recorder import Recorder
from recipes.running.run import NeverActed, _selection

TINY = [
    "backbone=test_efficientnet",
    "data.batch_size=32",
    "data.limit_train=64",
    "data.limit_test=80",
    "data.val_fraction=0.2",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
]


def rows_of(directory):
    with open(directory / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def fingerprint(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool | torch.Tensor)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its results, its configuration before it ran, and how often each loader was asked for."""
    output = tmp_path_factory.mktemp("runs")
    run = recipes.build("grocery_saf", [*TINY, *SAF, f"output={output}", "name=first", "seed=3"])
    before, calls = copy.deepcopy(run.config), []
    for part in ("train", "val", "test"):
        original = getattr(run.data, f"{part}_dataloader")

        def counted(part=part, original=original):
            calls.append((part, run.task.update))
            return original()

        setattr(run.data, f"{part}_dataloader", counted)
    return run, run.run(), before, calls


def test_the_directory_holds_all_that_is_promised(finished):
    run, results, _, _ = finished
    assert run.directory.name == "first" and run.directory.parent.name == "grocery_saf"
    files = {str(path.relative_to(run.directory)) for path in run.directory.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml", "command.txt", "environment.json", "metrics.csv", "results.json", "report.html",
        "status.json", ".lock",
        "checkpoints/last.ckpt", "checkpoints/last.previous.ckpt", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt.sha256", "checkpoints/last.previous.ckpt.sha256", "checkpoints/best.ckpt.sha256",
    }  # fmt: skip
    assert (run.directory / "report.html").read_text().lower().startswith("<!doctype html>")
    assert json.loads((run.directory / "results.json").read_text()) == results


def test_configuration_command_and_environment(finished):
    run, _, before, _ = finished
    assert run.config == before, "the run changed its configuration"
    assert yaml.safe_load((run.directory / "config.yaml").read_text()) == before
    assert (run.directory / "command.txt").read_text() == run.command + "\n"
    facts = json.loads((run.directory / "environment.json").read_text())
    assert torch.__version__.startswith(facts["torch"]) and facts["cpu_cores"] >= 1 and "git_commit" in facts


def test_a_command_typed_at_the_shell_is_kept(tmp_path):
    from recipes.cli import _command

    words = ["recipe=grocery_saf", "name=a b"]
    assert shlex.split(_command("train.py", words)) == ["python", "train.py", *words]


def test_metrics_and_results_agree(finished):
    run, results, _, _ = finished
    rows = rows_of(run.directory)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2] and [int(row["update"]) for row in rows] == [2, 4, 6]
    best = max(rows, key=lambda row: (float(row["val/accuracy"]), -float(row["val/loss"])))
    assert results["selected_epoch"] == int(best["epoch"])
    assert results["val"] == {name: float(best[f"val/{name}"]) for name in ("accuracy", "loss")}
    assert results["val_last"] == {name: float(rows[-1][f"val/{name}"]) for name in ("accuracy", "loss")}
    assert results["last_epoch"] == 2 and results["selected_by"] == ["accuracy", "-loss"]
    assert (results["epochs"], results["updates"], results["seed"], results["recipe"]) == (3, 6, 3, "grocery_saf")
    assert results["wall_seconds"] >= results["train_seconds"] > 0 and results["peak_memory_mb"] > 0
    assert results["images_per_second"] == pytest.approx(192 / results["train_seconds"])
    assert results["split"]["counts"] == {"train": 64, "val": 200, "test": 80}


def test_best_and_last_epoch_stand_side_by_side():
    """The last epoch is the last one that was validated; what selected is named as ``select`` names it."""
    rows = [
        {"epoch": 0, "val/accuracy": 0.5, "val/robustness/pgd_accuracy": 0.3},
        {"epoch": 1, "val/accuracy": 0.6, "val/robustness/pgd_accuracy": 0.2},
        {"epoch": 2, "train/loss": 1.0},
    ]
    assert _selection({"val/robustness/pgd_accuracy": 1.0, "val/loss": -1.0}, rows) == {
        "selected_by": ["robustness/pgd_accuracy", "-loss"],
        "val_last": {"accuracy": 0.6, "robustness/pgd_accuracy": 0.2},
        "last_epoch": 1,
    }
    assert _selection({}, rows[2:]) == _selection({}, []) == {}


def test_saf_acted_where_its_schedule_says(finished):
    run, results, _, _ = finished
    assert results["parts"]["saf"] == {"first_active_epoch": 1, "active_step_share": pytest.approx(4 / 6)}
    rows = rows_of(run.directory)
    assert rows[0]["train/saf"] == "" and float(rows[1]["train/saf"]) > 0
    assert [float(row["regularizer/saf/fresh_share"]) for row in rows] == [0, 1, 1]


def test_tensorboard_holds_the_same_numbers(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finished[0]
    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    for name in ("val/accuracy", "train/loss", "lr"):
        ours = [float(row[name]) for row in rows_of(run.directory)]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(ours)


def test_checkpoints_are_safe_complete_and_the_right_epoch(finished):
    run, results, _, _ = finished
    for name, epoch in (("last", 2), ("best", results["selected_epoch"])):
        content = torch.load(run.directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert is_plain(content) and content["metrics"]["epoch"] == epoch
        assert len(content["classes"]) == 40 and content["preprocessing"]["image_size"] == 48
        assert yaml.safe_load(content["config"]) == run.config
        assert ("training" in content) == (name == "last")
    assert set(content["network"]) == set(run.task.network.state_dict())
    assert not list(run.directory.rglob("*.part"))


def test_the_test_set_is_read_once_after_training_with_the_selected_weights(finished):
    run, results, _, calls = finished
    assert [call for call in calls if call[0] == "test"] == [("test", 6)] and calls[-1] == ("test", 6)
    content = load_checkpoint(run.directory)
    network = rebuild_network(yaml.safe_load(content["config"]), 40, content["network"]).eval()
    data = Grocery(limit_test=80)
    data.setup()
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        logits = network(batch.image).logits
    assert results["test"]["images"] == 80
    assert results["test"]["accuracy"] == (logits.argmax(1) == batch.label).sum().item() / 80
    assert results["test"]["loss"] == pytest.approx(cross_entropy(logits, batch.label).item(), rel=1e-5)


def test_a_name_that_is_no_file_name(tmp_path):
    run = recipes.build("grocery_baseline", [*TINY, f"output={tmp_path / 'runs'}", "name=../up"])
    for name in ("../up", "a/b", ".hidden", "", "x" * 101, "two words", "a\nb", "a\n"):
        run.config = run.config | {"name": name}
        with pytest.raises(ConfigError, match="must be a plain file name: letters, digits"):
            run.run()
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    run = recipes.build("grocery_baseline", [*TINY, f"output={tmp_path / 'file'}"])
    with pytest.raises(ConfigError, match="cannot make the run directory .* choose another output="):
        run.run()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.name=adamww", "optimizer.name=adamww is not known; did you mean adamw"),
        ("optimizer.kwargs.bettas=1", "bettas"),
        ("schedule.warmup_fraction=5.0", "warmup_fraction=5.0 is out of range; allowed: 0 <= warmup_fraction <= 1"),
        ("schedule.min_lr=9.0", "schedule.min_lr=9.0 is above optimizer.lr"),
        ("seed=-1", "-1"),
        ("trainer.precision=16-mixed", "trainer.precision='16-mixed' has the wrong type; allowed: Literal"),
        ("data.limit_train=5000", "data.limit_train=5000, but it must be between 1 and"),
        ("+mixing=mixup", "saf cannot be combined with mixing: the past logits"),
        ("trainer.max_epochs=1", "SAF can never act in 1 epochs"),
    ],
)
def test_values_that_cannot_work_are_refused_before_a_directory_is_made(tmp_path, word, message):
    with pytest.raises(ConfigError, match=message):
        recipes.build("grocery_saf", but([*TINY, *SAF, f"output={tmp_path / 'runs'}"], word))
    assert not (tmp_path / "runs").exists()


class Sleeper(Regularizer):
    """Asked for, and never on."""

    def forward(self, outputs, batch, step):
        return None

    def report(self):
        return {"first_active_epoch": -1}

    def acted(self):
        return False


def test_a_part_that_never_acted_ends_the_run_with_an_error(tmp_path):
    run = recipes.build("grocery_baseline", but(TINY, f"output={tmp_path}", "trainer.max_epochs=1"))
    run.task.parts.regularizers["sleeper"] = Sleeper()
    with pytest.raises(NeverActed, match="^sleeper never had an effect in this run"):
        run.run()
    results = json.loads((run.directory / "results.json").read_text())
    assert results["parts"] == {"sleeper": {"first_active_epoch": -1}} and "accuracy" in results["test"]
    assert (run.directory / "report.html").is_file()


def test_runs_with_one_seed_are_equal_whatever_the_workers(tmp_path):
    """All columns but the two that tell time, to the last digit; another seed differs."""
    kept = {}
    for name, words in {"a": [], "b": [], "workers": ["data.num_workers=2"], "other": ["seed=1"]}.items():
        words = but([*TINY, *SAF], "trainer.max_epochs=2", f"output={tmp_path}", f"name={name}", *words)
        run = recipes.build("grocery_saf", words)
        run.run()
        timed = ("seconds", "images_per_second")
        kept[name] = [{key: value for key, value in row.items() if key not in timed} for row in rows_of(run.directory)]
    assert kept["a"] == kept["b"] == kept["workers"]
    assert kept["a"] != kept["other"]


class Scripted:
    """What the recorder reads of a task, with validation numbers from a script."""

    is_global_zero = True

    validation = Validation(Classification.default_validation())

    def __init__(self, accuracies, losses):
        self.script = iter(zip(accuracies, losses, strict=True))
        self.epoch = -1

    def advance(self):
        self.epoch += 1
        accuracy, loss = next(self.script)
        self.epoch_metrics = {"epoch": self.epoch, "update": self.epoch, "val/accuracy": accuracy, "val/loss": loss}


@pytest.mark.parametrize(
    ("accuracies", "losses", "selected"),
    [
        ([0.1, 0.5, 0.4], [3.0, 2.0, 1.0], 1),
        ([0.5, 0.5, 0.5], [2.0, 1.0, 1.0], 1),
        ([0.2, 0.9, 0.3], [2.0, float("nan"), 2.0], 2),
    ],
)
def test_selection(tmp_path, accuracies, losses, selected):
    recorder, scripted, chosen = Recorder(tmp_path), Scripted(accuracies, losses), []
    for _ in accuracies:
        scripted.advance()
        recorder.epoch_done(scripted)
        if recorder.is_best(scripted):
            chosen.append(scripted.epoch)
    recorder.close()
    assert recorder.best["epoch"] == chosen[-1] == selected


def test_an_epoch_without_validation_is_never_selected_over_one_with_it(tmp_path):
    recorder = Recorder(tmp_path)
    rows = [
        ({"epoch": 0}, True),
        ({"epoch": 1, "val/accuracy": 0.5, "val/loss": 1.0}, True),
        ({"epoch": 2}, False),
        ({"epoch": 3, "val/accuracy": 0.5, "val/loss": 0.9}, True),
        ({"epoch": 4, "val/accuracy": 0.9, "val/loss": float("nan")}, False),
        ({"epoch": 5, "val/accuracy": 0.4, "val/loss": 0.1}, False),
    ]
    for row, expected in rows:
        task = Scripted([], [])
        task.epoch_metrics = row
        assert recorder.is_best(task) is expected
