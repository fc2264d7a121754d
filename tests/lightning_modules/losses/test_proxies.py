"""Losses with a vector for each class: which function they are, the vectors and their learning rate, mixed examples."""

import pytest
import torch
from embedding_bench import DIM, rows, run, setup

from kernels.margin_softmax import margin_logits, margin_softmax_loss
from kernels.metrix import list_pairs
from kernels.metrix_proxy import proxy_anchor_metrix, proxy_nca_metrix
from kernels.mixed_pairs import MixedPairs
from kernels.pairs import pair_masks, similarities, unit
from kernels.proxy import proxy_anchor_loss, proxy_nca_pp_loss
from kernels.unpg import unpg_loss, unpg_negatives
from lightning_modules.losses.arc_face import ArcFace
from lightning_modules.losses.cos_face import CosFace
from lightning_modules.losses.norm_softmax import NormSoftmax
from lightning_modules.losses.proxy_anchor import ProxyAnchor
from lightning_modules.losses.proxy_nca_pp import ProxyNCAPP
from lightning_modules.losses.sphere_face import SphereFace
from lightning_modules.losses.unpg import UNPG
from lightning_modules.mixing.metrix import Metrix
from lightning_modules.optimization import create_optimizer
from lightning_modules.parts import Parts


def unpg(z, y, w):
    logits = margin_logits(similarities(z, w), y, kind="cos_face", margin=0.35, scale=30.0)
    return unpg_loss(logits, y, 30.0 * unpg_negatives(similarities(z), y, wisk=1.5))


def softmax(**keys):
    return lambda z, y, w: margin_softmax_loss(z, y, w, **keys)


CASES = {
    NormSoftmax: softmax(kind="none", scale=20.0),
    CosFace: softmax(kind="cos_face", scale=30.0, margin=0.35),
    ArcFace: softmax(kind="arc_face", scale=30.0, margin=0.5),
    SphereFace: softmax(kind="sphere_face", scale=1.0, margin=4),
    UNPG: unpg,
    ProxyNCAPP: lambda z, y, w: proxy_nca_pp_loss(z, y, w, temperature=1 / 9),
    ProxyAnchor: lambda z, y, w: proxy_anchor_loss(z, y, w, alpha=32.0, delta=0.1),
}
KINDS = pytest.mark.parametrize("kind", list(CASES), ids=lambda kind: kind.__name__)


@KINDS
def test_it_is_its_kernel_and_gradients_reach_both(kind):
    loss = setup(kind())
    (z, y), (other, _) = rows(), rows()
    weight = loss.proxies.weight.detach().clone().requires_grad_()
    (name, ours), *rest = run(loss, z, y).items()
    theirs = CASES[kind](other, y, weight)
    assert not rest and kind.__module__.endswith(name) and weight.shape == (4, DIM)
    torch.testing.assert_close(ours.mean(), theirs.mean(), rtol=1e-12, atol=0)
    ours.mean().backward(), theirs.mean().backward()
    torch.testing.assert_close(z.grad, other.grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(loss.proxies.weight.grad, weight.grad, rtol=1e-10, atol=1e-14)
    assert bool(weight.grad.any()) and loss.per_sample == (ours.ndim == 1 and kind is not UNPG)


def test_class_vectors_learn_at_their_own_rate(make_network):
    parts = Parts(setup(ProxyAnchor()))
    optimizer = create_optimizer(make_network(), parts, name="adamw", lr=1e-3)
    groups = [g for g in optimizer.param_groups if any(p is parts.loss.proxies.weight for p in g["params"])]
    assert len(groups) == 1 and groups[0]["lr_scale"] == 100.0 and len(groups[0]["params"]) == 1
    assert all(g.get("lr_scale", 1.0) == 1.0 for g in optimizer.param_groups if g is not groups[0])


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (NormSoftmax, {"temperature": 0.0}, "temperature=0.0 is out of range; allowed: temperature > 0"),
        (CosFace, {"scale": -1.0}, "scale=-1.0 is out of range; allowed: scale > 0"),
        (ProxyAnchor, {"lr_scale": 0.0}, "lr_scale=0.0 is out of range; allowed: lr_scale > 0"),
        (ProxyNCAPP, {"temperature": -1.0}, "temperature=-1.0 is out of range; allowed: temperature > 0"),
        (UNPG, {"wisk": -0.5}, "wisk=-0.5 is out of range; allowed: wisk >= 0"),
    ],
)
def test_values(kind, keys, message):
    with pytest.raises(ValueError, match=message):
        kind(**keys)


@pytest.mark.parametrize("pairs", ["pos_neg", "anc_neg"])
def test_proxy_anchor_mixes_samples(pairs):
    loss = setup(ProxyAnchor())
    z, y = rows()
    ours = run(loss, z, y, mixed_pairs=MixedPairs(pairs, 0.3, 0.4))["metrix"]
    theirs = proxy_anchor_metrix(z, y, loss.proxies.weight, 0.3, alpha=32.0, delta=0.1, pairs=pairs)
    torch.testing.assert_close(ours, 0.4 * theirs.sum())


def test_proxy_anchor_takes_examples_mixed_outside():
    """Every mix of two samples of two classes, given once for each anchor of its class, is one positive of a proxy."""
    loss = setup(ProxyAnchor())
    z, y = rows(8)
    listed = list_pairs(*pair_masks(y), "pos_neg")
    codes, position = (listed[:, 1] * 8 + listed[:, 2]).unique(return_inverse=True)
    assert len(codes) < len(listed) or len(y.unique()) * 2 == 8
    mixes = 0.3 * unit(z)[codes // 8] + 0.7 * unit(z)[codes % 8]
    pairs = MixedPairs("pos_neg", 0.3, 0.4, embeddings=mixes, pairs=listed, position=position)
    ours = run(loss, z, y, mixed_pairs=pairs)["metrix"]
    inside = run(loss, z, y, mixed_pairs=MixedPairs("pos_neg", 0.3, 0.4))["metrix"]
    torch.testing.assert_close(ours, inside, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("loss", "keys", "message"),
    [
        (ProxyAnchor, {}, "mode=feature cannot mix anc_neg; take mode=embedding or pair_type=pos_neg"),
        (ProxyNCAPP, {"pair_type": "pos_neg"}, "mode=feature cannot mix pos_neg; take mode=embedding"),
    ],
)
def test_what_a_proxy_cannot_mix_is_refused_at_once(loss, keys, message):
    with pytest.raises(ValueError, match=f"class vectors, which are no images.*{message}"):
        Parts(loss(), mixing=Metrix(mode="feature", top_k=1, **keys))
    Parts(ProxyAnchor(), mixing=Metrix(mode="feature", top_k=1, pair_type="pos_neg"))
    Parts(loss(), mixing=Metrix())


def test_proxy_nca_mixes_class_vectors_at_the_scale_of_its_clean_loss():
    loss = setup(ProxyNCAPP())
    z, y = rows()
    terms = run(loss, z, y, mixed_pairs=MixedPairs("pos_neg", 0.3, 0.4))
    theirs = proxy_nca_metrix(z, y, loss.proxies.weight, 0.3, temperature=1 / 18, pairs="pos_neg")
    torch.testing.assert_close(terms["metrix"], 0.4 * theirs)
    none = proxy_nca_metrix(z, y[:1].expand(10), loss.proxies.weight[:1], 0.3, temperature=1 / 18)
    torch.testing.assert_close(none, torch.zeros_like(none))  # one class leaves nothing to mix
