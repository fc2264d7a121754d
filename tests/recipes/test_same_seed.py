"""One seed is one result, whatever process, hash seed, number of loader processes and environment it runs in."""

import os
import subprocess
import sys

import pytest

import recipes
from recipes.checkpoints.load import CheckpointStore
from recipes.configuration.signature import ROOT
from recipes.running.self_check import differing

pytestmark = pytest.mark.fault

WORDS = [
    "recipe=grocery_saf",
    "backbone=test_efficientnet",
    "head.dropout_prob=0.2",
    "data.batch_size=8",
    "data.limit_train=24",
    "data.limit_test=8",
    "data.val_fraction=0.02",
    "regularizer.saf.lag=1",
    "regularizer.saf.start_epoch=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "callback=[]",
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a run in this process, and that of the same run in a process unlike it, with what that printed.

    The other one has another hash seed, two loader processes and hardly an environment, and leaves its run below a
    folder with a space and letters of two alphabets.
    """
    here = tmp_path_factory.mktemp("here")
    there = here / "a b" / "größe-размер"
    command = [sys.executable, str(ROOT / "train.py"), *WORDS, f"output={there}", "name=run", "data.num_workers=2"]
    keys = {"PATH": os.environ["PATH"], "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "12345"}
    pipes = {name: subprocess.PIPE for name in ("stdout", "stderr")}
    other = subprocess.Popen(command, env=keys, stdin=subprocess.DEVNULL, **pipes)
    recipes.build(overrides=[*WORDS, f"output={here}", "name=run", "data.num_workers=0"]).run()
    out, error = other.communicate(timeout=120)
    assert other.returncode == 0, error.decode()
    return here / "grocery_saf" / "run", there / "grocery_saf" / "run", out


def test_another_process_with_another_hash_seed_and_loaders(both):
    here, there = (CheckpointStore(folder / "checkpoints").newest("last")[0] for folder in both[:2])
    assert here["update"] == 6 and not (found := differing(here, there)), found[:5]


def test_without_home_terminal_or_locale_and_with_odd_paths(both):
    _, folder, printed = both
    assert (folder / "report.html").is_file()
    assert b"\x1b" not in printed, "no colours where there is no terminal"
