"""CutMix: the pasted box found again in the pixels, the label from its area, and boxes at the border."""

import numpy as np
import pytest
import torch

from kernels.batch import Batch, Step
from lightning_modules.mixing.cutmix import CutMix, cut_box

CLASSES, SIDE = 3, 10


def constant_images(labels):
    """Image i is filled with (i + 1) / 100, so that every pixel tells where it came from."""
    count = len(labels)
    values = torch.arange(1, count + 1, dtype=torch.float64) / 100
    image = values.view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).clone()
    return Batch(image=image, label=torch.tensor(labels), index=torch.arange(count))


@pytest.fixture
def mixed(make_context, make_network):
    context = make_context(make_network())

    def mix(batch, seed=0, update=0, **keys):
        cutmix = CutMix(**keys)
        cutmix.setup(context)
        step = Step(epoch=0, update=update, seed=seed, network=None, forward=None, batch_size=len(batch))
        return cutmix.mix_batch(batch, step)

    return mix


@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [0, 1, 2], [1, 2]])
def test_box_and_label_agree_for_twenty_draws(mixed, labels):
    batch = constant_images(labels)
    boxes = set()
    for update in range(20):
        found = mixed(batch, update=update)
        assert found.partner.tolist() == list(range(len(labels)))[::-1]
        for i, j in enumerate(found.partner.tolist()):
            own = found.image[i] == batch.image[i, 0, 0, 0]
            pasted = found.image[i] == batch.image[j, 0, 0, 0]
            assert bool((own | pasted).all()) and torch.equal(pasted[0], pasted[2])
            if i == j:  # the middle sample of an odd batch is its own partner
                assert found.label[i].tolist() == pytest.approx(torch.eye(CLASSES)[labels[i]].tolist())
                continue
            share = float(own[0].sum()) / SIDE**2
            assert found.ratio[i].item() == pytest.approx(share, abs=1e-15)
            label = [0.0] * CLASSES
            label[labels[i]] += share
            label[labels[j]] += 1 - share
            assert found.label[i].tolist() == pytest.approx(label, abs=1e-15)
            rows, columns = pasted[0].any(1).nonzero()[:, 0], pasted[0].any(0).nonzero()[:, 0]
            if len(rows):
                box = (rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1)
                assert int(pasted[0].sum()) == (box[1] - box[0]) * (box[3] - box[2]), "the pasted part is one rectangle"
                boxes.add(box)
        assert found.label.sum(1).tolist() == pytest.approx([1.0] * len(labels), abs=1e-15)
    assert len(boxes) >= 10, "boxes hardly vary"


def test_inputs_stay_and_draws_repeat(mixed):
    batch = constant_images([0, 1, 2, 0])
    before = batch.image.clone()
    first, again, later = mixed(batch, seed=3, update=8), mixed(batch, seed=3, update=8), mixed(batch, seed=3, update=9)
    assert torch.equal(batch.image, before) and batch.label.ndim == 1
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, later.image)


def test_global_random_numbers_are_untouched(mixed):
    ours, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed(constant_images([0, 1]))
    assert torch.equal(torch.get_rng_state(), ours) and np.array_equal(np.random.get_state()[1], numpys)


def test_a_single_sample_is_left_as_it_is(mixed):
    batch = constant_images([1])
    for update in range(5):
        found = mixed(batch, update=update)
        assert torch.equal(found.image, batch.image)
        assert found.label.tolist() == [pytest.approx([0.0, 1.0, 0.0], abs=1e-15)]


class Fixed:
    """A generator whose centre is given."""

    def __init__(self, y, x):
        self.values = [y, x]

    def integers(self, high):
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("ratio", "centre", "box"),
    [
        (0.75, (5, 5), (3, 7, 3, 7)),  # side sqrt(0.25) * 10 = 5, half of it rounded down
        (0.75, (0, 9), (0, 2, 7, 10)),  # clipped at the corner
        (0.0, (5, 5), (0, 10, 0, 10)),
        (0.999, (5, 5), (5, 5, 5, 5)),  # smaller than a pixel
    ],
)
def test_boxes(ratio, centre, box):
    assert cut_box(10, 10, ratio, Fixed(*centre)) == box


def test_boxes_of_images_that_are_not_square():
    assert cut_box(8, 20, 0.75, Fixed(4, 10)) == (2, 6, 5, 15)


def test_an_empty_box_means_an_unmixed_label(mixed, monkeypatch):
    monkeypatch.setattr("lightning_modules.mixing.cutmix.cut_box", lambda *arguments: (4, 4, 2, 6))
    found = mixed(constant_images([0, 1]))
    assert found.ratio.tolist() == [1.0, 1.0] and found.label.tolist() == torch.eye(3)[:2].tolist()


def test_refusals():
    with pytest.raises(ValueError, match="alpha=-1 is out of range; allowed: alpha > 0"):
        CutMix(alpha=-1)
    with pytest.raises(ValueError, match="prob=2 is out of range; allowed: 0 <= prob <= 1"):
        CutMix(prob=2)
