"""Metrix's pairs, draws and losses of mixed examples, against reference arrays and plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.metrix import KINDS, draw_mix, list_pairs, mixed_label, mixed_loss_explicit, mixed_sums, utilization
from kernels.metrix_gram import embedding_metrix
from kernels.pair_form import binomial, clean_loss, contrastive, lifted, multi_similarity, nca
from kernels.pairs import pair_masks, similarities, unit

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "metrix" / "generic_pair_losses.npz", allow_pickle=False)
CASES = [key.removesuffix("|per_anchor") for key in REFERENCE.files if key.endswith("|per_anchor")]
FORMS = {
    "contrastive": contrastive(0.5),
    "ms": multi_similarity(18.0, 75.0, 0.77),
    "ms_std": multi_similarity(2.0, 40.0, 0.5),
    "lifted": lifted(0.5),
    "binomial": binomial(2.0, 10.0, 0.5),
}


def tensor(key):
    return torch.from_numpy(np.asarray(REFERENCE[key]))


def mix_and_sum(form, z, labels, lam, kind, renormalize):
    """The loss with every mixed vector built."""
    rows = unit(z)
    pairs = list_pairs(*pair_masks(labels), kind)
    mixed = lam * rows[pairs[:, 1]] + (1.0 - lam) * rows[pairs[:, 2]]
    s_M = (rows[pairs[:, 0]] * (unit(mixed) if renormalize else mixed)).sum(1)
    return mixed_loss_explicit(form, s_M, torch.full_like(s_M, mixed_label(kind, lam)), pairs[:, 0], len(z))


def test_there_are_reference_cases():
    assert len(CASES) == 72


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [mix_and_sum, None], ids=["explicit", "gram"])
def test_equals_the_reference_arrays(case, how):
    loss_name, kind, lam, renormalize = case.split("|")
    z, form = tensor("z").requires_grad_(), FORMS[loss_name]
    arguments = form, z, tensor("labels"), float(lam)
    if how is None:
        loss = embedding_metrix(*arguments, pairs=kind, renormalize=renormalize == "renorm")
    else:
        loss = how(*arguments, kind, renormalize == "renorm")
    loss.mean().backward()
    torch.testing.assert_close(loss.detach(), tensor(f"{case}|per_anchor"), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(z.grad, tensor(f"{case}|grad"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_equal_the_reference_and_plain_loops(kind):
    labels = tensor("labels")
    found = list_pairs(*pair_masks(labels), kind)
    reference = tensor(f"pairs_{kind}")
    assert torch.equal(found, reference[:, :3])
    for lam in (0.0, 0.35, 1.0):
        y = lam * reference[:, 3] + (1 - lam) * reference[:, 4]
        assert (y - mixed_label(kind, lam)).abs().max() < 1e-15
    positive, negative = pair_masks(labels, torch.cat([labels + 5, labels]), 12)
    expected = []
    for a in range(12):
        own = positive[a].nonzero()[:, 0].tolist()
        other = negative[a].nonzero()[:, 0].tolist()
        lists = {
            "pos_neg": (own, other),
            "anc_neg": ([a + 12], other),
            "pos_pos": (own, own),
            "neg_neg": (other, other),
        }
        for i in lists[kind][0]:
            for j in lists[kind][1]:
                if (i < j or kind in ("pos_neg", "anc_neg")) and (own or kind == "anc_neg"):
                    expected.append([a, i, j])
    assert list_pairs(positive, negative, kind, first_own=12).tolist() == expected


@pytest.mark.parametrize("name", ["contrastive", "binomial"])
def test_lam_one_and_zero_count_each_member_as_often_as_the_other_side_has_some(name):
    form, z, labels = FORMS[name], tensor("z"), tensor("labels")
    S, (positive, negative) = similarities(z), pair_masks(labels)
    pull = (form.rho_pos(S) * positive).sum(1) * negative.sum(1)
    push = (form.rho_neg(S) * negative).sum(1) * positive.sum(1)
    torch.testing.assert_close(embedding_metrix(form, z, labels, 1.0), pull)
    torch.testing.assert_close(embedding_metrix(form, z, labels, 0.0), push)


def test_one_kind_of_pair_has_one_side_only():
    labels, groups = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1])
    s = torch.tensor([0.2, 0.5, -0.3], dtype=torch.float64)
    for form in FORMS.values():
        nothing = -math.inf if form.in_logs else 0.0
        pos, _ = mixed_sums(form, s, torch.full((3,), mixed_label("neg_neg", 0.3)), groups, 2)
        _, neg = mixed_sums(form, s, torch.full((3,), mixed_label("pos_pos", 0.3)), groups, 2)
        assert pos.tolist() == neg.tolist() == [nothing] * 2
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # the sharpness of the other side changes nothing
    for kind, other in (("neg_neg", multi_similarity(9.0, 30.0, 0.1)), ("pos_pos", multi_similarity(3.0, 9.0, 0.1))):
        a, b = (embedding_metrix(f, z, labels, 0.3, pairs=kind) for f in (multi_similarity(3.0, 30.0, 0.1), other))
        assert torch.equal(a, b) and (a > 0).all()


@pytest.mark.parametrize("name", [*FORMS, "nca"])
def test_list_with_labels_in_between_equals_plain_loops(name):
    form = nca(0.3) if name == "nca" else FORMS[name]
    generator = torch.Generator().manual_seed(1)
    s = torch.rand(14, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.rand(14, generator=generator, dtype=torch.float64)
    y[:6] = torch.tensor([0, 1, 1, 0, 0, 1])
    anchor = torch.randint(0, 3, (14,), generator=generator)
    found = mixed_loss_explicit(form, s, y, anchor, 5)
    sigma = {"identity": lambda x: x, "log1p": math.log1p, "log": math.log}[form.sigma]
    for a in range(3):
        own = anchor == a
        pos = sum(w * form.rho_pos(v).item() for w, v in zip(y[own].tolist(), s[own], strict=True))
        neg = sum((1 - w) * form.rho_neg(v).item() for w, v in zip(y[own].tolist(), s[own], strict=True))
        total = form.weight_pos * sigma(pos) + form.weight_neg * sigma(neg)
        assert found[a].item() == pytest.approx(max(total, 0) if form.floor else total, rel=1e-11, abs=1e-12)
    assert found[3] == found[4] == 0
    leaf = s.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mixed_loss_explicit(form, s, y, anchor, 5), (leaf,))


def test_labels_of_zero_and_one_are_the_clean_loss():
    z, labels = tensor("z"), tensor("labels")
    S, (positive, negative) = similarities(z), pair_masks(labels)
    anchor, other = (positive | negative).nonzero(as_tuple=True)
    for form in (*FORMS.values(), nca(0.2), nca(0.2, over_all=True)):
        listed = mixed_loss_explicit(form, S[anchor, other], positive[anchor, other], anchor, 12)
        torch.testing.assert_close(listed, clean_loss(form, S, positive, negative), rtol=1e-11, atol=1e-13)


def test_an_empty_list_is_zero_with_zero_gradient():
    s, none = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for form in (*FORMS.values(), nca()):
        loss = mixed_loss_explicit(form, s, torch.zeros(0), none, 3)
        loss.sum().backward()
        assert loss.tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lists_in_half_precision_are_finite(dtype):
    s = torch.tensor([0.99, -0.99, 0.98], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        loss = mixed_loss_explicit(
            multi_similarity(300.0, 900.0, 0.0), s, torch.tensor([0.3, 1.0, 0.0]), torch.tensor([0, 0, 1]), 3
        )
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and s.grad.isfinite().all() and s.grad.all()


def test_draws_are_a_function_of_seed_and_update_with_the_right_moments():
    draws = [draw_mix(3, update) for update in range(4000)]
    assert draws[17] == draw_mix(3, 17) and draws[17] != draw_mix(4, 17)
    lams = [lam for _, lam in draws]
    mean = sum(lams) / len(lams)
    assert abs(mean - 0.5) < 0.015 and abs(sum((x - mean) ** 2 for x in lams) / len(lams) - 1 / 20) < 0.003
    share = sum(kind == "pos_neg" for kind, _ in draws) / len(draws)
    assert abs(share - 0.5) < 0.03 and {kind for kind, _ in draws} == {"pos_neg", "anc_neg"}
    by_kind = [lam for kind, lam in draws if kind == "pos_neg"]
    assert abs(sum(by_kind) / len(by_kind) - 0.5) < 0.02  # kind and lam are independent
    assert {draw_mix(0, update, 2.0, ["neg_neg"])[0] for update in range(9)} == {"neg_neg"}
    wide = [draw_mix(0, update, 0.2)[1] for update in range(4000)]
    assert abs(sum((x - 0.5) ** 2 for x in wide) / len(wide) - 1 / (4 * 1.4)) < 0.01


def test_utilization_equals_plain_loops_and_falls_with_more_examples(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries = unit(torch.randn(7, 4, generator=generator, dtype=torch.float64))
    examples = unit(torch.randn(9, 4, generator=generator, dtype=torch.float64))
    expected = np.mean([min(math.dist(q, x) ** 2 for x in examples.tolist()) for q in queries.tolist()])
    found = utilization(queries, examples)
    assert found.shape == () and found.item() == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("kernels.metrix._ENTRIES", 10)
    torch.testing.assert_close(utilization(queries, examples), found)
    mixed = unit(0.4 * examples[:4] + 0.6 * examples[4:8])
    assert utilization(queries, torch.cat([examples, mixed])) <= found
    assert utilization(queries.float(), torch.cat([examples, queries]).float()) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed_label("neg_pos", 0.5), "pairs must be one of pos_neg, anc_neg, pos_pos, neg_neg"),
        (lambda: mixed_label("pos_neg", 1.5), r"lam must lie in \[0, 1\]"),
        (lambda: list_pairs(*pair_masks(torch.arange(3)), "all"), "pairs must be one of"),
        (lambda: draw_mix(0, 0, alpha=0.0), "alpha must be positive"),
        (lambda: draw_mix(0, 0, kinds=()), "at least one of"),
        (lambda: draw_mix(0, 0, kinds=["both"]), r"got \['both'\]"),
        (lambda: mixed_loss_explicit(contrastive(), torch.ones(2), torch.ones(1), torch.ones(2), 2), "same length"),
        (lambda: utilization(torch.ones(0, 2), torch.ones(1, 2)), "must be at least 1"),
    ],
)
def test_errors_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
