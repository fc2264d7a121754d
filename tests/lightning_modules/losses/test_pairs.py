"""What losses on pairs share: which function they are, the memory, mixed pairs, values that are refused."""

import copy

import pytest
import torch
from embedding_bench import batch_of, rows, run, setup, step_at

from kernels.batch import Output, Update
from kernels.contrastive import contrastive_loss
from kernels.info_nce import info_nce_loss
from kernels.metrix import list_pairs
from kernels.metrix_gram import embedding_metrix
from kernels.mixed_pairs import MixedPairs
from kernels.multi_similarity import mine, multi_similarity_loss
from kernels.pair_form import binomial, clean_loss, contrastive, lifted, multi_similarity
from kernels.pairs import pair_masks, similarities, unit
from kernels.sup_con import sup_con_loss
from kernels.triplet import triplet_loss
from lightning_modules.losses.binomial import Binomial
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.info_nce import InfoNCE
from lightning_modules.losses.lifted import Lifted
from lightning_modules.losses.multi_similarity import MultiSimilarity
from lightning_modules.losses.pairs import PairLoss
from lightning_modules.losses.sup_con import SupCon
from lightning_modules.losses.triplet import Triplet
from lightning_modules.losses.unpg import UNPG


def of_form(form):
    return lambda z, y: clean_loss(form, similarities(z), *pair_masks(y))


#: {loss as a recipe builds it: the same by its kernel, every value given}
CASES = {
    Contrastive: lambda z, y: contrastive_loss(z, y, distance="cosine", neg_margin=0.5, over="sum"),
    Triplet: lambda z, y: triplet_loss(z, y, margin=0.2, mining="semi_hard", distance="l2", over="mean"),
    MultiSimilarity: lambda z, y: multi_similarity_loss(z, y, alpha=2, beta=40, base=0.5, epsilon=0.1),
    SupCon: lambda z, y: sup_con_loss(z, y, temperature=0.1, base_temperature=0.07),
    InfoNCE: lambda z, y: info_nce_loss(z, y, temperature=0.1, hard_fraction=1.0),
    Binomial: of_form(binomial(2.0, 40.0, 0.5)),
    Lifted: of_form(lifted(0.5)),
}
KINDS = pytest.mark.parametrize("kind", list(CASES), ids=lambda kind: kind.__name__)


@KINDS
def test_it_is_its_kernel_and_gradients_reach_the_embedding(kind):
    (z, y), (other, _) = rows(), rows()
    (name, ours), *rest = run(setup(kind()), z, y).items()
    theirs = CASES[kind](other, y)
    assert not rest and kind.__module__.endswith(name) and ours.shape == (10,)
    assert torch.equal(ours, theirs) and bool((ours != 0).any())
    ours.sum().backward(), theirs.sum().backward()
    assert torch.equal(z.grad, other.grad)


@KINDS
def test_the_memory_is_more_candidates(kind):
    """Two updates with a memory: the second compares with the first as if both were one batch."""
    loss = setup(kind(memory=10))
    (old, y_old), (new, y_new) = rows(seed=1), rows(8, seed=2)
    first = run(loss, old, y_old)
    assert torch.equal(next(iter(first.values())), CASES[kind](old, y_old)), "an empty memory changes nothing"
    loss.commit(Update({"main": Output(embedding=old.detach())}, batch_of(y_old)), step_at(0, 10))
    ours = next(iter(run(loss, new, y_new, update=1).values()))
    both = CASES[kind](torch.cat([new, old]).detach(), torch.cat([y_new, y_old]))
    torch.testing.assert_close(ours, both[:8], rtol=1e-12, atol=1e-12)
    ours.sum().backward()
    assert new.grad is not None and old.grad is None


def test_the_memory_keeps_the_newest_and_its_state_travels():
    loss = setup(MultiSimilarity(memory=7))
    seen, labels = [], []
    for update in range(3):
        z, y = rows(4, seed=update)
        loss.commit(Update({"main": Output(embedding=z.detach())}, batch_of(y)), step_at(update, 4))
        seen.append(torch.nn.functional.normalize(z.detach()))
        labels.append(y)
    z, y = rows(4, seed=9)
    held = loss.candidates(z, y, step_at(3, 4))
    newest = torch.cat(seen)[-7:]
    assert held.embeddings.shape == (11, 6) and held.first_own == 0 and held.batch_size == 4
    rows_of = {tuple(row) for row in held.embeddings[4:].tolist()}
    assert rows_of == {tuple(row) for row in newest.tolist()}
    fresh = setup(MultiSimilarity(memory=7))
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    again = fresh.candidates(z, y, step_at(3, 4))
    assert torch.equal(again.embeddings, held.embeddings) and torch.equal(again.labels, held.labels)


