"""What the terms of distillation share: when they are on, whom they can read, and what they leave alone."""

import pytest
import torch
from taught import context, small, teacher, together, train

from lightning_modules.heads.dual import Dual
from lightning_modules.heads.embedding import Embedding
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.parts import Parts
from lightning_modules.regularizers.binary_kl import BinaryKL
from lightning_modules.regularizers.binary_kl_norm import BinaryKLNorm
from lightning_modules.regularizers.crd import CRD
from lightning_modules.regularizers.dist import DIST
from lightning_modules.regularizers.dkd import DKD
from lightning_modules.regularizers.fitnet import FitNet
from lightning_modules.regularizers.kd import KD
from lightning_modules.regularizers.rkd import RKD
from lightning_modules.tasks.update_batch import check_pieces
from lightning_modules.teaching.live import Live

LOGITS = [KD, DKD, DIST, BinaryKL, BinaryKLNorm]
FEATURES = [RKD, FitNet, CRD]
EVERY = pytest.mark.parametrize("kind", [*LOGITS, *FEATURES])


@EVERY
def test_warm_up_and_stop(kind):
    """The weight of each epoch, 0-based, and the network on which the term is off."""
    term = kind(weight=2.0, warmup_epochs=4, stop_epoch=3)
    assert [term.weight_at(epoch) for epoch in range(5)] == [0.5, 1.0, 1.5, 0.0, 0.0]
    assert kind(weight=2.0, warmup_epochs=0).weight_at(0) == 2.0
    history = train(together(kind(warmup_epochs=0, stop_epoch=2), student := small(), [teacher()]), student)
    assert all(terms["term"] > 0 for terms in history[:4])
    assert not any(terms.get("term", 0.0) for terms in history[4:])


@EVERY
def test_warm_up_scales_the_term(kind):
    whole, half = (
        train(together(kind(warmup_epochs=epochs), student := small(), [teacher()]), student, updates=1)[0]["term"]
        for epochs in (0, 2)
    )
    assert half == pytest.approx(whole / 2, rel=1e-12)


@EVERY
def test_weight_zero_is_plain_training_and_draws_nothing(kind):
    student, plain = small(), small()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    term = kind(weight=0.0)
    parts = together(term, student, [teacher()])
    torch.manual_seed(5)
    term.setup(context(student, {"teacher": parts.networks["teacher"]}))
    assert torch.equal(torch.get_rng_state(), state) and not list(term.parameters()) and term.maps == ()
    assert all("term" not in terms for terms in train(parts, student))
    train(together(None, plain, [teacher()]), plain)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), plain.parameters(), strict=True))


@EVERY
def test_set_up_leaves_the_global_random_state_alone(kind):
    student, frozen = small(), Live().teacher([teacher()], [None])
    before = torch.get_rng_state()
    kind().setup(context(student, {"teacher": frozen}))
    assert torch.equal(torch.get_rng_state(), before)


@EVERY
def test_the_teacher_stays_as_it_is(kind):
    teaching = teacher()
    before = {name: value.clone() for name, value in teaching.state_dict().items()}
    parts = together(kind(warmup_epochs=0), student := small(), [teaching])
    train(parts, student, updates=3)
    assert all(torch.equal(value, before[name]) for name, value in teaching.state_dict().items())
    assert all(p.grad is None for p in teaching.parameters())


@pytest.mark.parametrize("kind", FEATURES)
def test_several_teachers_have_no_features(kind):
    with pytest.raises(ValueError, match="term: it reads features .* gives logits .*several teachers.* name one"):
        together(kind(), small(), [teacher(), teacher(seed=8)])


@pytest.mark.parametrize("kind", LOGITS)
def test_a_teacher_without_logits(kind):
    with pytest.raises(ValueError, match="term: it reads logits of the view 'teacher/main', .* gives embedding, feat"):
        together(kind(), small(), [teacher(head=Embedding, head_keys={"dim": 5})])


@pytest.mark.parametrize("kind", LOGITS)
def test_several_teachers_of_logits_are_their_mean(kind):
    history = train(together(kind(), student := small(), [teacher(), teacher(seed=8)]), student, updates=2)
    assert all(terms["term"] > 0 for terms in history)


@pytest.mark.parametrize("kind", [DIST, RKD, CRD])
def test_micro_batches_are_refused_where_the_term_is_of_the_batch(kind):
    parts = together(kind(), small(), [teacher()])
    check_pieces(parts, 1)
    with pytest.raises(ValueError, match=f"{kind.__name__} is defined on the whole batch, and micro_batches=2 would"):
        check_pieces(parts, 2)
    check_pieces(together(KD(), small(), [teacher()]), 2)


@pytest.mark.parametrize(("kind", "reason"), [(DKD, "a mixed image has two classes"), (CRD, "a mixed one is none")])
def test_mixed_labels_are_refused_with_the_reason(kind, reason):
    networks = {"teacher": Live().teacher([teacher()], [None])}
    with pytest.raises(ValueError, match=f"term cannot be combined with mixing: .*{reason}"):
        Parts(CrossEntropy(), {"term": kind()}, mixing=Mixup(), networks=networks)
    Parts(CrossEntropy(), {"term": KD()}, mixing=Mixup(), networks=networks)


@pytest.mark.parametrize("kind", LOGITS)
def test_the_auxiliary_head_learns_and_nothing_reaches_the_main_one(kind):
    """The main classifier beside a term on the auxiliary one is that of the loss alone on the same features."""
    student = small(head=Dual)
    parts = together(kind(head="auxiliary", warmup_epochs=0, weight=3.0), student, [teacher()])
    alone = small(head=Dual)
    grads = []
    for one, beside in ((student, parts), (alone, together(KD(head="auxiliary", weight=0.0), alone, [teacher()]))):
        train(beside, one, updates=1)
        grads.append(one.head.weight.grad)
    assert torch.equal(*grads), "the term reaches the main classifier"
    assert bool(student.head.auxiliary.weight.grad.any()) and alone.head.auxiliary.weight.grad is None


@pytest.mark.parametrize("kind", LOGITS)
def test_standardized_logits_have_no_scale(kind):
    """A teacher of ten times the logits teaches the same where rows are z-scored, and not otherwise."""
    for standardize in (True, False):
        found = []
        for scale in (1.0, 10.0):
            teaching = teacher()
            for parameter in teaching.head.parameters():
                parameter.data.mul_(scale)
            keys = {"standardize": standardize, "warmup_epochs": 0}
            found.append(train(together(kind(**keys), student := small(), [teaching]), student, updates=1)[0]["term"])
        assert (found[0] == pytest.approx(found[1], rel=1e-4)) == standardize


@EVERY
def test_after_its_last_epoch_every_weight_still_has_a_gradient(kind):
    """Several processes wait for the gradient of each weight that is trained, in every update."""
    keys = {"head": "auxiliary"} if kind in LOGITS else {}
    student = small(head=Dual) if keys else small()
    parts = together(kind(warmup_epochs=0, stop_epoch=1, **keys), student, [teacher()])
    train(parts, student, updates=3)
    owned = [*student.parameters(), *(p for p in parts.regularizers.parameters() if p.requires_grad)]
    assert all(p.grad is not None for p in owned)


def test_the_epoch_tells_the_mean_before_the_weight():
    parts = together(KD(weight=4.0), student := small(), [teacher()])
    history = train(parts, student, updates=2)
    expected = sum(terms["term"] for terms in history) / (2 * 4.0)
    assert parts.end_epoch()["regularizer/term/value"] == pytest.approx(expected, rel=1e-12)
    assert parts.report()["term"]["active_step_share"] == 1.0
