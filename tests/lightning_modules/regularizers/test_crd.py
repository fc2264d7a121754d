"""Contrastive distillation: banks, constants and labels, and ten steps against a plain loop written from the page."""

import copy

import pytest
import torch
from taught import SAMPLES, SEED, SIZE, batch_of, check_same, context, plain_loop, small, teacher, together, train
from torch import nn

from kernels.batch import Batch, Step
from lightning_modules.part import TrainingData
from lightning_modules.regularizers.crd import CRD
from lightning_modules.step import run_step


def labels_of(index):
    """All training samples, in batches of ten; 13 of each class."""
    index = torch.arange(SAMPLES) if index is None else index
    return [Batch(torch.zeros(len(i), 3, 1, 1, dtype=torch.float64), i % 3, i) for i in index.split(10)]


def prepared(term, student, index=None, **keys):
    parts = together(term, student, [teacher()], **keys)
    parts.prepare(TrainingData(lambda: labels_of(index), student, torch.device("cpu")))
    return parts


def test_ten_steps_equal_a_plain_loop():
    """With 26 negatives, all samples of the two other classes, so that nothing is left to chance."""
    student, plain = small(), small()
    parts = prepared(CRD(dim=5, warmup_epochs=2, stop_epoch=4), student)
    term = parts.regularizers["term"]
    maps = nn.ModuleList([nn.Linear(4, 5), nn.Linear(6, 5)]).double()
    maps[0].load_state_dict(term.embed_student.state_dict())
    maps[1].load_state_dict(term.embed_teacher.state_dict())
    banks = [term.bank_student.clone(), term.bank_teacher.clone()]
    constants, kept = [], []
    train(parts, student)

    def unit(rows):
        return rows / rows.square().sum(-1, keepdim=True).sqrt()

    def by_hand(ours, theirs, batch, epoch):
        if epoch >= 4:
            kept.clear()
            return 0.0 * sum(p.sum() for p in maps.parameters())
        vectors = [unit(maps[0](ours.features)), unit(maps[1](theirs.features))]
        negatives = torch.stack([torch.tensor([n for n in range(39) if n % 3 != y]) for y in batch.label])
        index = torch.cat([batch.index[:, None], negatives], 1)
        total = 0.0
        outs = [torch.einsum("be,bje->bj", g, bank[index]) / 0.07 for g, bank in zip(vectors, banks[::-1], strict=True)]
        if not constants:
            constants.extend(out.exp().mean().item() * 39 for out in outs)
        for out, constant in zip(outs, constants, strict=True):
            u = out.exp() / constant
            positive = (u[:, 0] / (u[:, 0] + 26 / 39 + 1e-7)).log().sum()
            negative = (26 / 39 / (u[:, 1:] + 26 / 39 + 1e-7)).log().sum()
            total = total - (positive + negative) / len(batch)
        kept[:] = [v.detach() for v in vectors]
        return 0.8 * min(1, (epoch + 1) / 2) * total

    def move(batch, epoch):
        for bank, vectors in zip(banks, kept, strict=False):
            for row, vector in zip(batch.index, vectors, strict=True):
                bank[row] = unit(0.5 * bank[row] + 0.5 * vector)

    plain_loop(plain, teacher().eval(), by_hand, maps, after=move)
    check_same(student, plain)
    check_same(nn.ModuleList([term.embed_student, term.embed_teacher]), maps)
    torch.testing.assert_close(term.bank_student, banks[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(term.bank_teacher, banks[1], rtol=0, atol=1e-9)
    assert term.constants.tolist() == pytest.approx(constants, rel=1e-12)


def test_rows_stay_unit_and_only_those_of_the_update_move():
    student = small()
    parts = prepared(CRD(dim=5), student)
    term = parts.regularizers["term"]
    for name in ("bank_student", "bank_teacher"):
        assert getattr(term, name).shape == (SAMPLES, 5)
    before = [term.bank_student.clone(), term.bank_teacher.clone()]
    train(parts, student, updates=1)
    moved = torch.zeros(SAMPLES, dtype=torch.bool)
    moved[batch_of(0).index] = True
    for bank, old in zip((term.bank_student, term.bank_teacher), before, strict=True):
        assert torch.equal((bank != old).any(1), moved)
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(SAMPLES, dtype=torch.float64))


def test_constants_are_set_once():
    student = small()
    parts = prepared(CRD(dim=5), student)
    term = parts.regularizers["term"]
    assert term.constants.tolist() == [0.0, 0.0]
    train(parts, student, updates=1)
    first = term.constants.clone()
    train(parts, student, updates=4)
    assert torch.equal(term.constants, first) and (first > 0).all()


def test_an_update_that_never_happens_leaves_nothing():
    """The first forward is thrown away; the run is that of one that begins with the second."""
    runs = []
    for begin in (0, 1):
        student = small()
        parts = prepared(CRD(dim=5), student)
        for update in range(begin, 3):
            step = Step(0, update, seed=SEED, network=student, forward=student, batch_size=SIZE)
            result = run_step(parts, batch_of(update), step)
            if update:
                parts.commit(result.whole(), step)
        runs.append(parts.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(run.values() for run in runs), strict=True) if torch.is_tensor(a))


