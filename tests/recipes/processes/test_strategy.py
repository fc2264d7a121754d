"""Which strategies there are, what torchrun's processes are checked against, and shares that cannot be made."""

import pytest
from tiny import but

import recipes
from recipes.configuration.problems import ConfigError
from recipes.processes.strategy import DDP, choose_strategy, devices_of_torchrun

TINY = [
    "backbone=test_vit",
    "data.limit_train=24",
    "data.batch_size=8",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "callback=[]",
]


def test_strategies():
    assert choose_strategy("auto", 1, 1, 9) == choose_strategy("auto", [3], 1, 9) == "auto"
    for name, devices, nodes in (
        ("auto", 2, 1),
        ("auto", "auto", 1),
        ("auto", 1, 2),
        ("ddp", 1, 1),
        ("auto", [0, 1], 1),
    ):
        chosen = choose_strategy(name, devices, nodes, 9)
        assert isinstance(chosen, DDP) and chosen._timeout.total_seconds() == 9
        assert "find_unused_parameters" not in chosen._ddp_kwargs
    assert choose_strategy("ddp_find_unused_parameters_true", 1, 1, 9)._ddp_kwargs["find_unused_parameters"]
    with pytest.raises(ConfigError, match="trainer.strategy=fsdp is not supported; allowed: auto, ddp, ddp_find"):
        recipes.build(overrides=[*TINY, "trainer.strategy=fsdp"])
    with pytest.raises(ConfigError, match="trainer.process_timeout_s=0 is out of range; allowed: "):
        recipes.build(overrides=[*TINY, "trainer.process_timeout_s=0"])


@pytest.fixture
def torchrun(monkeypatch):
    def started(here, everywhere):
        keys = {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": here, "WORLD_SIZE": everywhere}
        for key, value in keys.items():
            monkeypatch.setenv(key, str(value))

    return started


def test_processes_of_torchrun(torchrun):
    assert devices_of_torchrun("auto", 1) == "auto", "without torchrun it is left alone"
    torchrun(4, 8)
    assert devices_of_torchrun("auto", 2) == devices_of_torchrun(-1, 2) == 4
    assert devices_of_torchrun("0,1,2,3", 2) == "0,1,2,3" and devices_of_torchrun([0, 1, 2, 3], 2) == [0, 1, 2, 3]
    message = r"torchrun started 8 processes, 4 on each machine, .*set trainer.devices=4 trainer.num_nodes=2"
    with pytest.raises(ConfigError, match=message):
        recipes.build(overrides=[*TINY, "trainer.devices=4"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.batch_size=2"], "a batch of 2 samples cannot be shared by 3 processes"),
        (["data.batch_size=11", "data.drop_last=false"], "a batch of 2 samples cannot be shared by 3 processes"),
        (["data.batch_size=8", "data.val_fraction=0.002"], r"2 validation sample\(s\) cannot be shared by 3 processes"),
    ],
)
def test_shares_that_cannot_be_made(words, message):
    with pytest.raises(ConfigError, match=message):
        recipes.build(overrides=but(TINY, "trainer.devices=3", *words))
