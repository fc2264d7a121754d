"""Where training stands is what came out of a loader, however much of it the loader processes fetched ahead."""

from __future__ import annotations

import pytest

from datamodules.arrays import ArrayData

pytestmark = pytest.mark.fault
#: Two batches an epoch; two processes fetch four ahead, five fetch ten.
WORKERS = (0, 2, 5)
SHUFFLED, BALANCED = {"batch_size": 24}, {"batch_size": 24, "samples_per_class": 6}


def ready(tiny: type[ArrayData], workers: int, **keys: int) -> ArrayData:
    data = tiny(0, num_workers=workers, val_fraction=0.2, **keys)
    data.setup()
    assert data.steps_per_epoch == 2
    return data


def expected(data: ArrayData, *epochs: int) -> list[tuple[tuple[int, int], list[int]]]:
    """Position and samples of every batch of these epochs, by the order alone."""
    return [(keys.position, keys.index.tolist()) for epoch in epochs for keys in data.order.keys(epoch)]


@pytest.mark.parametrize("keys", [SHUFFLED, BALANCED], ids=["shuffled", "balanced"])
@pytest.mark.parametrize("workers", WORKERS)
def test_iterators_that_nobody_takes_from_change_nothing(tiny: type[ArrayData], workers: int, keys: dict) -> None:
    """One that fetched the whole epoch and is dropped, as Lightning does where it goes on in a validation."""
    data = ready(tiny, workers, **keys)
    data.set_position(0, 2)
    loader = data.train_dataloader()
    iter(loader), iter(loader)
    assert (data.order.epoch, data.order.start) == (1, 0)
    found = [(batch.position, batch.index.tolist()) for _ in range(2) for batch in loader]
    assert found == expected(data, 1, 2)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_last_batch_taken_moves_the_position(tiny: type[ArrayData], workers: int) -> None:
    """Also for those who do not ask for what comes after it; whoever ends before starts over."""
    data = ready(tiny, workers, **SHUFFLED)
    loader, places = data.train_dataloader(), []
    for takes in (1, 2, 1, 2):
        batches = iter(loader)
        places += [next(batches).position for _ in range(takes)]
        assert data.order.epoch == len(places) // 3 and data.order.start == 0
    assert places == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("workers", WORKERS)
def test_a_position_inside_an_epoch(tiny: type[ArrayData], workers: int) -> None:
    data = ready(tiny, workers, **SHUFFLED)
    data.set_position(3, 1)
    loader = data.train_dataloader()
    next(iter(loader))
    assert [batch.position for batch in loader] == [(4, 0), (4, 1)]
    data.set_position(7, 1)
    assert [batch.position for _ in range(2) for batch in loader] == [(7, 1), (8, 0), (8, 1)]


@pytest.mark.parametrize("workers", (0, 2))
def test_evaluation_leaves_the_position_alone(tiny: type[ArrayData], workers: int) -> None:
    data = ready(tiny, workers, **SHUFFLED)
    for loader in (data.train_eval_dataloader(), data.test_dataloader()):
        list(loader)
    assert (data.order.epoch, data.order.start) == (0, 0)
