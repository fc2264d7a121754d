"""Shipped recipes, as ``train.py`` builds them, for 10 steps in float64 against plain PyTorch loops of the papers."""

import copy
import math

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import recipes
from recipes.configuration.problems import ConfigError

SMALL = [
    "backbone.kwargs.channels=[4,8]",
    "data.limit_train=64",
    "trainer.max_epochs=5",
    "trainer.precision=64-true",
    "trainer.accelerator=cpu",
    "callback=[]",
    "evaluator=[]",
]
EPOCHS, STEPS = 5, 2
LR, MOMENTUM, DECAY, SMOOTHING, WARMUP = 0.05, 0.9, 5e-4, 0.1, 0.08


def learning_rate(update: int) -> float:
    """Linear warm-up over 8 % of the run, then half a cosine to zero."""
    total = EPOCHS * STEPS
    warmup = round(WARMUP * total)
    start = LR / (warmup + 1)
    if update < warmup:
        return start + update * (LR - start) / warmup
    return 0.5 * LR * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))


def plain_sgd(network: torch.nn.Module, velocity: dict, update: int) -> None:
    """timm's ``sgd``: Nesterov momentum; weight decay on matrices only."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            gradient = p.grad + (DECAY * p if p.ndim > 1 else 0.0)
            velocity[name] = MOMENTUM * velocity[name] + gradient if name in velocity else gradient.clone()
            p -= learning_rate(update) * (gradient + MOMENTUM * velocity[name])
            p.grad = None


def batches(run):
    """The recipe's own batches, in float64: (epoch, update, batch)."""
    run.data.set_position(0)
    for epoch in range(EPOCHS):
        for i, batch in enumerate(run.data.train_dataloader()):
            yield epoch, epoch * STEPS + i, batch.replace(image=batch.image.double())


def fitted(recipe: str, *words: str):
    """The run after training, and a copy of the network it started from."""
    run = recipes.build(recipe, [*SMALL, *words])
    start = copy.deepcopy(run.task.network).double().train()
    run.trainer.fit(run.task, train_dataloaders=run.data.train_dataloader())
    assert run.task.update == EPOCHS * STEPS and run.data.steps_per_epoch == STEPS
    return run, start


def assert_same_weights(run, plain) -> None:
    ours = run.task.network.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9, msg=name)


def test_grocery_baseline():
    run, plain = fitted("grocery_baseline")
    velocity: dict = {}
    for _, update, batch in batches(run):
        cross_entropy(plain(batch.image).logits, batch.label, label_smoothing=SMOOTHING).backward()
        plain_sgd(plain, velocity, update)
    assert_same_weights(run, plain)


def test_grocery_saf():
    run, plain = fitted("grocery_saf", "regularizer.saf.lag=2")  # start_epoch 0.3: on from epoch 2
    velocity: dict = {}
    memory: dict = {}
    for epoch, update, batch in batches(run):
        logits = plain(batch.image).logits
        loss = cross_entropy(logits, batch.label, label_smoothing=SMOOTHING)
        for row, i in enumerate(batch.index.tolist()):
            if epoch > 1 and (epoch - 2, i) in memory:
                p = (memory[epoch - 2, i].double() / 5).softmax(0)
                loss = loss + 0.3 * 25 / len(batch) * (p * (p.log() - (logits[row] / 5).log_softmax(0))).sum()
        loss.backward()
        plain_sgd(plain, velocity, update)
        memory |= {(epoch, i): logits[row].detach().half() for row, i in enumerate(batch.index.tolist())}
    assert_same_weights(run, plain)
    assert run.task.parts.report()["saf"]["first_active_epoch"] == 2


def test_grocery_mesa():
    run, plain = fitted("grocery_mesa")
    teacher = copy.deepcopy(plain).eval()
    velocity: dict = {}
    for epoch, update, batch in batches(run):
        logits = plain(batch.image).logits
        loss = cross_entropy(logits, batch.label, label_smoothing=SMOOTHING)
        if epoch > 1:
            with torch.no_grad():
                p = (teacher(batch.image).logits / 5).softmax(1)
            loss = loss + 0.8 * 25 * (p * (p.log() - (logits / 5).log_softmax(1))).sum(1).mean()
        loss.backward()
        plain_sgd(plain, velocity, update)
        with torch.no_grad():
            pairs = zip(teacher.state_dict().items(), plain.state_dict().values(), strict=True)
            for (name, average), value in pairs:
                if average.is_floating_point() and not name.startswith("normalize"):
                    average.copy_(0.995 * average + 0.005 * value)
    assert_same_weights(run, plain)


@pytest.mark.parametrize("recipe", ["imagenet_saf", "cifar_saf", "cifar_mesa", "cifar100_saf"])
def test_recipes_for_absent_data_build_on_a_stand_in(recipe, tmp_path):
    """All parts of the recipe but its images: a tree of three classes."""
    for part in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (i * 20, 60, 90)).save(tmp_path / part / name / f"{i}.png")
    words = [
        "data=folder",
        f"data.root={tmp_path}",
        "data.test_folder=val",
        "data.val_folder=null",
        "data.batch_size=4",
    ]
    run = recipes.build(recipe, [*words, "data.image_size=32", "data.val_fraction=0.25", "trainer.accelerator=cpu"])
    part = next(iter(run.task.parts.regularizers.values()))
    assert run.data.num_classes == 3 and part.window.first < run.config["trainer"]["max_epochs"]
    batch = next(iter(run.data.train_dataloader()))
    assert run.task.network.eval()(batch.image).logits.shape == (4, 3)


def test_imagenet_builds_without_its_images(tmp_path):
    """From the declared facts: sizes and schedule are those of ImageNet; running says where images go."""
    words = [f"data.root={tmp_path}/absent", "trainer.accelerator=cpu"]
    run = recipes.build("imagenet_saf", [*words, "regularizer=saf", "regularizer.saf.weight=0"])  # no 5 GB store here
    assert (run.data.num_classes, run.data.num_train) == (1000, 1281167)
    assert run.data.steps_per_epoch == 1281167 * 98 // 100 // 1024
    with pytest.raises(ConfigError, match=r"no folder .*absent/train.*data\.root=FOLDER"):
        run.run()
    assert not (tmp_path / "runs").exists()
