"""Mixing embeddings through the Gram matrix against mixing them, its invariances, and its edges."""

import pytest
import torch

import kernels.metrix_gram
from kernels.metrix import KINDS, draw_mix, list_pairs, mixed_label, mixed_loss_explicit
from kernels.metrix_gram import embedding_metrix
from kernels.multi_similarity import mine
from kernels.pair_form import binomial, contrastive, lifted, multi_similarity, nca
from kernels.pairs import hardest, pair_masks, similarities, unit

FORMS = [contrastive(0.1), multi_similarity(3.0, 20.0, 0.2), lifted(0.1), binomial(2.0, 10.0, 0.2)]
FORMS += [nca(0.3), nca(0.3, over_all=True)]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2])


def draw(size=8, width=5, seed=0):
    return torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit(form, z, columns, masks, lam, kind, renormalize=True, first_own=0, clean=False):
    """Every mixed vector built; the clean pairs appended to the list where asked."""
    rows, others = unit(z), unit(columns)
    pairs = list_pairs(*masks, kind, first_own)
    firsts = rows[pairs[:, 0]] if kind == "anc_neg" else others[pairs[:, 1]]
    mixed = lam * firsts + (1.0 - lam) * others[pairs[:, 2]]
    s = (rows[pairs[:, 0]] * (unit(mixed) if renormalize else mixed)).sum(1)
    y, anchor = torch.full_like(s, mixed_label(kind, lam)), pairs[:, 0]
    if clean:
        own, other = (masks[0] | masks[1]).nonzero(as_tuple=True)
        s = torch.cat([s, (rows[own] * others[other]).sum(1)])
        y, anchor = torch.cat([y, masks[0][own, other].double()]), torch.cat([anchor, own])
    return mixed_loss_explicit(form, s, y, anchor, len(z))


