"""Composition of parts: who sits where, what is refused and why, and who is asked what."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kernels.batch import Output, Update
from lightning_modules.gradients.sum import Sum
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.part import Attack, Loss, Regularizer, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.regularizers.mesa import MESA
from lightning_modules.regularizers.saf import SAF
from lightning_modules.reweightings.uniform import Uniform


class Noted(Regularizer):
    """Remembers what it was asked; acts as told."""

    views = ("main", "second")

    def __init__(self, acts=True):
        super().__init__()
        self.acts, self.calls = acts, []
        self.inner = nn.Linear(2, 2)

    def setup(self, context):
        self.calls.append(("setup", context))

    def commit(self, result, step):
        self.calls.append(("commit", torch.is_grad_enabled()))

    def end_epoch(self):
        return {"strength": 0.5}

    def report(self):
        return {"first_active_epoch": 3}

    def acted(self):
        return self.acts


class Attacks(Attack):
    def end_epoch(self):
        return {"steps": 7.0}


def test_empty_seats_are_uniform_and_sum():
    parts = Parts(CrossEntropy())
    assert type(parts.reweighting) is Uniform and type(parts.gradient) is Sum
    assert parts.mixing is parts.attack is None
    assert [name for name, _ in parts.named()] == ["loss", "reweighting", "gradient"]
    assert parts.views == ("main",)


def test_views_are_asked_for_once_in_the_order_of_the_parts():
    assert Parts(CrossEntropy(), {"a": Noted(), "b": Noted()}).views == ("main", "second")


def test_every_part_is_set_up_committed_and_asked(make_context, make_network):
    first, second = Noted(), Noted(acts=False)
    parts = Parts(CrossEntropy(), {"first": first, "second": second}, attack=Attacks())
    context = make_context(make_network())
    parts.setup(context)
    parts.commit(Update({"main": Output()}, None), None)
    told = replace(context, regularizers={"first": first, "second": second})
    for part in (first, second):
        assert part.calls == [("setup", told), ("commit", False)], "state is written without a graph"
    assert parts.end_epoch() == {
        "attack/steps": 7.0,
        "regularizer/first/strength": 0.5,
        "regularizer/second/strength": 0.5,
    }
    assert parts.report() == {name: {"first_active_epoch": 3} for name in ("first", "second")}
    assert parts.idle() == ["second"]


def test_state_of_parts_lies_under_their_names(make_context, make_network):
    parts = Parts(CrossEntropy(), {"saf": SAF(start_epoch=0, lag=1), "noted": Noted()})
    parts.setup(make_context(make_network()))
    keys = set(parts.state_dict())
    assert {"regularizers.saf.store", "regularizers.saf.written", "regularizers.noted.inner.weight"} <= keys
    assert {name for name, _ in parts.named_parameters()} == {
        "regularizers.noted.inner.weight",
        "regularizers.noted.inner.bias",
    }


class NeedsEverything(Regularizer):
    needs = frozenset({"attack"})
    views = ("main", "adversarial", "teacher/clean")


class PairLoss(Loss):
    per_sample = False


class Skewed(Reweighting):
    pass


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError) as error:
        Parts(PairLoss(), {"greedy": NeedsEverything(), "saf": SAF()}, mixing=Mixup(), reweighting=Skewed())
    lines = str(error.value).splitlines()
    assert lines[0] == "these parts cannot work together:"
    assert len(lines) == 6 and all(line.startswith("- ") for line in lines[1:])
    text = str(error.value)
    assert "greedy needs attack: add one with attack=NAME" in text
    lacking = "greedy reads the view 'teacher/clean', and there is no network 'teacher': name one with teacher="
    assert lacking in text
    assert "greedy reads the view 'adversarial', and there is no attack; add one with attack=NAME" in text
    assert "saf cannot be combined with mixing: the past logits of a sample come from a mixture" in text
    assert "reweighting needs per-sample losses, and PairLoss is defined on pairs or batches; remove it" in text


class HardOnly(Regularizer):
    needs = frozenset({"hard_labels"})


class Loner(Regularizer):
    """Refuses in others what it does itself."""

    does = frozenset({"doubles_forward"})
    refuses = {"doubles_forward": "two of them would take four forwards"}


def test_mixed_labels_are_refused_to_whoever_needs_classes():
    with pytest.raises(ValueError, match="hard needs hard_labels: a class for each sample, and mixing makes soft"):
        Parts(CrossEntropy(), {"hard": HardOnly()}, mixing=Mixup())
    Parts(CrossEntropy(), {"hard": HardOnly()})


def test_a_part_does_not_refuse_itself():
    Parts(CrossEntropy(), {"one": Loner()})
    with pytest.raises(ValueError, match="one cannot be combined with two: two of them would take four"):
        Parts(CrossEntropy(), {"one": Loner(), "two": Loner()})


def test_what_fits_is_not_refused():
    composed = [
        Parts(PairLoss()),
        Parts(CrossEntropy(), reweighting=Skewed()),
        Parts(CrossEntropy(), {"mesa": MESA()}, mixing=Mixup()),
        Parts(CrossEntropy(), {"saf": SAF(), "mesa": MESA()}, attack=Attacks()),
    ]
    always = {"loss", "reweighting", "gradient"}
    assert [{name for name, _ in parts.named()} - always for parts in composed] == [
        set(),
        set(),
        {"mixing", "mesa"},
        {"attack", "saf", "mesa"},
    ]


def test_contracts_name_the_part_that_breaks_them():
    with pytest.raises(NotImplementedError, match=r"PairLoss must define forward\(outputs, batch, step\)"):
        PairLoss()({}, None, None)
    with pytest.raises(NotImplementedError, match=r"Skewed must define forward\(losses, outputs, batch, step\)"):
        Skewed()(None, {}, None, None)
    with pytest.raises(NotImplementedError, match="Mixup mixes at input, not in a feature map"):
        Mixup().mix_map(None, None, None)
