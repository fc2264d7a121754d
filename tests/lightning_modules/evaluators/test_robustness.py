"""Robust accuracy: closed form of a linear network, exact counts, and independence of batches."""

import copy
import warnings

import pytest
import torch
from robust_bench import IMAGES, Idle, Linear, data, images, install

from kernels.batch import Batch, Output
from kernels.counter_rng import uniform
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.evaluators.base import evaluate_all
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.evaluators.robust_sequence import FAST, SEQUENCES, STANDARD, Stage, attack_of
from lightning_modules.evaluators.robustness import RobustnessEvaluator, RobustValidation
from lightning_modules.tasks.validation import Validation

EPS = 8 / 255
CORNER = [("corner", "Corner", {})]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def known(monkeypatch):
    network = Linear()
    network.weight.data *= 10
    install(monkeypatch, network, fast=CORNER, standard=[*CORNER, ("Square", "Idle", {})])
    return network, images(network)


def test_the_closed_form_of_a_linear_network(known):
    network, batch = known
    far = network.distance(batch.image, batch.label, 1)
    assert 10 < (far > EPS).sum() < 50 < (far > 0).sum() < IMAGES, "the example tells them apart"
    found = RobustnessEvaluator(curve=[0.1, 0.3, 2.0])(network, data(batch))
    metrics = found.metrics
    assert metrics["accuracy"] == (far > 0).sum().item() / IMAGES
    assert metrics["robust_accuracy"] == (far > EPS).sum().item() / IMAGES
    by_class = [((far > EPS) & (batch.label == c)).sum().item() / (batch.label == c).sum().item() for c in (0, 1)]
    assert metrics["worst_class"] == metrics["tail_30"] == min(by_class)
    curve = found.figures["Accuracy over eps"]
    assert curve.x == [0.0, 0.1, 0.3, 1.0, 2.0] and curve.x_label.endswith("eps = 8/255")
    assert curve.lines["PGD"] == [(far > m * EPS).sum().item() / IMAGES for m in curve.x]
    assert metrics["violated_checks"] == 0 and metrics["images"] == IMAGES
    table = found.tables["Classes, the least robust first"]
    assert [row[2] for row in table.rows] == sorted(by_class) and sum(row[3] for row in table.rows) == IMAGES


def test_the_interval_is_wilsons(known):
    network, batch = known
    metrics = RobustnessEvaluator()(network, data(batch)).metrics
    for bound in (metrics["robust_low"], metrics["robust_high"]):
        spread = 1.959964 * (bound * (1 - bound) / IMAGES) ** 0.5
        assert abs(abs(metrics["robust_accuracy"] - bound) - spread) < 1e-9


def test_l2_is_the_closed_form_away_from_the_border(known, monkeypatch):
    network, batch = known
    monkeypatch.setitem(SEQUENCES, "fast", (Stage("PGD", "PGD", {"steps": 10}, step=0.25),))
    far = network.distance(batch.image, batch.label, 2)
    clear = (far - 0.15).abs() > 0.01  # ten steps of PGD come no nearer to the best point of a sphere
    batch = batch.map(lambda t: t[clear])
    found = RobustnessEvaluator(norm="l2", eps=0.15, curve=[])(network, data(batch))
    robust = (far[clear] > 0.15).double().mean().item()
    assert 0.2 < robust < 0.8 and found.metrics["robust_accuracy"] == robust
    assert found.figures["Accuracy over eps"].lines["PGD"][-1] == robust


