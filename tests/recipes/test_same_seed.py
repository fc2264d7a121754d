"""One seed is one result, whatever process, hash seed and number of loader processes it runs in."""

import os
import subprocess
import sys

import pytest

import recipes
from recipes.checkpoint import CheckpointStore
from recipes.self_check import differing
from recipes.signature import ROOT

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
    "evaluator=[]",
    "callback=[]",
]


def test_another_process_with_another_hash_seed_and_loaders(tmp_path):
    words = [*WORDS, f"output={tmp_path}"]
    command = [sys.executable, str(ROOT / "train.py"), *words, "name=other", "data.num_workers=2"]
    keys = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(command, env=os.environ | keys, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    recipes.build(overrides=[*words, "name=here", "data.num_workers=0"]).run()
    error = other.communicate(timeout=120)[1].decode()
    assert other.returncode == 0, error
    here, there = (
        CheckpointStore(tmp_path / "grocery_saf" / name / "checkpoints").newest("last")[0] for name in ("here", "other")
    )
    assert here["update"] == 6 and not (found := differing(here, there)), found[:5]