def test_a_resumed_run_goes_on_with_labels_and_constants():
    whole = small()
    parts = prepared(CRD(dim=5, num_negatives=4), whole)
    train(parts, whole, updates=3)
    half, other = small(), copy.deepcopy(parts.state_dict())
    fresh = together(CRD(dim=5, num_negatives=4), half, [teacher()])
    fresh.load_state_dict(other)
    half.load_state_dict(whole.state_dict())
    assert train(parts, whole, updates=4) == train(fresh, half, updates=4)
    term = fresh.regularizers["term"]
    assert term._prepared and term._fixed


def test_as_many_negatives_as_the_data_has():
    student = small()
    for asked, index, expected in ((16384, None, 26), (7, None, 7), (16384, torch.arange(13), 8)):
        parts = prepared(CRD(dim=5, num_negatives=asked), student, index)
        batch = batch_of(0)
        batch = batch.replace(index=batch.index % 13, label=batch.index % 13 % 3)
        step = Step(0, 0, seed=SEED, network=student, forward=student, batch_size=SIZE)
        found = parts.regularizers["term"].candidates(batch, step)
        assert found.shape == (SIZE, 1 + expected) and torch.equal(found[:, 0], batch.index)
        assert (found[:, 1:] % 3 != batch.label[:, None]).all(), "a negative of the own class"
        assert index is None or int(found.max()) < 13, "a sample that is not trained on"


def test_without_prepare_classes_are_learnt_as_they_come():
    student = small()
    parts = together(CRD(dim=5), student, [teacher()])
    history = train(parts, student, updates=6)
    term = parts.regularizers["term"]
    seen = torch.cat([batch_of(update).index for update in range(6)]).unique()
    assert torch.equal(term.labels[seen], seen % 3) and int((term.labels >= 0).sum()) == len(seen)
    assert all(terms["term"] > 0 for terms in history)


def test_a_single_class_has_no_negatives():
    with pytest.raises(ValueError, match="crd: the negatives .* all training samples are of one; take .* such as rkd"):
        prepared(CRD(), small(), torch.arange(0, 39, 3))


def test_weight_zero_allocates_nothing():
    parts = prepared(CRD(weight=0.0), small())
    assert not list(parts.regularizers["term"].buffers(recurse=False))


def test_nothing_depends_on_what_was_drawn_before():
    made = []
    for before in (1, 2):
        torch.manual_seed(before)
        term, student = CRD(dim=5), small()
        parts = together(None, student, [teacher()])
        term.setup(context(student, {"teacher": parts.networks["teacher"]}))
        made.append([*term.parameters(), term.bank_student, term.bank_teacher])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