@pytest.mark.parametrize("budget", ["fast", "standard"])
def test_counts_are_exact(monkeypatch, budget):
    """An image meets no attack after the one that felled it; the found images are looked at once."""
    network = Linear()
    network.weight.data *= 10
    stages = [("idle", "Idle", {"looks": 3, "slopes": 2}), ("half", "HalfWay", {"looks": 1}),
              ("corner", "Corner", {"slopes": 5}), ("Square", "Idle", {"looks": 7})]  # fmt: skip
    install(monkeypatch, network, **{budget: stages})
    batch = images(network)
    far = network.distance(batch.image, batch.label, 1)
    found = RobustnessEvaluator(budget=budget)(network, data(batch, size=7))
    right, half, robust = ((far > bound).sum().item() for bound in (0, EPS / 2, EPS))
    assert right > half > robust > 0
    rows = {row[0]: row[2:5] for row in found.tables["Accuracy after each attack"].rows}
    assert rows["no attack"] == [right / IMAGES, IMAGES, 0]
    assert rows["idle"] == [right / IMAGES, right * (3 + 2 + 1), right * 2]
    assert rows["half"] == [half / IMAGES, right * (1 + 1), 0]
    assert rows["corner"] == [robust / IMAGES, half * (5 + 1), half * 5]
    assert rows["Square"] == [robust / IMAGES, robust * (7 + 1), 0]
    forwards = IMAGES + 6 * right + 2 * right + 6 * half + 8 * robust
    assert found.metrics["forwards"] == forwards and found.metrics["forwards_per_image"] == forwards / IMAGES
    assert found.metrics["backwards"] == 2 * right + 5 * half
    radii, few = 7, 0
    if budget == "fast":  # one look at each survivor of the sample
        standing = batch.index[far > EPS]
        few = (uniform(0, 0, standing, 0, ["robustness.square"])[0] < 0.25).sum().item()
        assert 0 < few < robust
    assert rows["checks"][1] == 2 * IMAGES + right * (10 + 1) * (radii + 1) + right * 2 + few
    assert rows["checks"][2] == IMAGES + right * 10 * (radii + 1) + right


@pytest.mark.parametrize("limit", [None, 25])
def test_neither_the_size_nor_the_order_of_batches_matters(monkeypatch, limit):
    """With PGD from a random start in place of the corner, and pictures chosen at random."""
    network = Linear(seed=1)
    network.weight.data *= 10
    install(monkeypatch, network)
    monkeypatch.setitem(SEQUENCES, "fast", (Stage("PGD", "PGD", {"steps": 3}, step=0.3),))
    batch = images(network)
    evaluator = RobustnessEvaluator(limit=limit, num_pictures=3, seed=5)
    other_seed = RobustnessEvaluator(limit=limit, num_pictures=3, seed=6)
    with warnings.catch_warnings(action="ignore"):  # three steps are few
        whole, other = evaluator(network, data(batch)), other_seed(network, data(batch))
        shuffled = evaluator(network, data(batch, size=7, order=torch.randperm(IMAGES)))
    assert whole.metrics == shuffled.metrics and whole.metrics["images"] == (limit or IMAGES)
    assert whole.figures == shuffled.figures
    ours, theirs = whole.pictures["Images that fell"], shuffled.pictures["Images that fell"]
    assert [row.index for row in ours] == [row.index for row in theirs] and len(ours) == 3
    assert all((a.pictures[1].picture == b.pictures[1].picture).all() for a, b in zip(ours, theirs, strict=True))
    assert [row.index for row in other.pictures["Images that fell"]] != [row.index for row in ours]


def test_the_limit_is_a_random_sample_of_the_stream(known):
    network, batch = known
    batch = batch.map(lambda t: t[batch.label.argsort()])  # class after class, as folders are
    found = RobustnessEvaluator(limit=20)(network, data(batch, size=6))
    counts = [row[3] for row in found.tables["Classes, the least robust first"].rows]
    assert sum(counts) == 20 and min(counts) >= 4
    (line,) = found.tables["Protocol"].rows
    assert line == ["linf, eps 8/255, 20 of 60 images at random, seed 0, fast budget, network in eval mode"]


def test_beside_classification_and_without_a_trace(known):
    network, batch = known
    network.train().weight.requires_grad_(False)
    network.weight.grad = torch.ones_like(network.weight)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    evaluators = {"classification": ClassificationEvaluator(), "robustness": RobustnessEvaluator(budget="standard")}
    done, failed = evaluate_all(evaluators, network, data(batch, size=13))
    assert not failed and done["classification"].metrics["accuracy"] == done["robustness"].metrics["accuracy"]
    assert network.training and not network.weight.requires_grad and network.weight.grad.eq(1).all()
    assert torch.equal(network.weight, before["weight"]) and torch.equal(random, torch.get_rng_state())


