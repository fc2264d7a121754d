"""Aligned gradients: ten steps equal a plain loop for each scope; what conflicts afterwards; what equals the sum."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from kernels.batch import Step
from kernels.gradient_alignment import align, row_correction, row_products
from lightning_modules.frozen import Frozen
from lightning_modules.gradients.aligned import Aligned
from lightning_modules.gradients.base import Seat
from lightning_modules.gradients.sum import Sum
from lightning_modules.heads.cosine import Cosine
from lightning_modules.heads.dual import Dual
from lightning_modules.heads.embedding import Embedding
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Context, Loss, Regularizer
from lightning_modules.parts import Parts
from lightning_modules.regularizers.binary_kl_norm import BinaryKLNorm
from lightning_modules.regularizers.kd import KD
from lightning_modules.step import run_step

SCOPES = ["all", "backbone", "feature"]


def context_of(network, networks):
    return Context(3, 40, max_epochs=5, steps_per_epoch=5, network=network, networks=networks)


@pytest.fixture
def make(make_network):
    """A dual head's network, and parts with two terms of a teacher that knows other things."""

    def made(gradient, regularizers=None, loss=None, **network):
        student, teacher = make_network(**network), make_network(seed=7, **network)
        torch.manual_seed(1)
        student.head = Dual(4, 3).to(student.head.weight.dtype)
        with torch.no_grad():
            teacher.head.weight.mul_(20)
        terms = {
            "binary_kl_norm": BinaryKLNorm(weight=3.0, head="auxiliary"),
            "kd": KD(weight=2.0, temperature=1.0),
        }
        networks = {"teacher": Frozen(teacher)}
        parts = Parts(
            loss or CrossEntropy(),
            terms if regularizers is None else regularizers,
            gradient=gradient,
            head=student.head,
            networks=networks,
        )
        parts.setup(context_of(student, networks))
        return student, teacher, parts

    return made


def one_update(network, parts, batch, update=0, epoch=0, micro_batches=1):
    step = Step(epoch, update, 0, network, network, len(batch))
    network.zero_grad()
    result = run_step(parts, batch, step, micro_batches=micro_batches)
    parts.commit(result.whole(), step)
    return [p.grad for p in network.parameters()]


def terms_of(output, teacher, batch):
    """Cross-entropy, and the two terms, from the papers' pages."""
    taught = teacher(batch.image).logits.detach()
    u = (output.auxiliary["logits"] - taught) / (2 * 2.0)
    binary = 2.0**2 * torch.log(torch.cosh(u)).sum(1).mean()
    kd = kl_div(log_softmax(output.logits, 1), softmax(taught, 1), reduction="batchmean")
    return [cross_entropy(output.logits, batch.label), 3.0 * binary, 2.0 * kd]


def flat(scalar, parameters):
    found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])  # noqa: B905


def projected(anchor, other):
    product = float(anchor @ other)
    return other - product / float(anchor @ anchor) * anchor if product < 0 else other


