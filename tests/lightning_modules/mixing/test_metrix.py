"""Metrix in its seat: what is mixed at each of its three places, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn

from kernels.batch import Output
from kernels.metrix import draw_mix
from kernels.pairs import unit
from lightning_modules.gradients.sam import SAM
from lightning_modules.heads.embedding import Embedding
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.losses.multi_similarity import MultiSimilarity
from lightning_modules.losses.proxy_nca_pp import ProxyNCAPP
from lightning_modules.mixing.metrix import Metrix
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


@pytest.fixture
def bench(make_network, make_batch, make_step):
    """``(mixing, loss, **network) -> (result, network)`` of one step in float64, on eight samples of three classes."""

    def run(mixing, loss=None, update=0, gradient=None, behind=None, **keys):
        network = make_network(**keys).train()
        if behind is not None:  # the pooling
            network.backbone.dropout = copy.deepcopy(behind).double()
        torch.manual_seed(0)
        network.head = Embedding(4, 3, dim=5).double()
        parts = Parts(loss or Contrastive(), mixing=mixing, gradient=gradient, head=network.head)
        batch = make_batch(range(8)).replace(label=LABELS)
        return run_step(parts, batch, make_step(network, update=update)), network

    return run


def gradients(network):
    return [p.grad for p in network.parameters()]


def test_the_term_is_the_mixed_loss_of_the_draw_of_this_update(bench):
    result, _ = bench(Metrix(weight=0.4), update=7)
    kind, lam = draw_mix(0, 7, 2.0)
    e = unit(result.outputs[0]["main"].embedding)
    total = 0.0
    for a in range(8):
        positives = [a] if kind == "anc_neg" else [i for i in range(8) if LABELS[i] == LABELS[a] and i != a]
        for p in positives:
            for n in (i for i in range(8) if LABELS[i] != LABELS[a]):
                v = lam * e[p] + (1 - lam) * e[n]
                s = float(e[a] @ v / v.norm())
                total += -lam * s + (1 - lam) * max(s - 0.5, 0.0)
    assert float(result.terms["metrix"]) == pytest.approx(0.4 * total / 8, rel=1e-10)


def test_another_update_draws_anew_and_the_same_update_the_same(bench):
    values = [float(bench(Metrix(), update=update)[0].terms["metrix"]) for update in (0, 1, 2, 0)]
    assert values[0] == values[3] and len(set(values)) == 3


def test_maps_are_mixed_before_pooling_and_images_before_all(bench):
    """The network of these tests is linear up to the tanh, so each place gives another value; both by hand."""
    for mode in ("feature", "input"):
        mixing = Metrix(mode=mode, pair_type="anc_neg", top_k=1)
        result, network = bench(mixing)
        lam = draw_mix(0, 0, 2.0, ("anc_neg",))[1]
        batch = result.batches[0]
        e = unit(result.outputs[0]["main"].embedding)
        similarity = e @ e.T
        total = 0.0
        with torch.no_grad():
            maps = network(batch.image, want_maps=("final",)).maps["final"]
            for a in range(8):
                others = [i for i in range(8) if LABELS[i] != LABELS[a]]
                n = max(others, key=lambda i: float(similarity[a, i]))
                if mode == "feature":
                    v = network(None, from_map=(lam * maps[a] + (1 - lam) * maps[n])[None]).embedding[0]
                else:
                    v = network((lam * batch.image[a] + (1 - lam) * batch.image[n])[None]).embedding[0]
                s = float(e[a] @ v / v.norm())
                total += -lam * s + (1 - lam) * max(s - 0.5, 0.0)
        assert float(result.terms["metrix"]) == pytest.approx(0.4 * total / 8, rel=1e-9), mode


def test_pairs_of_a_positive_and_a_negative_share_their_forward(bench, make_network):
    seen = []
    mixing = Metrix(mode="input", pair_type="pos_neg", top_k=2)
    original = mixing._explicit
    mixing._explicit = lambda *args: seen.append(original(*args)) or seen[-1]
    bench(mixing)
    pairs, position = seen[0].pairs, seen[0].position
    assert len(seen[0].embeddings) == len({tuple(row) for row in pairs[:, 1:].tolist()}) < len(pairs)
    codes = {}
    for row, place in zip(pairs[:, 1:].tolist(), position.tolist(), strict=True):
        assert codes.setdefault(tuple(row), place) == place
    counts = torch.bincount(pairs[:, 0], minlength=8)
    positives = [int((label == LABELS).sum()) - 1 for label in LABELS]
    assert counts.tolist() == [2 * p for p in positives], "each positive with the two hardest negatives"


@pytest.mark.parametrize("mode", ["input", "feature"])
@pytest.mark.parametrize("gradient", [None, SAM()])
def test_running_statistics_are_those_of_the_clean_images(bench, mode, gradient):
    """Of norms ahead of the pooling, and of those behind it (in timm: mobilenetv4)."""
    (_, mixed), (_, plain) = (
        bench(mixing, gradient=gradient, batch_norm=True, behind=nn.BatchNorm1d(4))
        for mixing in (Metrix(mode=mode, top_k=1), None)
    )
    there = dict(mixed.named_buffers())
    assert int(there["backbone.dropout.num_batches_tracked"]) == 1
    for name, value in plain.named_buffers():
        assert torch.equal(there[name], value), name


@pytest.mark.parametrize("mode", ["embedding", "feature", "input"])
def test_weight_zero_is_the_base_loss_bit_for_bit(bench, mode):
    result, network = bench(Metrix(mode=mode, weight=0.0, top_k=3))
    plain, other = bench(None)
    assert list(result.terms) == list(plain.terms)
    assert all(torch.equal(a, b) for a, b in zip(gradients(network), gradients(other), strict=True))


@pytest.mark.parametrize("mode", ["embedding", "feature", "input"])
def test_a_batch_of_one_class_has_nothing_to_mix(make_network, make_batch, make_step, mode):
    network = make_network()
    network.head = Embedding(4, 3, dim=5).double()
    parts = Parts(MultiSimilarity(), mixing=Metrix(mode=mode, top_k=1), head=network.head)
    batch = make_batch(range(4)).replace(label=torch.zeros(4, dtype=torch.int64))
    result = run_step(parts, batch, make_step(network, batch_size=4))
    assert float(result.terms["metrix"]) == float(result.terms["multi_similarity"]) == 0.0
    assert all(float(g.abs().sum()) == 0.0 for g in gradients(network))


def test_the_batch_is_left_alone(bench, make_batch, make_step, make_network):
    batch = make_batch(range(8)).replace(label=LABELS)
    before = copy.deepcopy(batch)
    outputs = {"main": Output(embedding=torch.randn(8, 5))}
    mixed = Metrix().mix_pairs(outputs, batch, make_step(make_network()))
    assert batch.extra == {} and set(mixed.extra) == {"mixed_pairs"} and torch.equal(batch.image, before.image)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 is out of range; allowed: alpha > 0"),
        ({"weight": -1.0}, "weight=-1.0 is out of range; allowed: weight >= 0"),
        ({"top_k": 0}, r"top_k=0 is out of range; allowed: top_k >= 1 \(int\)"),
        ({"mode": "input"}, "mixing.mode=input needs mixing.top_k"),
        ({"mode": "feature", "top_k": 1, "renormalize": False}, "no effect on mixing.mode=feature"),
    ],
)
def test_values(keys, message):
    with pytest.raises(ValueError, match=message):
        Metrix(**keys)


def test_losses_without_pairs_to_mix_are_refused(make_network):
    network = make_network()
    network.head = Embedding(4, 3)
    for loss in (Contrastive(distance="l2"), CrossEntropy()):
        with pytest.raises(ValueError, match="mixing needs pair_form: choose a loss on pairs that can be mixed"):
            Parts(loss, mixing=Metrix())
    Parts(ProxyNCAPP(), mixing=Metrix(), head=network.head)
