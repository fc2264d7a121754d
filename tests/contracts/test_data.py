"""Every data source over the smallest set in its layout: batches that repeat, go on, and are what they say."""

import copy
from itertools import islice

import pytest
import torch
from bench import names
from partners import node
from sets import NAMES, check_layout, source

FIELDS = ("image", "label", "index", "view")
EVERY_SOURCE = pytest.mark.parametrize("name", NAMES)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.position == b.position and all(torch.equal(getattr(a, field), getattr(b, field)) for field in FIELDS)


def epoch(data, number, done=0):
    data.set_position(number, done)
    return list(data.train_dataloader())


def test_a_source_of_files_needs_a_set():
    with pytest.raises(AssertionError, match="write tests/contracts/layouts/purification.py: "):
        check_layout("purification")


@EVERY_SOURCE
def test_batches_are_what_they_say(name):
    data = source(name)
    first, *_ = batches = epoch(data, 0)
    assert len(batches) == data.steps_per_epoch >= 2 and data.absent is None and len(data.manifest) == 64
    for batch in batches:
        assert batch.image.dtype == torch.float32 and batch.image.min() >= 0 and batch.image.max() <= 1
        assert batch.image.shape == (len(batch), data.channels, data.image_size, data.image_size)
        assert torch.equal(batch.label, data.train_labels[batch.index]) and bool(
            torch.isin(batch.index, data.train_index).all()
        )
    assert first.label.min() >= 0 and first.label.max() < data.num_classes == len(data.classes)
    assert not set(data.train_index.tolist()) & set(data.val_index.tolist()), "validation is held out"
    evaluated = list(data.test_dataloader())
    assert sum(len(batch) for batch in evaluated) == len(data.test_index)
    assert all(batch.label.max() < len(data.classes_of("test")) for batch in evaluated)


@EVERY_SOURCE
def test_runs_repeat_and_go_on_bit_for_bit(name):
    """Epoch 1 whole, from its second batch on, by another module and by a copy; and its images are drawn afresh."""
    data = source(name)
    state = torch.get_rng_state()
    whole = epoch(data, 1)
    assert torch.equal(torch.get_rng_state(), state), "an order or an augmentation drew from the global state"
    same(epoch(source(name), 1, 1), whole[1:])
    same(epoch(copy.deepcopy(data), 1), whole)
    same(epoch(data, 1), whole)
    other = [batch for seed in (1, 2) for batch in epoch(source(name, seed), 1)]
    assert any(not torch.equal(batch.image, whole[0].image) for batch in other), "the seed changes nothing"


@EVERY_SOURCE
def test_evaluation_images_stay_as_they_are(name):
    """The same twice, in batches of any size; and what is done to a batch is not done to the set."""
    data, singly = source(name), source(name, eval_batch_size=1)
    images = torch.cat([batch.image for batch in islice(data.test_dataloader(), 1)])
    assert torch.equal(images[:3], torch.cat([batch.image for batch in islice(singly.test_dataloader(), 3)]))
    for batch in islice(data.test_dataloader(), 1):
        batch.image.zero_()
    assert torch.equal(images, torch.cat([batch.image for batch in islice(data.test_dataloader(), 1)]))


@EVERY_SOURCE
def test_partial_batches_and_batches_of_one(name):
    every = source(name, batch_size=5, drop_last=False, limit_train=None)
    sizes = [len(batch) for batch in epoch(every, 0)]
    assert sum(sizes) == len(every.train_index) and set(sizes[:-1]) == {5} and sizes[-1] == (sum(sizes) - 1) % 5 + 1
    alone = source(name, batch_size=1)
    assert [len(batch) for batch in islice(alone.train_dataloader(), 2)] == [1, 1]


@pytest.mark.parametrize("name", names("noise"))
def test_noise_changes_training_labels_the_same_way_every_time(name):
    """And nothing else: images, classes and split are those of the clean set."""
    clean, noisy, again = (
        source("folder"),
        source("folder", noise=node("noise", name)),
        source("folder", noise=node("noise", name)),
    )
    assert not torch.equal(noisy.train_labels, clean.train_labels) and torch.equal(
        noisy.train_labels, again.train_labels
    )
    assert noisy.train_labels.min() >= 0 and noisy.train_labels.max() < noisy.num_classes == clean.num_classes
    assert torch.equal(noisy.train_index, clean.train_index) and torch.equal(noisy.val_index, clean.val_index)
    for ours, theirs in zip(epoch(noisy, 1), epoch(clean, 1), strict=True):
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.clean_label, theirs.label)