def plain_by_parameters(network, teacher, batch, scope):
    """The paper's, with one vector of all parameters or of those of the backbone."""
    parameters = list(network.parameters())
    inside = torch.cat(
        [
            torch.full((p.numel(),), scope == "all" or name.startswith("backbone"))
            for name, p in network.named_parameters()
        ]
    )
    anchor, *others = (flat(term, parameters) for term in terms_of(network(batch.image), teacher, batch))
    merged = anchor.clone()
    for other in others:
        merged[~inside] += other[~inside]
        merged[inside] += projected(anchor[inside], other[inside])
    for p, g in zip(parameters, merged.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


def plain_by_features(network, teacher, batch, scope):
    """One sample after another."""
    features = network.pool(network.backbone.forward_features(network.normalize(batch.image)))
    leaf = features.detach().requires_grad_(True)
    anchor, *others = terms_of(network.head(leaf), teacher, batch)
    (anchor + sum(others)).backward(retain_graph=True)  # the heads
    first, *rest = (torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in (anchor, *others))
    rows = [first[i] + sum(projected(first[i], other[i]) for other in rest) for i in range(len(batch))]
    features.backward(torch.stack(rows))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("scope", SCOPES)
def test_ten_steps_equal_a_plain_loop(make, make_batch, scope, micro_batches):
    network, _, parts = make(Aligned(scope=scope))
    plain, teacher, _ = make(Sum())
    by = plain_by_features if scope == "feature" else plain_by_parameters
    ours, theirs = (torch.optim.SGD(net.parameters(), 0.2, momentum=0.9) for net in (network, plain))
    for update in range(10):
        batch = make_batch(list(range(8)), seed=update)
        theirs.zero_grad()
        one_update(network, parts, batch, update, micro_batches=micro_batches)
        ours.step()
        by(plain, teacher, batch, scope)
        theirs.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    row = parts.gradient.end_epoch()
    assert 0 < row["binary_kl_norm/conflict_share"] + row["kd/conflict_share"] < 2, "some conflict, and some do not"
    assert parts.idle() == []


def backbone_of(network, scalar):
    return flat(scalar, list(network.backbone.parameters()))


@pytest.mark.parametrize("scope", ["all", "backbone"])
def test_what_conflict_remains(make, make_batch, scope):
    """None in the backbone with its scope; with all parameters ``<g0_b, g1_b> - <g0, g1> ||g0_b||^2 / ||g0||^2``."""
    batch = make_batch(list(range(8)), seed=3)
    network, teacher, parts = make(Aligned(scope=scope), {"binary_kl_norm": BinaryKLNorm(weight=3.0, head="auxiliary")})
    with torch.no_grad():  # the teacher says the opposite of the labels
        network.head.auxiliary.weight.copy_(-network.head.weight)
    anchor, other, _ = terms_of(network(batch.image), teacher, batch)
    g0, g1 = backbone_of(network, anchor), backbone_of(network, other)
    whole = flat(anchor, list(network.parameters()))
    if g0 @ g1 >= 0:
        pytest.fail("this example must conflict")
    one_update(network, parts, batch)
    merged = torch.cat([p.grad.flatten() for p in network.backbone.parameters()])
    left = (merged - g0) @ g0
    expected = 0.0 if scope == "backbone" else float(g0 @ g1 * (1 - (g0 @ g0) / (whole @ whole)))
    torch.testing.assert_close(float(left), expected, rtol=1e-9, atol=1e-12)
    assert scope == "backbone" or left < 0


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("off", [{"weight": 0.0}, {"stop_epoch": 1}], ids=["weight", "stopped"])
def test_one_objective_is_the_sum_bit_for_bit(make, make_batch, scope, off, micro_batches):
    found = []
    for gradient in (Sum(), Aligned(scope=scope)):
        terms = {"kd": KD(**off), "binary_kl_norm": BinaryKLNorm(head="auxiliary", **off)}
        network, _, parts = make(gradient, terms)
        found.append(one_update(network, parts, make_batch(list(range(8))), epoch=1, micro_batches=micro_batches))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert ("gradient" in parts.idle()) == ("stop_epoch" in off), "a weight of 0 is on purpose"


def test_without_conflict_it_is_the_sum(make, make_batch):
    """A second term in the direction of the first: bit for bit with features, to rounding with parameters."""

    class Along(Regularizer):
        def forward(self, outputs, batch, step):
            return 0.5 * cross_entropy(outputs["main"].logits, batch.label, reduction="none")

    class AlongToo(Along):
        pass

    found = {}
    for name, gradient in {"sum": Sum(), **{scope: Aligned(scope=scope) for scope in SCOPES}}.items():
        terms = {"along": Along(), "along_too": AlongToo(), "kd": KD(weight=0.0, head="auxiliary")}
        network, _, parts = make(gradient, terms)
        found[name] = one_update(network, parts, make_batch(list(range(8))))
        row = parts.gradient.end_epoch()
        if name != "sum":
            assert row["along/cosine"] == pytest.approx(1.0) and row["along/conflict_share"] == 0.0
            assert parts.idle() == [], "no conflict is no error"
    for scope in SCOPES:
        for ours, theirs in zip(found[scope], found["sum"], strict=True):
            assert ours is theirs is None or torch.allclose(ours, theirs, rtol=0, atol=1e-14)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found["feature"], found["sum"], strict=True))


class Views(Loss):
    """Cross-entropy in two views."""

    views = ("main", "second")

    def forward(self, outputs, batch, step):
        return {name: cross_entropy(outputs[name].logits, batch.label, reduction="none") for name in ("main", "second")}


