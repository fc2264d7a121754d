"""The classification task through lightning.Trainer: equal to a plain PyTorch loop, and safe on bad batches."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.finite.check import NonFiniteError
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.optimization import create_optimizer, create_schedule
from lightning_modules.part import Regularizer
from lightning_modules.parts import Parts
from lightning_modules.regularizers.saf import SAF
from lightning_modules.tasks.classification import Classification
from recipes.processes.trainer import create_trainer

EPOCHS, STEPS, LR, MIN_LR, MOMENTUM, DECAY, CLIP, EMA = 2, 5, 0.4, 0.01, 0.8, 1e-2, 0.2, 0.55


def loader(batches):
    return DataLoader(batches, batch_size=None)


@pytest.fixture
def train_batches(make_batch):
    return [make_batch(list(range(8 * i, 8 * i + 8)), seed=i) for i in range(STEPS)]


@pytest.fixture
def make_task(make_context):
    def make(network, parts=None, lr=LR, **keys):
        return Classification(
            network,
            parts or Parts(CrossEntropy(label_smoothing=0.1)),
            lambda net, owned: create_optimizer(
                net, owned, name="momentum", lr=lr, momentum=MOMENTUM, weight_decay=DECAY, decay_norm_and_bias=True
            ),
            lambda optimizer, total: create_schedule(
                optimizer, total, name="cosine", warmup_fraction=0.2, min_lr=MIN_LR
            ),
            make_context(network, max_epochs=EPOCHS, steps_per_epoch=STEPS),
            **keys,
        )

    return make


def fit(task, batches, val=None, precision="64-true", epochs=EPOCHS):
    trainer = create_trainer(max_epochs=epochs, accelerator="cpu", devices=1, precision=precision)
    trainer.fit(task, loader(batches), val and loader(val))
    return trainer


def learning_rate(update):
    """Two updates of linear warm-up from lr / 3, then a cosine over the other eight."""
    if update < 2:
        return LR / 3 + update * (LR - LR / 3) / 2
    return MIN_LR + 0.5 * (LR - MIN_LR) * (1 + math.cos(math.pi * (update - 2) / 8))


def plain_loop(network, batches):
    """SGD with momentum, coupled weight decay, clipping by the global norm and a warmed-up average, all by hand."""
    average = copy.deepcopy(network)
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    norms, losses, correct = [], [], 0
    for update in range(EPOCHS * STEPS):
        batch, halves = batches[update % STEPS], (slice(0, 4), slice(4, 8))
        logits = torch.cat([network(batch.image[half]).logits for half in halves])
        loss = cross_entropy(logits, batch.label, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, CLIP / (norm + 1e-6))
        with torch.no_grad():
            for p, g, v in zip(network.parameters(), gradients, velocity, strict=True):
                v.mul_(MOMENTUM).add_(g * scale + DECAY * p)
                p.sub_(learning_rate(update) * v)
        keep = min(EMA, 1 - (1 + update) ** (-2 / 3))
        for a, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            a.copy_(keep * a + (1 - keep) * value if a.is_floating_point() else value)
        norms.append(norm)
        losses.append(loss.item())
        correct += int((logits.argmax(1) == batch.label).sum()) if update >= STEPS else 0
    return average, norms, losses, correct


@pytest.mark.parametrize("batch_norm", [False, True])
def test_ten_updates_equal_a_plain_loop(make_network, make_task, train_batches, make_batch, batch_norm):
    network, plain = make_network(batch_norm=batch_norm), make_network(batch_norm=batch_norm)
    task = make_task(network, clip_norm=CLIP, ema_decay=EMA, micro_batches=2)
    fit(task, train_batches, val=[make_batch([1, 2, 3], seed=9)])
    average, norms, losses, correct = plain_loop(plain, train_batches)
    assert min(norms) < CLIP < max(norms), "the test must see clipped and unclipped updates"
    assert task.update == EPOCHS * STEPS
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=0, atol=1e-9, msg=key)
    for key, value in task.evaluated_network.state_dict().items():
        torch.testing.assert_close(value, average.state_dict()[key], rtol=0, atol=1e-9, msg=f"average {key}")
    row = task.epoch_metrics
    assert row["train/loss"] == pytest.approx(sum(losses[STEPS:]) / STEPS, abs=1e-9)
    assert row["train/cross_entropy"] == row["train/loss"] and row["train/accuracy"] == correct / (8 * STEPS)
    assert row["lr"] == pytest.approx(learning_rate(9)) and (row["epoch"], row["update"]) == (1, 10)


def test_validation_is_of_the_average_over_all_samples(make_network, make_task, train_batches, make_batch):
    val = [make_batch(list(range(7)), seed=20), make_batch([7, 8], seed=21)]
    task = make_task(make_network(batch_norm=True), ema_decay=EMA)
    trainer = fit(task, train_batches, val)
    network = task.evaluated_network.eval()
    assert network is not task.network
    losses, hits = [], []
    for batch in val:
        for image, label in zip(batch.image, batch.label.tolist(), strict=True):
            scores = network(image[None]).logits[0].tolist()
            losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[label])
            hits.append(scores[label] == max(scores))
    metrics = trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(sum(losses) / 9, rel=1e-6)
    assert float(metrics["val/accuracy"]) == pytest.approx(sum(hits) / 9, rel=1e-6)
    assert task.epoch_metrics["val/accuracy"] == sum(hits) / 9, "the row is not rounded to float32"


class FlatRoot(Regularizer):
    """A finite term whose gradient is 0 / 0."""

    def forward(self, outputs, batch, step):
        logits_BC = outputs["main"].class_scores
        return (logits_BC - logits_BC.detach()).square().sum(1).sqrt()


def test_a_gradient_that_is_not_a_number_changes_nothing(make_network, make_task, train_batches):
    network = make_network()
    task = make_task(network, Parts(CrossEntropy(), {"root": FlatRoot()}), clip_norm=None)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(NonFiniteError, match="the gradient norm is not finite in epoch 0, update 0"):
        fit(task, train_batches)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_needs_the_whole_batch_is_refused_in_pieces(make_network, make_task):
    parts = Parts(CrossEntropy())
    parts.loss.per_sample = False
    with pytest.raises(ValueError, match="CrossEntropy is defined on the whole batch, and micro_batches=2"):
        make_task(make_network(), parts, micro_batches=2)
    with pytest.raises(ValueError, match="ema_decay=1.5 is out of range; allowed: 0 <= ema_decay < 1"):
        make_task(make_network(), ema_decay=1.5)


def test_a_loss_that_is_not_a_number_changes_nothing(make_network, make_task, train_batches):
    network = make_network()
    parts = Parts(CrossEntropy(), {"saf": SAF(lag=1, start_epoch=0)})
    task = make_task(network, parts, ema_decay=EMA)
    seen = []

    def remember(update):
        seen.append((update, copy.deepcopy(task.state_dict()), copy.deepcopy(task.optimizers().state_dict())))

    task.on_train_batch_start = lambda batch, batch_idx: remember(task.update)
    train_batches[3].image[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"cross_entropy is not finite in epoch 0, update 3; .*: 26 \(1 in all\)"):
        fit(task, train_batches)
    update, state, optimizer = seen[-1]
    assert update == task.update == 3
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())
    for key, value in task.optimizers().state_dict()["state"].items():
        assert torch.equal(value["momentum_buffer"], optimizer["state"][key]["momentum_buffer"])
    assert bool((parts.regularizers["saf"].written[0, 24:32] == -1).all()), "the bad batch left a trace in the store"


@pytest.mark.parametrize(("size", "micro_batches"), [(1, 1), (3, 3), (3, 2)])
def test_batch_of_one_with_batch_norm(make_network, make_task, make_batch, size, micro_batches):
    task = make_task(make_network(batch_norm=True), micro_batches=micro_batches)
    message = rf"a batch of {size} image\(s\) in {micro_batches} micro-batch.*data.drop_last=true"
    with pytest.raises(ValueError, match=message):
        fit(task, [make_batch(list(range(size)))])
    fit(make_task(make_network(batch_norm=False), micro_batches=micro_batches), [make_batch(list(range(size)))])


def small_resnet(freeze):
    torch.manual_seed(0)
    backbone = create_backbone(name="cifar_resnet20", freeze=freeze, kwargs={"width": 2})
    return Network(backbone, Linear(backbone.num_features, 3))


def test_a_frozen_backbone_stays_and_takes_a_batch_of_one(make_task, make_batch):
    network = small_resnet(freeze=True)
    before = copy.deepcopy(network.state_dict())
    batches = [make_batch([i], seed=i, dtype=torch.float32) for i in range(STEPS)]
    fit(make_task(network), batches, val=batches[:1], precision="32-true")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("head."), key
    assert not network.backbone.training and network.head.training


def test_compile_keeps_the_keys(make_network, make_task, train_batches, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    plain, fast = make_task(make_network(), ema_decay=EMA), make_task(make_network(), ema_decay=EMA, compile=True)
    assert len(compiled) == 1
    assert list(plain.state_dict()) == list(fast.state_dict())
    for task in (plain, fast):
        fit(task, train_batches[:1])
    for key, value in plain.state_dict().items():
        assert torch.equal(value, fast.state_dict()[key]), key


def test_channels_last_changes_the_layout_only(make_task, train_batches):
    states, layouts = [], []
    for channels_last in (False, True):
        network = small_resnet(freeze=False).double()
        network.backbone.conv1.register_forward_hook(
            lambda module, given, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        fit(make_task(network, channels_last=channels_last), train_batches)
        states.append(network.state_dict())
    assert layouts == [False] * 10 + [True] * 10
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-9, msg=key)


def test_arguments_that_cannot_work(make_network, make_task):
    with pytest.raises(ValueError, match=r"micro_batches=0 is out of range; allowed: micro_batches >= 1 \(int\)"):
        make_task(make_network(), micro_batches=0)
    with pytest.raises(ValueError, match="clip_norm=0.0 is out of range; allowed: clip_norm > 0"):
        make_task(make_network(), clip_norm=0.0)


@pytest.mark.parametrize("position", [(1, 2), (0, 3), (0, 1)])
def test_a_batch_of_another_place_is_not_trained_on(position, make_task, make_network, train_batches):
    """The batches say where they belong, and the third says something else."""
    placed = [batch.replace(position=(0, number)) for number, batch in enumerate(train_batches)]
    whole, task = make_task(make_network()), make_task(make_network())
    fit(whole, placed, epochs=1)
    assert whole.update == STEPS
    placed[2] = placed[2].replace(position=position)
    message = f"loader gave batch {position[1]} of epoch {position[0]} where batch 2 of epoch 0 is due .*resume=RUN"
    with pytest.raises(RuntimeError, match=message):
        fit(task, placed, epochs=1)
    assert task.update == 2
