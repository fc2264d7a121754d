"""What leaves a machine with a run: no environment variables, no user names, no paths in exported files."""

import json
import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from safetensors import safe_open

import recipes
from recipes.checkpoints.load import save_checkpoint
from recipes.exporting.export_checkpoint import export_checkpoint
from recipes.processes.trainer import create_trainer
from recipes.running.directory import environment

pytestmark = pytest.mark.fault
SECRET = "s3cret-token-of-the-environment"
SMALL = ["data.limit_train=80", "data.limit_test=40", "backbone=cifar_resnet20"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(text of what a checkpoint holds, bytes of the file exported from it), made with a secret in the environment."""
    folder = tmp_path_factory.mktemp("home") / "jane_doe"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_TOKEN", SECRET)
        run = recipes.build("grocery_baseline", [*SMALL, f"output={folder / 'runs'}"])
        facts = run._facts()
        content = {**facts, "network": run.task.network.state_dict()}
        save_checkpoint(folder / "x.ckpt", content)
        [file] = export_checkpoint(checkpoint=str(folder / "x.ckpt"), output=str(folder / "x.safetensors"))
    return json.dumps(facts, default=str), file, folder


def test_the_record_of_the_environment_names_no_variable(monkeypatch):
    monkeypatch.setenv("API_TOKEN", SECRET)
    text = json.dumps(environment())
    assert SECRET not in text and "API_TOKEN" not in text and str(Path.home()) not in text.replace("/root-", "")
    assert os.uname().nodename not in text


def test_a_checkpoint_holds_no_environment(exported):
    assert SECRET not in exported[0] and "API_TOKEN" not in exported[0]


def test_an_exported_file_holds_no_path(exported):
    _, file, folder = exported
    raw = file.read_bytes()
    with safe_open(file, "pt") as opened:
        text = json.dumps(opened.metadata())
    for private in (str(folder), "jane_doe", SECRET, str(Path.cwd()), "runs"):
        assert private.encode() not in raw[: len(raw) // 2] and private not in text
    assert "config" not in json.loads(text)


def test_the_requeue_of_slurm_cannot_be_reached(monkeypatch):
    """Lightning's handler passes SLURM's job id to a shell; it is registered only where auto_requeue holds."""
    values = {"JOB_ID": "1; touch marker", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0",
              "NODEID": "0", "NTASKS_PER_NODE": "1", "NODELIST": "localhost"}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert SLURMEnvironment.detect()
    trainer = create_trainer(max_epochs=1, accelerator="cpu")
    used = trainer._accelerator_connector.cluster_environment
    assert isinstance(used, SLURMEnvironment) and not used.auto_requeue
    before = signal.getsignal(signal.SIGUSR1)
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    try:
        assert signal.getsignal(signal.SIGUSR1) is before
        assert connector._slurm_sigusr_handler_fn not in getattr(
            signal.getsignal(signal.SIGUSR1), "signal_handlers", []
        )
    finally:
        connector.teardown()


def test_outside_slurm_nothing_is_passed(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    trainer = create_trainer(max_epochs=1, accelerator="cpu")
    assert not isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
