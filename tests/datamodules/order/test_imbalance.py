"""Counts of imbalanced sets by their formulas, and the choice of the samples."""

from __future__ import annotations

import pytest
import torch

from datamodules.order.imbalance import imbalanced_counts, shares, thin_out

NAMES = tuple("abcdefghij")


def published(profile: str, ratio: float, classes: int, most: int) -> list[int]:
    """The counts of the authors' code (kaidic/LDAM-DRW), class by class, in exact integers where it has floats."""
    if profile == "step":
        return [most] * (classes // 2) + [int(most / ratio)] * (classes - classes // 2)
    return [int(most * (1 / ratio) ** (label / (classes - 1.0))) for label in range(classes)]


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("ratio", [10, 50, 100])
@pytest.mark.parametrize("profile", ["exponential", "step"])
def test_counts_are_those_of_the_published_sets(profile: str, ratio: int, classes: int) -> None:
    each = 50_000 // classes
    names = [str(label) for label in range(classes)]
    found = imbalanced_counts(torch.full((classes,), each), profile, ratio, names).tolist()
    assert found == published(profile, ratio, classes, each)
    assert found[0] == each and found[-1] == each // ratio and found == sorted(found, reverse=True)


def test_the_long_tailed_cifar_10_has_its_known_sizes() -> None:
    counts = torch.full((10,), 5000)
    assert imbalanced_counts(counts, "exponential", 100, NAMES).tolist() == [
        5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50
    ]  # fmt: skip
    assert int(imbalanced_counts(counts, "exponential", 100, NAMES).sum()) == 12_406
    assert int(imbalanced_counts(counts, "step", 100, NAMES).sum()) == 25_250


def test_unequal_classes_give_the_formula_all_the_same() -> None:
    """``n_max`` is the largest with which every class has enough: searched for here, number by number."""
    counts = torch.tensor([40, 90, 9, 70])
    for profile in ("exponential", "step"):
        share = shares(profile, 4, 8)
        best = max(
            n for n in range(1, 200) if all(n * s <= c + 1e-9 for s, c in zip(share, counts.tolist(), strict=True))
        )
        found = imbalanced_counts(counts, profile, 8, NAMES[:4]).tolist()
        assert found[0] == best and all(have <= there for have, there in zip(found, counts.tolist(), strict=True))
    assert imbalanced_counts(counts, "step", 1, NAMES[:4]).tolist() == [9] * 4, "ratio 1 is a balanced set"


def test_samples_are_drawn_class_by_class_and_sets_lie_inside_one_another() -> None:
    labels = torch.arange(200) % 4
    index = torch.arange(200)[torch.arange(200) % 7 != 0]
    keep, fewer = torch.tensor([20, 10, 5, 1]), torch.tensor([20, 6, 3, 1])
    found = thin_out(labels, index, keep, 3)
    assert torch.bincount(labels[found]).tolist() == keep.tolist()
    assert torch.equal(found, found.sort().values) and bool(torch.isin(found, index).all())
    assert torch.equal(thin_out(labels, index, keep, 3), found) and not torch.equal(
        thin_out(labels, index, keep, 4), found
    )
    assert bool(torch.isin(thin_out(labels, index, fewer, 3), found).all())


def test_every_sample_is_as_likely_as_another() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    drawn = torch.zeros(40)
    for seed in range(600):
        drawn[thin_out(labels, torch.arange(40), torch.tensor([10]), seed)] += 1
    assert bool(((drawn - 150).abs() < 5 * (600 * 0.25 * 0.75) ** 0.5).all())


def test_the_global_random_state_is_not_touched() -> None:
    state = torch.get_rng_state()
    thin_out(torch.zeros(9, dtype=torch.int64), torch.arange(9), torch.tensor([2]), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"imbalance_ratio=100 leaves no sample of class 'h': .* has 22 of 22. Use a sm"
    ):
        imbalanced_counts(torch.full((10,), 22), "exponential", 100, NAMES)
    with pytest.raises(ValueError, match="leaves no sample of class 'a': the largest class has 0 of 5"):
        imbalanced_counts(torch.tensor([0, 5]), "step", 2, NAMES)
    with pytest.raises(ValueError, match="data.imbalance=step needs a second class"):
        imbalanced_counts(torch.tensor([5]), "step", 2, "a")
