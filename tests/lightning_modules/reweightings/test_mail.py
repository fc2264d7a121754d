"""MAIL: the official weights and losses, margins by hand, and a plain loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reweighting_bench import check_equal, composed, optimizer_of, plain_loop, train
from torch.nn.functional import cross_entropy, kl_div

from kernels.batch import Batch, Output
from lightning_modules.attacks.pgd import PGD
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.part import Loss
from lightning_modules.parts import Parts
from lightning_modules.reweightings.mail import MAIL, probabilistic_margin

ARRAYS = np.load(Path(__file__).parents[2] / "reference" / "adversarial" / "losses_on_logits.npz", allow_pickle=False)
AT, TRADES = {"bias": -0.5, "slope": 10.0}, {"bias": 0.0, "slope": 2.0}


def array(case, key):
    return torch.from_numpy(np.asarray(ARRAYS[f"{case}/{key}"]))


def weighed(case, losses, step, **keys):
    logits, label = array(case, "logits_adv"), array(case, "y")
    batch = Batch(torch.zeros(len(label), 0), label, torch.arange(len(label)))
    return MAIL(**keys)(losses, {"adversarial": Output(logits=logits)}, batch, step)


@pytest.fixture
def step(make_step, make_network):
    return make_step(make_network())


@pytest.mark.parametrize("case", ["c10", "c10big"])
def test_equals_the_official_code(step, case):
    adversarial, natural, label = (array(case, key) for key in ("logits_adv", "logits_nat", "y"))
    torch.testing.assert_close(probabilistic_margin(adversarial, label), array(case, "mail_pm"), rtol=1e-12, atol=1e-14)
    adversarial.requires_grad_(), natural.requires_grad_()
    losses = {
        "robust": cross_entropy(adversarial, label, reduction="none"),
        "kl": kl_div(adversarial.log_softmax(1), natural.softmax(1), reduction="none").sum(1),
        "natural": cross_entropy(natural, label, reduction="none"),
    }
    found = weighed(case, {"robust": losses["robust"]}, step, **AT)["robust"]
    torch.testing.assert_close(found * len(label), array(case, "mail_weight_bias=-0.5_slope=10"), rtol=1e-12, atol=0)
    total = (found * losses["robust"]).sum()
    torch.testing.assert_close(total, array(case, "mail_at_beta=6"), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(total, adversarial, retain_graph=True)
    torch.testing.assert_close(gradient, array(case, "mail_at_beta=6/grad_adv"), rtol=1e-9, atol=1e-12)

    found = weighed(case, losses, step, term="kl", **TRADES)
    assert list(found) == ["kl"], "the natural loss keeps the plain mean"
    torch.testing.assert_close(found["kl"] * len(label), array(case, "mail_weight_bias=0_slope=2"), rtol=1e-12, atol=0)
    for beta in (1, 6):
        total = losses["natural"].mean() + beta * (found["kl"] * losses["kl"]).sum()
        torch.testing.assert_close(total, array(case, f"mail_trades_beta={beta}"), rtol=1e-10, atol=0)
        gradients = torch.autograd.grad(total, (natural, adversarial), retain_graph=True)
        for name, gradient in zip(("nat", "adv"), gradients, strict=True):
            expected = array(case, f"mail_trades_beta={beta}/grad_{name}")
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


def test_margins_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 9e2]], dtype=torch.float64)
    e = [math.exp(2), math.exp(1), 1.0]
    for label, other in ((0, 1), (1, 0), (2, 0)):
        found = probabilistic_margin(logits, torch.tensor([label, 2]))
        assert found[0].item() == pytest.approx((e[other] - e[label]) / sum(e), abs=1e-15) and found[1] == -1
    half = probabilistic_margin(logits.bfloat16(), torch.tensor([0, 2]))
    assert half.dtype == torch.float32
    assert not probabilistic_margin(logits.clone().requires_grad_(), torch.tensor([0, 2])).requires_grad


def test_more_on_the_wrong_side_weighs_more(step):
    found = weighed("c10", {"a": torch.zeros(8)}, step, factor=2.0, **AT)["a"]
    order = array("c10", "mail_pm").argsort()
    assert (found[order].diff() > 0).all() and (found * 8 < 2).all() and found.dtype == torch.float32
    three = weighed("c10", {"a": torch.zeros(8)}, step, **AT)["a"]
    torch.testing.assert_close(found * 1.5, three)


class Two(Loss):
    views = ("clean", "main")

    def forward(self, outputs, batch, step):
        return {
            "natural": cross_entropy(outputs["clean"].logits, batch.label, reduction="none"),
            "robust": cross_entropy(outputs["main"].logits, batch.label, reduction="none"),
        }


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context, micro_batches):
    network, plain = make_network(), make_network()
    parts = composed(MAIL(term="robust", slope=5.0, bias=0.1), make_context(network), PGD(steps=2), Two())
    train(parts, network, optimizer_of(network), make_batch, make_step, micro_batches=micro_batches)

    def scalar(net, images, batch, survived, update):
        logits = net(images).logits
        total = cross_entropy(net(batch.image).logits, batch.label)
        for q, y, z in zip(logits.softmax(1).tolist(), batch.label.tolist(), logits, strict=True):
            margin = max(share for k, share in enumerate(q) if k != y) - q[y]
            weight = 3 / (1 + math.exp(-5 * (margin + 0.1)))
            total = total + weight / 8 * cross_entropy(z[None], torch.tensor([y]))
        return total

    plain_loop(plain, make_batch, scalar, 2)
    check_equal(network, plain)
    assert parts.idle() == [] and parts.end_epoch()["reweighting/coefficient_sum"] > 1


def test_refusals(step):
    with pytest.raises(ValueError, match="reweighting needs attack: add one with attack=NAME"):
        Parts(CrossEntropy(), reweighting=MAIL())
    with pytest.raises(ValueError, match="reweighting needs hard_labels: a class for each sample"):
        Parts(CrossEntropy(), attack=PGD(), mixing=Mixup(), reweighting=MAIL())
    with pytest.raises(ValueError, match="reweighting.term=kl is not known.* Allowed: robust"):
        weighed("c10", {"robust": torch.zeros(8)}, step, term="kl")
    with pytest.raises(ValueError, match="slope=0 is out of range; allowed: slope > 0"):
        MAIL(slope=0)