def value_and_gradients(function, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = function(*leaves)
    weights = torch.arange(1.0, len(loss) + 1, dtype=torch.float64)
    return loss.detach(), *torch.autograd.grad((loss * weights).sum(), leaves)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: f"{form.rho}-{form.sigma}-{form.scale_pos:.1f}-{form.all_in_negative}"
)
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_equals_mixing(form, kind, renormalize, block, monkeypatch):
    monkeypatch.setattr(kernels.metrix_gram, "BLOCK", block)
    for lam in (0.0, 0.3, 1.0):
        found = value_and_gradients(
            lambda z, lam=lam: embedding_metrix(form, z, LABELS, lam, pairs=kind, renormalize=renormalize), draw()
        )
        expected = value_and_gradients(
            lambda z, lam=lam: explicit(form, z, z, pair_masks(LABELS), lam, kind, renormalize, clean=form.needs_clean),
            draw(),
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_columns_equal_mixing_and_reach_both(kind, block, monkeypatch):
    monkeypatch.setattr(kernels.metrix_gram, "BLOCK", block)
    form, memory, column_labels = multi_similarity(3.0, 20.0, 0.2), draw(4, seed=1), torch.tensor([0, 2, 3, 5])
    labels_N = torch.cat([column_labels, LABELS])
    masks = pair_masks(LABELS, labels_N, 4)

    def found(z, memory):
        columns = torch.cat([memory, z])
        own = {"columns": columns, "column_labels": labels_N, "first_own": 4}
        return embedding_metrix(form, z, LABELS, 0.3, pairs=kind, **own)

    def expected(z, memory):
        return explicit(form, z, torch.cat([memory, z]), masks, 0.3, kind, first_own=4)

    for a, b in zip(
        value_and_gradients(found, draw(), memory), value_and_gradients(expected, draw(), memory), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["pos_neg", "anc_neg"])
def test_mined_and_hardest_pairs(kind):
    form, z = multi_similarity(3.0, 20.0, 0.2), draw()
    positive, negative = pair_masks(LABELS)
    S = similarities(z)
    top = positive, hardest(S, negative, 2)
    found = embedding_metrix(form, z, LABELS, 0.3, pairs=kind, top_k=2)
    torch.testing.assert_close(found, explicit(form, z, z, top, 0.3, kind), rtol=1e-11, atol=1e-12)
    mined = mine(S, positive, negative, 0.1)
    found = embedding_metrix(form, z, LABELS, 0.3, pairs=kind, kept=mined[0] | mined[1])
    torch.testing.assert_close(found, explicit(form, z, z, mined, 0.3, kind), rtol=1e-11, atol=1e-12)
    assert not torch.equal(found, embedding_metrix(form, z, LABELS, 0.3, pairs=kind))


@pytest.mark.parametrize("kind", ["pos_pos", "neg_neg"])
def test_the_order_of_a_pair_means_nothing_with_the_other_lam(kind):
    order = torch.arange(7, -1, -1)  # turns every pair around
    for form in FORMS:
        plain = value_and_gradients(lambda z, f=form: embedding_metrix(f, z, LABELS, 0.3, pairs=kind), draw())
        turned = value_and_gradients(
            lambda z, f=form: embedding_metrix(f, z[order], LABELS[order], 0.7, pairs=kind)[order], draw()
        )
        for a, b in zip(plain, turned, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_swapped_lists_with_the_other_lam_are_the_same():
    z, form = draw(), multi_similarity(3.0, 20.0, 0.2)
    pairs = list_pairs(*pair_masks(LABELS), "pos_neg")

    def mixed(z, first, second, lam, y_first, y_second):
        rows = unit(z)
        v = unit(lam * rows[pairs[:, first]] + (1 - lam) * rows[pairs[:, second]])
        y = torch.full((len(pairs),), lam * y_first + (1 - lam) * y_second, dtype=torch.float64)
        return mixed_loss_explicit(form, (rows[pairs[:, 0]] * v).sum(1), y, pairs[:, 0], 8)

    a = value_and_gradients(lambda z: mixed(z, 1, 2, 0.3, 1.0, 0.0), z)
    b = value_and_gradients(lambda z: mixed(z, 2, 1, 0.7, 0.0, 1.0), z)
    gram = value_and_gradients(lambda z: embedding_metrix(form, z, LABELS, 0.3), z)
    for x, y, w in zip(a, b, gram, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(x, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_permutation_and_gradient_across_each_row(kind):
    for form in FORMS:
        z, order = draw(), torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])
        loss = embedding_metrix(form, z, LABELS, 0.5, pairs=kind)
        shuffled = embedding_metrix(form, z[order], LABELS[order], 0.5, pairs=kind)
        torch.testing.assert_close(shuffled, loss[order], rtol=1e-10, atol=1e-12)
        scaled = (z * torch.linspace(0.01, 100, 8, dtype=torch.float64)[:, None]).requires_grad_()
        found = embedding_metrix(form, scaled, LABELS, 0.5, pairs=kind)
        torch.testing.assert_close(found.detach(), loss, rtol=1e-10, atol=1e-12)
        found.sum().backward()
        assert (scaled.grad * scaled).sum(1).abs().max() < 1e-10


def test_gradcheck_of_every_kind():
    for form in FORMS:
        for kind in KINDS:
            z = draw(seed=2).requires_grad_()
            assert torch.autograd.gradcheck(
                lambda z, f=form, k=kind: embedding_metrix(f, z, LABELS, 0.3, pairs=k), (z,)
            )


def test_nca_of_mixes_alone_is_a_constant_and_with_clean_pairs_is_not():
    z = draw().requires_grad_()
    alone = embedding_metrix(nca(0.3), z, LABELS, 0.3, with_clean=False)
    (gradient,) = torch.autograd.grad(alone.sum(), z)
    has_positive = pair_masks(LABELS)[0].any(1)
    constant = torch.log(torch.tensor(0.7 / 0.3, dtype=torch.float64))
    torch.testing.assert_close(alone.detach(), constant * has_positive)
    assert gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(embedding_metrix(nca(0.3), z, LABELS, 0.3).sum(), z)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.tensor([0, 0, 1, 2])])
def test_anchors_without_pairs_are_zero_and_nothing_is_nan(kind, labels):
    masks = pair_masks(labels)
    empty = torch.ones(4, dtype=torch.bool).index_fill(0, list_pairs(*masks, kind)[:, 0], False)
    for form in FORMS[:4]:
        z = draw(4).requires_grad_()
        loss = embedding_metrix(form, z, labels, 0.4, pairs=kind)
        loss.sum().backward()
        assert not loss[empty].any() and loss.isfinite().all() and z.grad.isfinite().all()
        assert not empty.all() or not z.grad.any()
    assert embedding_metrix(nca(), draw(4), labels, 0.4, pairs=kind).isfinite().all()
    for size in (0, 1):
        z = draw(size).requires_grad_()
        embedding_metrix(FORMS[1], z, labels[:size], 0.4, pairs=kind).sum().backward()
        assert not z.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", [0.3, 0.5])
