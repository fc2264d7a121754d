"""Shipped metric-learning recipes for 10 steps in float64 against plain PyTorch loops written from the papers."""

import copy
import math

import pytest
import torch

import recipes
from kernels.metrix import draw_mix
from recipes.configuration.problems import ConfigError

WORDS = [
    "backbone=conv4",
    "backbone.kwargs.channels=[4,8]",
    "head.dim=6",
    "data.batch_size=16",
    "data.samples_per_class=2",
    "data.limit_train=32",
    "trainer.max_epochs=5",
    "trainer.precision=64-true",
    "trainer.accelerator=cpu",
    "callback=[]",
    "evaluator=[]",
]
EPOCHS, STEPS = 5, 2
LR, DECAY, WARMUP = 1e-3, 1e-4, 0.1
ALPHA, BETA, BASE, EPSILON = 2.0, 40.0, 0.5, 0.1


def learning_rate(update):
    total, warmup = EPOCHS * STEPS, round(WARMUP * EPOCHS * STEPS)
    if update < warmup:
        return LR / (warmup + 1) * (1 + update)
    return 0.5 * LR * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))


def plain_adamw(network, moments, update):
    """Decoupled weight decay, on matrices only."""
    lr, t = learning_rate(update), update + 1
    with torch.no_grad():
        for name, p in network.named_parameters():
            m, v = moments.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            if p.ndim > 1:
                p.mul_(1 - lr * DECAY)
            p -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            p.grad = None


def mined(s, label):
    """Kept positives and negatives of each anchor."""
    pairs = []
    for i in range(len(label)):
        positives = [j for j in range(len(label)) if label[j] == label[i] and j != i]
        negatives = [j for j in range(len(label)) if label[j] != label[i]]
        nearest = max(float(s[i, j]) for j in negatives)
        farthest = min(float(s[i, j]) for j in positives)
        pairs.append(
            (
                [j for j in positives if float(s[i, j]) - EPSILON < nearest],
                [j for j in negatives if float(s[i, j]) + EPSILON > farthest],
            )
        )
    return pairs


def side(exponents, weights, sharpness):
    """``log(1 + sum w exp(e)) / sharpness``."""
    total = 1.0
    for e, w in zip(exponents, weights, strict=True):
        total = total + w * torch.exp(e)
    return torch.log(total) / sharpness if exponents else torch.zeros(())


def multi_similarity(s, pairs):
    total = 0.0
    for i, (positives, negatives) in enumerate(pairs):
        total = total + side([-ALPHA * (s[i, j] - BASE) for j in positives], [1.0] * len(positives), ALPHA)
        total = total + side([BETA * (s[i, j] - BASE) for j in negatives], [1.0] * len(negatives), BETA)
    return total / len(pairs)


def metrix(e, pairs, kind, lam):
    total = 0.0
    for i, (positives, negatives) in enumerate(pairs):
        firsts = [i] if kind == "anc_neg" else positives
        mixes = [lam * e[p] + (1 - lam) * e[n] for p in firsts for n in negatives]
        s = [e[i] @ v / v.norm() for v in mixes]
        total = total + side([-ALPHA * (x - BASE) for x in s], [lam] * len(s), ALPHA)
        total = total + side([BETA * (x - BASE) for x in s], [1 - lam] * len(s), BETA)
    return total / len(pairs)


@pytest.mark.parametrize("recipe", ["grocery_multi_similarity", "grocery_metrix"])
def test_ten_steps(recipe):
    run = recipes.build(recipe, [*WORDS, f"optimizer.lr={LR}"])
    plain = copy.deepcopy(run.task.network).double().train()
    run.trainer.fit(run.task, train_dataloaders=run.data.train_dataloader())
    assert run.task.update == EPOCHS * STEPS and run.data.steps_per_epoch == STEPS
    moments, kinds = {}, set()
    run.data.set_position(0)
    for epoch in range(EPOCHS):
        for i, batch in enumerate(run.data.train_dataloader()):
            update = epoch * STEPS + i
            e = torch.nn.functional.normalize(plain(batch.image.double()).embedding)
            pairs = mined((e @ e.T).detach(), batch.label)
            loss = multi_similarity(e @ e.T, pairs)
            if recipe == "grocery_metrix":
                kind, lam = draw_mix(0, update)
                kinds.add(kind)
                loss = loss + 0.4 * metrix(e, pairs, kind, lam)
            loss.backward()
            plain_adamw(plain, moments, update)
    ours = run.task.network.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9, msg=name)
    assert recipe != "grocery_metrix" or kinds == {"pos_neg", "anc_neg"}


CLASSES = {"cub": 100, "cars": 98, "sop": 11318, "inshop": 3997}
IMAGES = {"cub": 5864, "cars": 8054, "sop": 59551, "inshop": 25882}


@pytest.mark.parametrize("data", list(CLASSES))
@pytest.mark.parametrize("method", ["multi_similarity", "metrix"])
def test_published_settings_build_without_the_images(data, method, tmp_path):
    """From the declared facts of the set; nothing but weights and images is missing."""
    words = ["backbone.pretrained=false", "trainer.accelerator=cpu", "data.select_on=test_best"]
    run = recipes.build(f"{data}_{method}", [*words, f"data.root={tmp_path}/absent"])
    assert (run.data.num_classes, run.data.num_train) == (CLASSES[data], IMAGES[data])
    loss, config = run.task.parts.loss, run.config
    assert loss.keys == {"alpha": 17.97, "beta": 75.66, "base": 0.77, "epsilon": 0.39}
    assert run.data.steps_per_epoch == IMAGES[data] // 100 and run.task.network.head.embedding_dim == 512
    frozen = all(not p.requires_grad for p in run.task.network.backbone.bn1.parameters())
    assert frozen == (data in ("cub", "cars")) and run.task.train().network.backbone.bn1.training != frozen
    assert (run.task.parts.mixing is not None) == (method == "metrix")
    assert config["data"]["samples_per_class"] == (None if frozen else 5)
    with pytest.raises(ConfigError, match="data.root"):
        run.run()


def test_weights_that_cannot_be_reached_are_told(tmp_path, monkeypatch):
    """``if_reachable`` starts from timm's weights where it can, and says so where it cannot."""
    import timm

    words = ["trainer.accelerator=cpu", "backbone=tf_efficientnet_lite0"]

    def unreachable(*args, pretrained=False, **keys):
        if pretrained:
            raise OSError("no way to the hub")
        return create(*args, **keys)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.warns(UserWarning, match="training from scratch: could not get timm's weights.*no way to the hub"):
        recipes.build("grocery_multi_similarity", [*words, "backbone.pretrained=if_reachable"])
    with pytest.raises(ConfigError, match="could not get timm's weights"):
        recipes.build("grocery_multi_similarity", [*words, "backbone.pretrained=true"])
