"""Mixup: images and labels re-derived sample by sample, and draws that are functions of (seed, update)."""

import numpy as np
import pytest
import torch

from kernels.batch import Step
from lightning_modules.mixing.mixup import Mixup

CLASSES = 3


@pytest.fixture
def mixed(make_context, make_network):
    context = make_context(make_network())

    def mix(batch, seed=0, update=0, **keys):
        mixup = Mixup(**keys)
        mixup.setup(context)
        step = Step(epoch=0, update=update, seed=seed, network=None, forward=None, batch_size=len(batch))
        return mixup.mix_batch(batch, step)

    return mix


def assert_is_mixture(mixed, batch, ratio):
    """Pixel by pixel and class by class, for whatever partner the field names."""
    for i, j in enumerate(mixed.partner.tolist()):
        expected = ratio * batch.image[i] + (1 - ratio) * batch.image[j]
        torch.testing.assert_close(mixed.image[i], expected, rtol=0, atol=1e-12)
        label = [0.0] * CLASSES
        label[int(batch.label[i])] += ratio
        label[int(batch.label[j])] += 1 - ratio
        assert mixed.label[i].tolist() == pytest.approx(label, abs=1e-15)
    assert mixed.ratio.tolist() == [ratio] * len(batch)


@pytest.mark.parametrize("size", [8, 7, 2])
def test_every_sample_is_the_mixture_its_fields_say(mixed, make_batch, size):
    batch = make_batch(list(range(3, 3 + size)))
    found = mixed(batch, alpha=0.5, update=4)
    assert found.partner.tolist() == list(range(size))[::-1]
    ratio = found.ratio[0].item()
    assert 0 < ratio < 1
    assert_is_mixture(found, batch, ratio)
    torch.testing.assert_close(found.label.sum(1), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(found.index, batch.index) and batch.label.ndim == 1


def test_a_single_sample_is_mixed_with_itself(mixed, make_batch):
    batch = make_batch([5])
    found = mixed(batch, alpha=1.0)
    torch.testing.assert_close(found.image, batch.image, rtol=0, atol=1e-15)
    assert found.partner.tolist() == [0] and found.label.tolist() == [[0.0, 0.0, 1.0]]


def test_the_ratio_is_a_function_of_seed_and_update(mixed, make_batch):
    batch, pairs = make_batch([0, 1]), [(0, 0), (0, 1), (1, 0), (1, 1)]
    draws = [mixed(batch, seed=seed, update=update).ratio[0].item() for seed, update in pairs]
    assert len(set(draws)) == 4
    assert mixed(batch, seed=1, update=0).ratio[0].item() == draws[2]


def test_global_random_numbers_are_untouched(mixed, make_batch):
    torch.manual_seed(0)
    np.random.seed(0)
    ours, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed(make_batch([0, 1]))
    assert torch.equal(torch.get_rng_state(), ours) and np.array_equal(np.random.get_state()[1], numpys)


def test_share_of_mixed_batches_and_distribution_of_the_ratio(mixed, make_batch):
    """500 batches: prob of them mixed; Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    batch = make_batch([0, 1])
    ratios = np.array([mixed(batch, alpha=1.0, prob=0.6, update=u).ratio[0].item() for u in range(500)])
    inside = ratios[ratios < 1]
    assert len(inside) / 500 == pytest.approx(0.6, abs=0.08)
    assert inside.mean() == pytest.approx(0.5, abs=0.06) and inside.var() == pytest.approx(1 / 12, abs=0.02)


def test_an_unmixed_batch_keeps_its_images_and_gets_soft_labels(mixed, make_batch):
    batch = make_batch([0, 1, 2])
    found = mixed(batch, prob=0.0)
    assert torch.equal(found.image, batch.image) and found.ratio.tolist() == [1.0] * 3
    assert found.label.tolist() == torch.eye(3).tolist()


def test_float32_batches_stay_float32(mixed, make_batch):
    found = mixed(make_batch([0, 1], dtype=torch.float32))
    assert found.image.dtype == found.label.dtype == found.ratio.dtype == torch.float32


def test_refusals():
    for alpha in (0, -1.0):
        with pytest.raises(ValueError, match=f"alpha={alpha} is out of range; allowed: alpha > 0"):
            Mixup(alpha=alpha)
    for prob in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"prob={prob} is out of range; allowed: 0 <= prob <= 1"):
            Mixup(prob=prob)