def test_pictures_show_the_image_the_attack_and_the_difference(known):
    network, batch = known
    found = RobustnessEvaluator(num_pictures=100)(network, data(batch))
    far = network.distance(batch.image, batch.label, 1)
    fallen = ((far > 0) & (far <= EPS)).nonzero()[:, 0]
    rows = found.pictures["Images that fell"]
    assert [row.index for row in rows] == batch.index[fallen].tolist()
    for row, i in zip(rows, fallen.tolist(), strict=True):
        clean, attack, difference = (one.picture for one in row.pictures)
        assert (clean == (batch.image[i] * 255).round().byte().permute(1, 2, 0).numpy()).all()
        assert set(abs(attack.astype(int) - clean).ravel()) == {8}
        assert ((difference == 255) == (attack > clean)).all() and ((difference == 0) == (attack < clean)).all()
        own = int(batch.label[i])
        words = [f"class {own}", f"taken for class {1 - own}", "difference × 15.9"]
        assert [one.caption for one in row.pictures] == words and row.note == "corner"
    assert not RobustnessEvaluator(num_pictures=0)(network, data(batch)).pictures


class Scores(Linear):
    """A network with something wrong."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, image):
        return Output(logits=self.change(self.logits(image)))


@pytest.mark.parametrize(
    ("change", "batch_change", "message"),
    [
        (lambda z: z * float("nan"), {}, "scores for an image are not finite"),
        (lambda z: None, {}, "the head gives none; choose a classifying head"),
        (lambda z: z[:, :1], {}, "the network has 1 classes and the data 2"),
        (lambda z: z, {"image": lambda x: x * 2}, r"images reach from 0\.\d+ to 1\.\d+;.*as the data modules do"),
        (lambda z: z, {"image": lambda x: x * float("nan")}, "images reach from nan"),
        (lambda z: z, {"label": lambda y: torch.eye(2)[y]}, r"labels of shape \[60, 2\]; an accuracy needs one class"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("evaluator", [RobustnessEvaluator(), RobustValidation()])
def test_what_cannot_be_attacked(monkeypatch, evaluator, change, batch_change, message):
    network = Linear()
    install(monkeypatch, network, fast=CORNER)
    batch = images(network)
    batch = batch.replace(**{name: function(getattr(batch, name)) for name, function in batch_change.items()})
    with pytest.raises(ValueError, match=message):
        evaluator(Scores(change), data(batch))


def test_an_attacked_image_without_finite_scores(known, monkeypatch):
    network, batch = known
    install(monkeypatch, network, fast=[("stray", "Stray", {})])
    with pytest.raises(ValueError, match="scores for an attacked image are not finite"):
        RobustnessEvaluator()(network, data(batch))


def test_no_images(known):
    with pytest.raises(ValueError, match=r"no image to evaluate; check data\.root"):
        RobustnessEvaluator()(known[0], data(known[1].map(lambda t: t[:0])))


@pytest.mark.parametrize("made", [RobustnessEvaluator, RobustValidation])
@pytest.mark.parametrize(
    ("eps", "message"),
    [(-1.0, "eps=-1.0 is out of range; allowed: eps >= 0"), ("-8/255", "eps=-8/255 is out of range"),
     ("big", "eps=big is no size; write a number from 0 on, or a fraction")],
)  # fmt: skip
def test_values_that_cannot_be(made, eps, message):
    with pytest.raises(ValueError, match=message):
        made(eps=eps)


def test_validation_is_pgd_and_selects(known):
    network, batch = known
    validation = Validation({"robustness": RobustValidation(steps=4, seed=3)})
    assert validation.selecting == {"val/pgd_accuracy": 1.0}
    validation.begin(network.eval(), data(batch, brief=True))
    with torch.no_grad():
        for part in data(batch, size=9).batches:
            validation.add(part, network(part.image))
    columns = validation.columns()
    with attacked(network) as victim:
        attack = PGD(steps=4, step_size=EPS / 4)
        x = attack.search(victim, batch.image, batch.label, Draw(3, 0, batch.index)).image
    right = [network(image).logits.argmax(1) == batch.label for image in (batch.image, x)]
    expected = {"val/pgd_accuracy": (right[0] & right[1]).double().mean().item(),
                "val/accuracy": right[0].double().mean().item()}  # fmt: skip
    assert columns == expected and 0 < columns["val/pgd_accuracy"] < columns["val/accuracy"]
    assert validation.rank(columns) == (columns["val/pgd_accuracy"],)


def test_validation_attacks_only_what_is_right(known, monkeypatch):
    """Also where nothing is."""
    network, batch = known
    right, seen = network(batch.image).logits.argmax(1) == batch.label, []
    search = PGD.search
    monkeypatch.setattr(PGD, "search", lambda self, *given: seen.append(given[3].index) or search(self, *given))
    whole = RobustValidation()(network, data(batch)).metrics
    assert torch.equal(torch.cat(seen), batch.index[right]) and 0 < len(seen[0]) < IMAGES
    nothing = RobustValidation()(network, data(batch.map(lambda t: t[~right]))).metrics
    assert nothing == {"pgd_accuracy": 0.0, "accuracy": 0.0} and len(seen) == 1 and whole["pgd_accuracy"] > 0


def test_sums_of_validation_are_those_of_all_processes(known, monkeypatch):
    """Two processes with unequal shares."""
    network, batch = known
    shares = [batch.map(lambda t, at=at: t[at]) for at in (slice(0, 43), slice(43, None))]
    evaluator, kept = RobustValidation(), []
    whole = evaluator(network, data(batch)).metrics

    def second(vector: torch.Tensor) -> torch.Tensor:
        kept.append(vector)
        return vector if len(kept) == 1 else kept[0] + vector

    monkeypatch.setattr("lightning_modules.evaluators.robust_sums.total_over_processes", second)
    evaluator(network, data(shares[0]))
    assert evaluator(network, data(shares[1])).metrics == whole


def test_a_validation_asks_for_no_pictures_and_tables(known):
    network, batch = known
    found = RobustnessEvaluator()(network, data(batch, brief=True))
    assert found.metrics and not (found.tables or found.figures or found.pictures)


def test_published_settings():
    """AutoAttack, version "standard"."""
    assert [(stage.name, dict(stage.keys)) for stage in STANDARD] == [
        ("APGD-CE", {"steps": 100}),
        ("APGD-T", {"steps": 100, "targets": 9}),
        ("FAB-T", {"steps": 100, "targets": 9}),
        ("Square", {"queries": 5000}),
    ]
    assert all(stage.gradients for stage in FAST)


def test_no_more_targets_than_other_classes(monkeypatch):
    install(monkeypatch, Linear())
    made = []
    monkeypatch.setattr(Idle, "__init__", lambda self, **keys: made.append(keys))
    for classes in (2, 10, 100):
        attack_of(Stage("x", "Idle", {"targets": 9, "steps": 4}, step=0.5), 0.1, "l2", classes)
    assert [keys["targets"] for keys in made] == [1, 9, 9]
    assert made[0] == {"eps": 0.1, "norm": "l2", "targets": 1, "steps": 4, "step_size": 0.05}


def test_a_batch_of_none_is_nothing(known):
    network, batch = known
    whole = RobustnessEvaluator()(network, data(batch)).metrics
    parts = data(batch, size=20)
    parts.batches.insert(1, Batch(batch.image[:0], batch.label[:0], batch.index[:0]))
    assert RobustnessEvaluator()(network, parts).metrics == whole


@pytest.mark.parametrize("budget", ["fast", pytest.param("standard", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_shipped_sequences_reach_the_closed_form(budget, norm):
    """Also with three classes, which are too few for the targeted DLR."""
    pytest.importorskip("lightning_modules.attacks.apgd_dlr")
    network = Linear(classes=3)
    network.weight.data *= 10
    batch = images(network, classes=3)
    eps = EPS if norm == "linf" else 0.15
    far = network.distance(batch.image, batch.label, 1 if norm == "linf" else 2)
    clear = (far - eps).abs() > 0.02 * eps
    batch, far = batch.map(lambda t: t[clear]), far[clear]
    found = RobustnessEvaluator(budget=budget, eps=eps, norm=norm, curve=[])(network, data(batch, classes=3))
    assert found.metrics["robust_accuracy"] == (far > eps).double().mean().item()
    assert 0.1 < found.metrics["robust_accuracy"] < found.metrics["accuracy"] - 0.1
