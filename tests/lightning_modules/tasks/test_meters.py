"""Sums on the device: totals, names that come and go, precision, and the way through a checkpoint."""

import torch

from lightning_modules.tasks.meters import Meter


def test_sums_by_name_and_forgets():
    meter = Meter()
    for value in (1.0, 2.5, -4.0):
        meter.add({"loss": torch.tensor(value), "count": torch.tensor(2)})
    assert meter.read() == {"loss": -0.5, "count": 6.0}
    assert meter.read() == {}


def test_names_that_come_and_go_are_added_up():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)})
    meter.add({"a": torch.tensor(10.0), "b": torch.tensor(100.0)})
    meter.add({"b": torch.tensor(5.0), "a": torch.tensor(7.0)})
    meter.add({"a": torch.tensor(0.5)})
    assert meter.read() == {"a": 18.5, "b": 105.0}


def test_ten_thousand_small_terms_are_summed_in_float64():
    """In float32 each of them would be lost beside the first."""
    meter = Meter()
    meter.add({"x": torch.tensor(2.0**25)})
    for _ in range(10_000):
        meter.add({"x": torch.tensor(1.0)})
    assert meter.read()["x"] == 2**25 + 10_000


def test_no_graph_is_kept_and_inputs_stay():
    meter, value = Meter(), torch.tensor(3.0, requires_grad=True)
    for _ in range(2):
        meter.add({"x": value * 2})
    assert all(not vector.requires_grad for vector in meter._sums.values())
    kept = torch.tensor(1.0, dtype=torch.float64)
    other = Meter()
    for _ in range(3):
        other.add({"x": kept})
    assert other.read() == {"x": 3.0} and kept.item() == 1.0, "the first value was summed into"


def test_state_is_plain_and_goes_on_where_it_was():
    meter, fresh = Meter(), Meter()
    meter.add({"a": torch.tensor(1.0)})
    meter.add({"a": torch.tensor(0.1), "b": torch.tensor(2.0)})
    state = meter.state()
    assert state == {"sums": {}, "pending": {"a": [torch.tensor(1.0), torch.tensor(0.1)], "b": [torch.tensor(2.0)]}}
    fresh.add({"stale": torch.tensor(9.0)})
    fresh.load(state, torch.device("cpu"))
    for each in (meter, fresh):
        each.add({"a": torch.tensor(5.0)})
    assert fresh.read() == meter.read()


def test_a_state_in_between_changes_no_rounding():
    """Values that wait to be summed stay apart: what is read later is the same to the last bit."""
    torch.manual_seed(0)
    values, plain, saved = torch.rand(150) * 1e6, Meter(), Meter()
    for i, value in enumerate(values):
        plain.add({"x": value})
        saved.add({"x": value})
        if i % 7 == 0:
            fresh = Meter()
            fresh.load(saved.state(), torch.device("cpu"))
            saved = fresh
    assert saved.read() == plain.read()


def test_many_scalars_are_folded_and_counted_once():
    meter = Meter()
    for i in range(200):
        meter.add({"a": torch.tensor(float(i)), "n": torch.tensor(1)})
    assert max(len(pending) for pending in meter._pending.values()) < 64
    assert meter.read() == {"a": 199 * 100.0, "n": 200.0} and meter.read() == {}
