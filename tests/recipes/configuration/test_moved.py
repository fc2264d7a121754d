"""Stored configurations of before the files moved: every path in them leads to a part of today."""

import pytest

from recipes.configuration.compose import compose_config
from recipes.configuration.moved import read_stored, renamed
from recipes.configuration.signature import signature

OLD = {
    "datamodules.grocery.Grocery": "datamodules.sources.grocery.Grocery",
    "datamodules.folder_disjoint.FolderDisjoint": "datamodules.sources.folder_disjoint.FolderDisjoint",
    "datamodules.augment.BatchAugment": "datamodules.augmentation.augment.BatchAugment",
    "lightning_modules.classification.Classification": "lightning_modules.tasks.classification.Classification",
    "lightning_modules.metric_learning.MetricLearner": "lightning_modules.tasks.metric_learning.MetricLearner",
    "recipes.trainer.create_trainer": "recipes.processes.trainer.create_trainer",
    "lightning_modules.heads.linear.Linear": "lightning_modules.heads.linear.Linear",
}


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_old_paths_lead_to_the_parts_of_today(old, new):
    assert renamed({"data": [{"_target_": old, "name": old}]}) == {"data": [{"_target_": new, "name": old}]}
    assert signature(new) is not None


def test_paths_of_today_stay():
    config = compose_config(["recipe=grocery_metrix"])
    assert renamed(config) == config


def test_text_is_read_as_any_other():
    assert read_stored("data: {_target_: datamodules.cifar.CIFAR10}")["data"]["_target_"].endswith(
        "sources.cifar.CIFAR10"
    )
    with pytest.raises(ValueError, match="the key 'a' is given twice"):
        read_stored("a: 1\na: 2")