def test_each_view_has_its_own_features(make, make_batch):
    batch = make_batch(list(range(8)))
    batch = batch.replace(second_image=batch.image.flip(0))
    terms = {"kd": KD(weight=5.0, view="second", teacher="teacher/second", head="auxiliary")}
    network, teacher, parts = make(Aligned(scope="feature"), terms, Views())
    ours = one_update(network, parts, batch)
    assert parts.gradient.end_epoch()["kd/conflict_share"] > 0
    assert parts.gradient.activity.run_sums[0, 2] == 8, "the main view has one objective"

    plain, _, _ = make(Sum(), terms, Views())
    taught = teacher(batch.second_image).logits.detach()
    features = [
        plain.pool(plain.backbone.forward_features(plain.normalize(image)))
        for image in (batch.image, batch.second_image)
    ]
    leaves = [f.detach().requires_grad_(True) for f in features]
    outputs = [plain.head(leaf) for leaf in leaves]
    anchor = sum(cross_entropy(output.logits, batch.label) for output in outputs)
    student = outputs[1].auxiliary["logits"] / 4.0
    other = 5.0 * 16 * kl_div(log_softmax(student, 1), softmax(taught / 4.0, 1), reduction="batchmean")
    (anchor + other).backward(retain_graph=True)
    main, second = torch.autograd.grad(anchor, leaves, retain_graph=True)
    (opposed,) = torch.autograd.grad(other, leaves[1:])
    merged = torch.stack([second[i] + projected(second[i], opposed[i]) for i in range(8)])
    torch.autograd.backward(features, [main, merged])
    for a, p in zip(ours, plain.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=0, atol=1e-12)


def test_a_piece_without_the_term_is_the_anchors(make, make_batch):
    """A term that is there in one of two micro-batches."""

    class Half(Regularizer):
        def forward(self, outputs, batch, step):
            if 0 not in batch.index:
                return None
            return -0.3 * cross_entropy(outputs["main"].logits, batch.label, reduction="none")

    for order in (list(range(8)), list(range(7, -1, -1))):
        batch, kept = make_batch(order), KD(weight=0.0, head="auxiliary")
        network, _, parts = make(Aligned(), {"of_some": Half(), "kd": kept})
        ours = one_update(network, parts, batch, micro_batches=2)
        plain, _, _ = make(Sum(), {"kd": kept})
        chosen = (batch.index < 4).double()
        loss_B = cross_entropy(plain(batch.image).logits, batch.label, reduction="none")
        parameters = [p for name, p in plain.named_parameters() if "auxiliary" not in name]
        anchor, other = (flat(x, parameters) for x in (loss_B.mean(), -0.3 * (loss_B * chosen).sum() / 8))
        merged = anchor + projected(anchor, other)
        assert anchor @ other < 0
        torch.testing.assert_close(torch.cat([g.flatten() for g in ours if g is not None]), merged, rtol=0, atol=1e-12)


def test_only_the_named_terms_are_aligned(make, make_batch):
    """The rest joins the anchor."""
    batch = make_batch(list(range(8)), seed=2)
    network, teacher, parts = make(Aligned(others=["kd"]))
    ours = torch.cat([g.flatten() for g in one_update(network, parts, batch)])
    plain, _, _ = make(Sum())
    parameters = list(plain.parameters())
    loss, binary, kd = (flat(term, parameters) for term in terms_of(plain(batch.image), teacher, batch))
    torch.testing.assert_close(ours, loss + binary + projected(loss + binary, kd), rtol=0, atol=1e-12)
    assert list(parts.gradient.end_epoch()) == ["kd/cosine", "kd/conflict_share"]


def test_what_it_tells(make, make_batch):
    """Mean cosines and shares of conflicts of the epoch; of the run in the report; nothing of an update left out."""
    network, teacher, parts = make(Aligned(scope="backbone"))
    cosines = []
    for update in range(4):
        batch = make_batch(list(range(8)), seed=update)
        anchor, *others = (backbone_of(network, term) for term in terms_of(network(batch.image), teacher, batch))
        cosines.append([float(torch.cosine_similarity(anchor, other, dim=0)) for other in others])
        one_update(network, parts, batch, update)
        step = Step(0, 10 + update, 0, network, network, 8)
        run_step(parts, make_batch(list(range(8)), seed=50), step)  # without commit
    row = parts.gradient.end_epoch()
    for name, values in zip(("binary_kl_norm", "kd"), zip(*cosines, strict=True), strict=True):
        assert row[f"{name}/cosine"] == pytest.approx(sum(values) / 4)
        share = sum(value < 0 for value in values) / 4
        assert row[f"{name}/conflict_share"] == parts.report()["gradient"][f"{name}/conflict_share"] == share
    assert set(parts.gradient.end_epoch().values()) == {0.0}, "the epoch's sums are gone"