@pytest.mark.parametrize("renormalize", [True, False])
def test_duplicates_opposites_and_rows_of_zeros_are_like_mixing_them(kind, lam, renormalize):
    z, form = draw(), multi_similarity(3.0, 20.0, 0.2)
    z[2], z[3], z[4] = 2 * z[0], -z[0], 0.0  # a duplicate positive, an opposite negative, a row without direction
    found = value_and_gradients(
        lambda z: embedding_metrix(form, z, LABELS, lam, pairs=kind, renormalize=renormalize), z
    )
    assert all(part.isfinite().all() for part in found) and not found[1][4].any()
    expected = value_and_gradients(lambda z: explicit(form, z, z, pair_masks(LABELS), lam, kind, renormalize), z)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_nearly_opposite_members_have_a_bounded_gradient_in_single_precision():
    half = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    z = torch.cat([half, -3.0 * half]).requires_grad_()
    labels = torch.cat([torch.arange(100) % 10, torch.arange(100) % 10 + 10])

    def largest(lam):
        loss = embedding_metrix(contrastive(), z, labels, lam)
        return torch.autograd.grad(loss.mean(), z)[0].abs().max()

    for lam in (0.5, 0.5 + 1e-6, 0.5 + 1e-4):  # lengths that rounding alone decides
        assert largest(lam) < 1.5 * largest(0.51)


def test_clean_pairs_are_neither_restricted_to_the_hardest():
    z, form = draw(), nca(0.3)
    positive, negative = pair_masks(LABELS)
    found = embedding_metrix(form, z, LABELS, 0.3, top_k=1)
    top = list_pairs(positive, hardest(similarities(z), negative, 1), "pos_neg")
    rows = unit(z)
    mixed = (rows[top[:, 0]] * unit(0.3 * rows[top[:, 1]] + 0.7 * rows[top[:, 2]])).sum(1)
    anchor, other = (positive | negative).nonzero(as_tuple=True)
    s = torch.cat([mixed, similarities(z)[anchor, other]])
    y = torch.cat([torch.full_like(mixed, 0.3), positive[anchor, other].double()])
    expected = mixed_loss_explicit(form, s, y, torch.cat([top[:, 0], anchor]), 8)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_finite_and_close(dtype, kind):
    z = draw(seed=3).to(dtype)
    for form in (multi_similarity(17.97, 75.66, 0.77), multi_similarity(300.0, 900.0, 0.0), nca(0.01), contrastive()):
        low = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            loss = embedding_metrix(form, low, LABELS, 0.4, pairs=kind)
        loss.sum().backward()
        assert loss.dtype == torch.float32 and loss.isfinite().all() and low.grad.isfinite().all()
        exact = embedding_metrix(form, z.double(), LABELS, 0.4, pairs=kind)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_size_of_all_mixes_is_kept(monkeypatch):
    monkeypatch.setattr(kernels.metrix_gram, "BLOCK", 64 * 64)
    labels = torch.arange(64) % 16  # 64 * 3 rows of 64
    z, sizes = draw(64).requires_grad_(), []

    def note(saved):
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        loss = embedding_metrix(multi_similarity(), z, labels, 0.4)
    assert max(sizes) <= 64 * 64
    monkeypatch.setattr(kernels.metrix_gram, "BLOCK", 1 << 22)
    torch.testing.assert_close(embedding_metrix(multi_similarity(), z, labels, 0.4), loss)


def test_draw_fits():
    kind, lam = draw_mix(0, 5)
    assert embedding_metrix(contrastive(), draw(), LABELS, lam, pairs=kind).shape == (8,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": "neg_pos"}, "pairs must be one of"),
        ({"lam": -0.1}, r"lam must lie in \[0, 1\]"),
        ({"top_k": 0}, "k must be at least 1"),
        ({"kept": torch.ones(8, 7) > 0}, r"kept of shape \[8, 7\]; it must be \[8, 8\]"),
        ({"columns": torch.ones(9, 5)}, "give both or neither"),
        ({"labels": LABELS[:5]}, "one integer class a sample"),
    ],
)
def test_errors_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        embedding_metrix(contrastive(), **{"embeddings": draw(), "labels": LABELS, "lam": 0.5, **settings})