def test_a_batch_larger_than_the_memory_leaves_its_end():
    loss = setup(Contrastive(memory=3))
    z, y = rows(5)
    loss.commit(Update({"main": Output(embedding=z.detach())}, batch_of(y)), step_at(0, 5))
    held = loss.candidates(z, y, step_at(1, 5))
    assert sorted(held.labels[5:].tolist()) == sorted(y[2:].tolist())


def test_the_memory_starts_when_it_is_told_to():
    loss = setup(Contrastive(memory=10, memory_start=2))
    z, y = rows()
    loss.commit(Update({"main": Output(embedding=z.detach())}, batch_of(y)), step_at(0))
    assert len(loss.candidates(z, y, step_at(1)).labels) == 10
    assert len(loss.candidates(z, y, step_at(2)).labels) == 20


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"memory": -1}, "memory=-1 is out of range; allowed: memory >= 0"),
        ({"memory_start": -1, "memory": 2}, "memory_start=-1 is out of range; allowed: memory_start >= 0"),
        ({"memory_start": 3}, "loss.memory_start=3 is when a memory starts, and there is none; set loss.memory"),
    ],
)
def test_values_of_the_memory(keys, message):
    with pytest.raises(ValueError, match=message):
        MultiSimilarity(**keys)


def test_the_kernel_refuses_values_before_the_first_step():
    with pytest.raises(ValueError, match="loss: margin of arc_face must be radians from 0 to below pi, got 3.5"):
        setup(UNPG(margin_kind="arc_face", margin=3.5))


FORMS = {
    Contrastive: contrastive(0.5),
    Binomial: binomial(2.0, 40.0, 0.5),
    Lifted: lifted(0.5),
    MultiSimilarity: multi_similarity(2.0, 40.0, 0.5),
}


@pytest.mark.parametrize("kind", list(FORMS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("pairs", ["pos_neg", "anc_neg"])
def test_mixed_pairs_are_a_term_of_their_own(kind, pairs):
    z, y = rows()
    terms = run(setup(kind()), z, y, mixed_pairs=MixedPairs(pairs, 0.3, weight=0.4))
    kept = None
    if kind is MultiSimilarity:  # mined on the clean embeddings
        positive, negative = mine(similarities(z.detach()), *pair_masks(y), 0.1)
        kept = positive | negative
    theirs = embedding_metrix(FORMS[kind], z, y, 0.3, pairs=pairs, kept=kept)
    assert list(terms)[1] == "metrix" and bool(theirs.any())
    torch.testing.assert_close(terms["metrix"], 0.4 * theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", list(FORMS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("pairs", ["pos_neg", "anc_neg"])
def test_examples_mixed_outside_count_like_those_mixed_inside(kind, pairs):
    """Embeddings of mixes given one by one are worth what the Gram matrix gives, the miner's choice included."""
    z, y = rows()
    positive, negative = pair_masks(y)
    listed = list_pairs(positive, negative, pairs)
    e = unit(z)
    mixes = 0.3 * e[listed[:, 1]] + 0.7 * e[listed[:, 2]]
    explicit = MixedPairs(pairs, 0.3, 0.4, embeddings=mixes, pairs=listed, position=torch.arange(len(listed)))
    loss = setup(kind())
    ours = run(loss, z, y, mixed_pairs=explicit)["metrix"]
    theirs = run(loss, z, y, mixed_pairs=MixedPairs(pairs, 0.3, 0.4))["metrix"]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_only_sums_over_pairs_can_be_mixed():
    assert Contrastive().pair_form == contrastive(0.5)
    assert Contrastive(distance="l2").pair_form is Contrastive(over="nonzero").pair_form is None
    assert PairLoss.pair_form is SupCon().pair_form is Triplet().pair_form is None