@pytest.mark.parametrize("scope", SCOPES)
def test_bfloat16(make, make_batch, scope):
    """Under autocast the gradient is near that of float32, in the precision of the weights."""
    batch, found = make_batch(list(range(8)), dtype=torch.float32), []
    for autocast in (False, True):
        network, _, parts = make(Aligned(scope=scope), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            grads = one_update(network, parts, batch)
        assert all(g.dtype == torch.float32 for g in grads)
        found.append(torch.cat([g.flatten() for g in grads]))
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()


class OfMaps(Regularizer):
    maps = ("final",)

    def forward(self, outputs, batch, step):
        return outputs["main"].maps["final"].square().mean((1, 2, 3))


class OfWeights(Regularizer):
    def forward(self, outputs, batch, step):
        return 1e-3 * step.network.backbone.conv.weight.square().sum()


def test_features_are_the_only_way_with_their_scope(make, make_batch):
    kept = {"kd": KD(head="auxiliary")}
    with pytest.raises(ValueError, match=r"cannot be combined with of_maps: .*take gradient.scope=backbone"):
        make(Aligned(scope="feature"), {"of_maps": OfMaps(), **kept})
    network, _, parts = make(Aligned(scope="feature"), {"of_weights": OfWeights(), **kept})
    with pytest.raises(
        ValueError, match=r"the term of_weights reaches it by another way .*take gradient.scope=backbone"
    ):
        one_update(network, parts, make_batch(list(range(8))))
    for terms in ({"of_maps": OfMaps(), **kept}, {"of_weights": OfWeights(), **kept}):
        network, _, parts = make(Aligned(scope="backbone"), terms)
        assert all(g.isfinite().all() for g in one_update(network, parts, make_batch(list(range(8)))))


@pytest.mark.parametrize("head", [Linear, Cosine, Dual, Embedding])
def test_features_of_every_head_are_in_the_graph(make_network, make_batch, head):
    network, batch = make_network(), make_batch(list(range(8)))
    network.head = head(4, 3).double()
    output = network(batch.image, label=batch.label)
    given = [value for value in (output.logits, output.embedding, *output.auxiliary.values()) if value is not None]
    for value in given:
        (g,) = torch.autograd.grad(value.sum(), output.features, retain_graph=True)
        assert g.abs().sum() > 0


def test_gradients_of_which_nothing_is_shared(make_network):
    """Autograd gives one tensor, or one number shown everywhere, to parameters that are only summed."""
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    seat = Seat(None, None, {"first": first, "second": second, "third": nn.Parameter(torch.ones(1))}, None)
    found = seat.derive((first + second).sum())
    assert found[2] is None and seat.derive(torch.ones(())) == [None] * 3
    for g in found[:2]:
        g[0] += 1
        assert g.tolist() in ([2.0, 1.0, 1.0], [3.0, 1.0, 1.0])


def test_rows_are_aligned_one_by_one():
    torch.manual_seed(0)
    anchor, *others = torch.randn(3, 20, 5, dtype=torch.float64)
    anchor[3] = 0
    correction = row_correction(anchor, [row_products(anchor, other) for other in others])
    for i in range(20):
        (row,) = align([anchor[i]], [[other[i]] for other in others])
        torch.testing.assert_close((anchor + sum(others) + correction)[i], row)
    assert (correction == 0).all(1).any() and (correction != 0).any(1).any()


def test_settings_that_align_nothing(make, make_network):
    with pytest.raises(ValueError, match="gradient needs regularizer: there is nothing to align with the loss"):
        Parts(CrossEntropy(), gradient=Aligned())
    with pytest.raises(ValueError, match="gradient.others is empty"):
        make(Aligned(others=[]))
    with pytest.raises(ValueError, match="gradient.others=kdd is not known; did you mean kd"):
        make(Aligned(others=["kdd"]))
    parts = Parts(CrossEntropy(), {"of_maps": OfMaps()}, gradient=Aligned(scope="backbone"))
    with pytest.raises(ValueError, match="needs a network with a backbone, and Linear has none"):
        parts.setup(context_of(nn.Linear(3, 2), {}))
