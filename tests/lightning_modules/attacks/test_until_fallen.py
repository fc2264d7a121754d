"""The four attacks of AutoAttack: exact balls, independent samples, survivors only, and nothing left in the network."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from linear_victims import LinearVictim, can_fall_l2, can_fall_linf, found_by, images, wrong

from kernels.batch import Batch
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.apgd_dlr import APGDDLR
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.fab import FAB
from lightning_modules.attacks.square import Square
from lightning_modules.attacks.until_fallen import LOOK, UntilFallen
from lightning_modules.attacks.victim import attacked

MAKERS = {
    "apgd_ce": lambda **keys: APGDCE(steps=20, **keys),
    "apgd_dlr": lambda **keys: APGDDLR(steps=20, targets=None, **keys),
    "apgd_t": lambda **keys: APGDDLR(steps=20, targets=2, **keys),
    "fab": lambda **keys: FAB(steps=20, targets=2, **keys),
    "square": lambda **keys: Square(queries=60, **keys),
}
EACH = pytest.mark.parametrize("name", MAKERS)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
EPS = {"linf": 0.03, "l2": 0.15}


@EACH
@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_in_the_ball(name, norm, dtype):
    network = LinearVictim(5, dtype=dtype)
    batch, eps = network.right(images(60, dtype=dtype)), EPS[norm]
    found, _ = found_by(MAKERS[name](eps=eps, norm=norm), network, batch)
    assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
    fallen = wrong(network, found, batch.label)
    assert 0 < fallen.sum() < 60
    if norm == "linf":
        pairs = zip(found.flatten().tolist(), batch.image.flatten().tolist(), strict=True)
        far = max(abs(Fraction(a) - Fraction(b)) for a, b in pairs)
        assert far <= Fraction(eps) + (Fraction(1, 2**53) if dtype == torch.float64 else 0)
    else:
        far = np.linalg.norm((found.double() - batch.image.double()).flatten(1).numpy(), axis=1)
        assert (far <= eps).all() and far.max() > 0.5 * eps


@EACH
@NORMS
def test_a_sample_does_not_depend_on_its_batch(name, norm):
    network = LinearVictim(5)
    batch = network.right(images(24))
    attack = MAKERS[name](eps=EPS[norm], norm=norm)
    whole, _ = found_by(attack, network, batch)
    assert not torch.equal(whole, batch.image)
    for rows in ([2], [5, 0, 7], list(range(12, 24))):
        part, _ = found_by(attack, network, batch.map(lambda t, rows=rows: t[rows]))
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)


@EACH
@NORMS
def test_other_numbers_are_drawn_for_another_seed_alone(name, norm):
    network = LinearVictim(5)
    batch = network.right(images(8))
    attack, random = MAKERS[name](eps=EPS[norm] / 10, norm=norm), torch.get_rng_state()
    first, again, other = (found_by(attack, network, batch, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(random, torch.get_rng_state())
    if name == "square":  # the others end where they end
        assert not torch.equal(first, other)


@EACH
@NORMS
@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore:targets=")
def test_few_classes(name, norm, classes):
    """Exactly those fall that can, where every other class is gone to; and one class is none to fall from."""
    network, eps = LinearVictim(classes), 0.02 if norm == "linf" else 0.08
    batch = network.right(images(40, low=0.3, high=0.7))
    found, victim = found_by(MAKERS[name](eps=eps, norm=norm), network, batch)
    assert found.isfinite().all()
    if classes == 1:
        assert torch.equal(found, batch.image) and victim.forwards == 40
        return
    limit = (can_fall_linf if norm == "linf" else can_fall_l2)(network, batch, eps)
    fallen, can = wrong(network, found, batch.label), limit > 0
    assert 5 < can.sum() < 35 and not fallen[~can].any()
    if name == "square":
        assert fallen[can].float().mean() > 0.3
    elif classes == 2 or (name in ("apgd_t", "fab") and classes == 3):
        assert fallen[limit > 0.02].all()
    else:
        assert fallen[can].float().mean() > 0.7


@EACH
def test_radius_zero_is_the_image_itself(name):
    network = LinearVictim(5)
    batch = network.right(images(4))
    found, victim = found_by(MAKERS[name](eps=0.0), network, batch)
    assert torch.equal(found, batch.image) and victim.forwards == 0


@EACH
def test_what_is_misclassified_is_its_own_adversarial_image(name):
    network = LinearVictim(5)
    batch = network.right(images(6))
    batch = batch.replace(label=(batch.label + torch.tensor([1, 0, 1, 0, 0, 1])) % 5)
    found, _ = found_by(MAKERS[name](eps=0.1), network, batch)
    kept = [torch.equal(a, b) for a, b in zip(found, batch.image, strict=True)]
    assert kept == [True, False, True, False, False, True]
    assert wrong(network, found, batch.label).all()


@EACH
def test_samples_that_have_fallen_cost_nothing(name):
    """The passes of a batch are those of its samples by themselves, each rounded up to the next look."""
    network = LinearVictim(5)
    batch, attack = network.right(images(30)), MAKERS[name](eps=0.03)
    found, victim = found_by(attack, network, batch)
    alone = [found_by(attack, network, batch.map(lambda t, row=row: t[row : row + 1]))[1] for row in range(30)]
    assert victim.forwards == sum(one.forwards for one in alone)
    assert victim.backwards == sum(one.backwards for one in alone)
    nothing_falls = found_by(MAKERS[name](eps=1e-6), network, batch)[1]
    assert victim.forwards < 0.9 * nothing_falls.forwards
    everything = found_by(MAKERS[name](eps=1.0), network, batch)[1]
    assert everything.forwards <= 30 * (1 + 2 * (LOOK + 1))


@EACH
def test_soft_labels_are_their_largest_share(name):
    network = LinearVictim(5)
    batch = network.right(images(6))
    soft = torch.full((6, 5), 0.1, dtype=torch.float64).scatter(1, batch.label[:, None], 0.6)
    found, _ = found_by(MAKERS[name](eps=0.02), network, batch)
    other, _ = found_by(MAKERS[name](eps=0.02), network, batch.replace(label=soft))
    assert torch.equal(found, other)


@EACH
def test_nothing_of_the_network_is_touched(make_network, make_batch, make_step, name):
    network, batch = make_network(batch_norm=True, dropout=0.5).train(), make_batch(range(8))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random, image = torch.get_rng_state(), batch.image.clone()
    made = MAKERS[name](eps=0.3)(batch, make_step(network))
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(batch.image, image)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in network.parameters())
    assert network.training and network.backbone.norm.training
    assert made.clean_image is batch.image and made.survived_steps is None
    assert not made.image.requires_grad and not torch.equal(made.image, batch.image)


@pytest.mark.parametrize("kind", [APGDDLR, FAB])
def test_fewer_classes_than_targets(kind):
    network = LinearVictim(5)
    batch = network.right(images(4))
    with pytest.warns(
        UserWarning, match=f"targets=9, and the network has 4 classes beside the true one: {kind.__name__}"
    ):
        found_by(kind(steps=2, eps=1e-6), network, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, victim = found_by(kind(steps=2, eps=1e-6, targets=4), network, batch)
    assert victim.backwards == 4 * 4 * (2 if kind is FAB else 3), "each target has a run of its own"


def test_of_survivors_the_best_run_is_kept():
    """More restarts are never worse, and the value of the image that is returned is the best of all runs."""
    network = LinearVictim(5)
    batch = network.right(images(30))
    before = None
    for restarts in (1, 2, 4):
        found, _ = found_by(APGDCE(eps=0.02, norm="l2", steps=1, restarts=restarts), network, batch)
        value = torch.nn.functional.cross_entropy(network(found).logits, batch.label, reduction="none").detach()
        value = value.where(~wrong(network, found, batch.label), torch.inf)
        assert before is None or ((value >= before).all() and (value > before).any()), "other starts"
        before = value


def test_a_subclass_says_what_it_must_define():
    network = LinearVictim(3)
    batch: Batch = network.right(images(2))
    with attacked(network) as victim, pytest.raises(NotImplementedError, match="UntilFallen must define start"):
        UntilFallen(eps=0.1, norm="linf", steps=1).search(victim, batch.image, batch.label, Draw(0, 0, batch.index))
