"""Each check passes on a network that plays fair, and is violated, with a warning, by one made for it."""

import warnings

import pytest
import torch
from robust_bench import IMAGES, Linear, data, images, install

import lightning_modules.evaluators.robust_checks as checks
from kernels.batch import Output
from lightning_modules.evaluators.robust_sequence import Stage
from lightning_modules.evaluators.robustness import RobustnessEvaluator

CORNER, IDLE = [("corner", "Corner", {})], [("idle", "Idle", {})]
NAMES = ("eps = 0 equals clean accuracy", "accuracy falls with eps", "very large eps leaves chance",
         "FGSM is no stronger than PGD", "Square is no stronger than gradients", "the sequence misses nothing simple",
         "two forwards agree", "gradients are not zero", "attacked images stay in the ball")  # fmt: skip


def evaluated(network, batch, budget="fast"):
    """Metrics, {check: its row} and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = RobustnessEvaluator(budget=budget)(network, data(batch, size=11))
    rows = {row[0]: row for row in found.tables["Checks"].rows}
    assert tuple(rows) == NAMES
    violated = [name for name, row in rows.items() if row[1] == "violated"]
    assert found.metrics["violated_checks"] == len(violated) == len(caught)
    for name, one in zip(violated, caught, strict=True):
        assert one.category is UserWarning and f"'{name}' is violated: " in str(one.message)
        assert rows[name][3] and rows[name][3] in str(one.message), "with its reason"
    return found.metrics, rows, set(violated)


@pytest.fixture
def known(monkeypatch):
    network = Linear()
    network.weight.data *= 10
    install(monkeypatch, network, fast=CORNER, standard=[*CORNER, ("Square", "Idle", {})])
    return network, images(network)


def told(monkeypatch, name, kind):
    monkeypatch.setattr(checks, name, Stage(name, kind, {}))


@pytest.mark.parametrize("budget", ["fast", "standard"])
def test_a_linear_network_passes(known, budget):
    _, rows, violated = evaluated(*known, budget)
    assert not violated and {row[1] for row in rows.values()} == {"pass"} and not any(row[3] for row in rows.values())


class Random(Linear):
    """Acts at random in eval mode."""

    def forward(self, image):
        scores = self.logits(image)
        return Output(logits=scores + 0.5 * torch.randn(scores.shape, dtype=scores.dtype))


def test_layers_that_act_at_random(monkeypatch):
    network = Random()
    install(monkeypatch, network, fast=CORNER)
    _, rows, violated = evaluated(network, images(network))
    assert {"two forwards agree", "eps = 0 equals clean accuracy"} <= violated
    assert "random" in rows["two forwards agree"][3]


def test_predictions_that_change_without_an_attack(known, monkeypatch):
    told(monkeypatch, "CURVE", "Mirror")
    monkeypatch.setattr("lightning_modules.evaluators.robust_trial.OUTSIDE", 2.0)
    assert "eps = 0 equals clean accuracy" in evaluated(*known)[2]


def test_an_attack_that_gets_lost_in_large_balls(known, monkeypatch):
    told(monkeypatch, "CURVE", "Lost")
    _, rows, violated = evaluated(*known)
    assert {"accuracy falls with eps", "very large eps leaves chance"} == violated
    network, batch = known
    far = network.distance(batch.image, batch.label, 1)
    right, robust = (int((far > bound).sum()) for bound in (0, 8 / 255))
    assert rows["accuracy falls with eps"][2] == f"{robust} right at 1 eps, {right} at 1.5 eps"


def test_one_large_step_that_finds_more(known, monkeypatch):
    told(monkeypatch, "CURVE", "Idle")
    assert "FGSM is no stronger than PGD" in evaluated(*known)[2]


@pytest.mark.parametrize(("budget", "square"), [("fast", "FEW_QUERIES"), ("standard", None)])
def test_square_that_finds_what_gradients_miss(known, monkeypatch, budget, square):
    network, batch = known
    install(monkeypatch, network, fast=IDLE, standard=[*IDLE, ("Square", "Corner", {})])
    for name in ("CURVE", "FGSM"):
        told(monkeypatch, name, "Idle")
    if square:
        told(monkeypatch, square, "Corner")
    metrics, rows, violated = evaluated(network, batch, budget)
    name = "Square is no stronger than gradients"
    assert violated == {name, "very large eps leaves chance"}
    far = network.distance(batch.image, batch.label, 1)
    right, robust = (int((far > bound).sum()) for bound in (0, 8 / 255))
    fell, of = int(rows[name][2].split()[0]), int(rows[name][2].split()[2])
    if budget == "standard":
        assert (fell, of) == (right - robust, right) and metrics["robust_accuracy"] == robust / IMAGES
    else:
        assert 0 < fell < of < IMAGES / 2 and metrics["robust_accuracy"] == (right - fell) / IMAGES


def test_a_sequence_that_misses_what_pgd_finds(known, monkeypatch):
    """What falls to any attack in the ball is not robust, whichever attack that was."""
    network, batch = known
    install(monkeypatch, network, fast=IDLE)
    metrics, _, violated = evaluated(network, batch)
    assert violated == {"the sequence misses nothing simple"}
    far = network.distance(batch.image, batch.label, 1)
    assert metrics["robust_accuracy"] == (far > 8 / 255).sum().item() / IMAGES


class Quantized(Linear):
    """Looks at rounded pixels, whose gradient is zero."""

    def forward(self, image):
        return Output(logits=self.logits((image * 100).round() / 100 + 0 * image))


def test_gradients_that_are_zero(monkeypatch):
    network = Quantized()
    network.weight.data *= 10
    install(monkeypatch, network, fast=CORNER)
    _, rows, violated = evaluated(network, images(network))
    assert "gradients are not zero" in violated
    assert rows["gradients are not zero"][2].split()[0] == rows["gradients are not zero"][2].split()[2]


def test_an_attack_that_leaves_its_ball_fells_nobody(known, monkeypatch):
    network, batch = known
    install(monkeypatch, network, fast=[("outside", "Outside", {})])
    for name in ("CURVE", "FGSM"):
        told(monkeypatch, name, "Idle")
    metrics, rows, violated = evaluated(network, batch)
    assert "attacked images stay in the ball" in violated
    right = round(metrics["accuracy"] * IMAGES)
    assert rows["attacked images stay in the ball"][2].split()[0] == str(right)
    assert metrics["robust_accuracy"] == metrics["accuracy"]


def test_nothing_to_measure_is_said(known):
    network, batch = known
    wrong = batch.replace(label=1 - network(batch.image).logits.argmax(1))
    metrics, rows, _ = evaluated(network, wrong, "standard")
    assert rows["Square is no stronger than gradients"][1] == "not measured"
    assert metrics["robust_accuracy"] == metrics["accuracy"] == 0
