"""Every loss on batches with nothing to compare: finite values and gradients, in the graph, in two precisions."""

import importlib
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch

import kernels
from kernels.contrastive import contrastive_loss
from kernels.distillation import dist_loss, dkd_loss, kd_loss
from kernels.info_nce import info_nce_loss, nt_xent_loss
from kernels.margin_softmax import KINDS, margin_softmax_loss
from kernels.metrix import KINDS as PAIRS
from kernels.metrix import mixed_loss_explicit
from kernels.metrix_gram import embedding_metrix
from kernels.metrix_proxy import proxy_anchor_metrix, proxy_nca_metrix
from kernels.multi_similarity import multi_similarity_loss
from kernels.nd import nd_loss
from kernels.pair_form import binomial, clean_loss, contrastive, lifted, multi_similarity, nca, proxy_anchor
from kernels.pairs import pair_masks, similarities
from kernels.proxy import proxy_anchor_loss, proxy_nca_pp_loss
from kernels.rkd import rkd_angle_loss, rkd_distance_loss
from kernels.sup_con import sup_con_loss
from kernels.triplet import DISTANCES, MININGS, triplet_loss
from kernels.unpg import unpg_loss, unpg_negatives

FORMS = {
    "contrastive": contrastive(), "lifted": lifted(), "binomial": binomial(), "multi_similarity": multi_similarity(),
    "proxy_anchor": proxy_anchor(), "nca": nca(), "nca_over_all": nca(over_all=True),
}  # fmt: skip
CLASSES = 4
#: Labels of the batches. Rows are equal in "copies", and some have no direction in "zeros".
BATCHES = {
    "empty": [],
    "one": [2],
    "no_positives": [0, 1, 2],
    "no_negatives": [1, 1, 1],
    "copies": [0, 0, 1, 1],
    "zeros": [0, 0, 1, 1],
    "unlabelled": [-1, -1],
}


def of_form(z, y, proxies, form):
    return clean_loss(form, similarities(z), *pair_masks(y))


def of_explicit(z, y, proxies, form):
    similarity = similarities(z)
    positive, negative = pair_masks(y)
    anchor, other = (positive | negative).nonzero(as_tuple=True)
    return mixed_loss_explicit(form, similarity[anchor, other], positive[anchor, other].float(), anchor, len(y))


def of_unpg(z, y, proxies):
    return unpg_loss(similarities(z, proxies), y, unpg_negatives(similarities(z), y))


def of_views(z, y, proxies, **keys):
    return nt_xent_loss(z, z.flip(-1), **keys)


def plain(function, **keys):
    return lambda z, y, proxies: function(z, y, **keys)


def of_proxies(function, *further, **keys):
    return lambda z, y, proxies: function(z, y, proxies, *further, **keys)


LOSSES = {
    **{
        f"triplet_{mining}_{margin}_{distance}_{over}": plain(
            triplet_loss, margin=margin, mining=mining, distance=distance, over=over
        )
        for mining in MININGS for margin in (0.2, None) for distance in DISTANCES for over in ("mean", "nonzero")
    },
    **{
        f"contrastive_{distance}_{over}_{squared}": plain(
            contrastive_loss, distance=distance, over=over, squared=squared
        )
        for distance in ("cosine", "l2") for over in ("sum", "nonzero") for squared in (False, True)
    },
    **{f"info_nce_{share}": plain(info_nce_loss, hard_fraction=share) for share in (1.0, 0.5)},
    **{f"nt_xent_{share}": partial(of_views, hard_fraction=share) for share in (1.0, 0.5)},
    "sup_con": plain(sup_con_loss),
    **{f"multi_similarity_{epsilon}": plain(multi_similarity_loss, epsilon=epsilon) for epsilon in (0.1, None)},
    **{f"form_{name}": partial(of_form, form=form) for name, form in FORMS.items()},
    **{f"explicit_{name}": partial(of_explicit, form=form) for name, form in FORMS.items()},
    **{
        f"metrix_{name}_{pairs}_{top_k}": lambda z, y, proxies, form=form, pairs=pairs, top_k=top_k: embedding_metrix(
            form, z, y, 0.3, pairs=pairs, top_k=top_k
        )
        for name, form in FORMS.items() for pairs in PAIRS for top_k in (None, 1)
    },
    **{f"anchor_metrix_{pairs}": of_proxies(proxy_anchor_metrix, 0.3, pairs=pairs) for pairs in PAIRS},
    **{f"nca_metrix_{pairs}": of_proxies(proxy_nca_metrix, 0.3, pairs=pairs) for pairs in PAIRS},
    **{
        f"margin_{kind}": of_proxies(margin_softmax_loss, kind=kind, margin=float(kind == "sphere_face"))
        for kind in KINDS
    },
    "proxy_anchor": of_proxies(proxy_anchor_loss),
    "proxy_nca_pp": of_proxies(proxy_nca_pp_loss),
    "unpg": of_unpg,
}  # fmt: skip


def rows(batch, dtype):
    labels = torch.tensor(BATCHES[batch], dtype=torch.int64)
    z = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    z = torch.ones_like(z) if batch == "copies" else z
    z[:1] *= batch != "zeros"
    proxies = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(2))
    return z.to(dtype).requires_grad_(), labels, proxies.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_values_and_gradients_are_finite_and_in_the_graph(name, dtype):
    for batch in BATCHES:
        z, labels, proxies = rows(batch, dtype)
        loss = LOSSES[name](z, labels, proxies)
        assert loss.shape == (CLASSES if name.startswith("anchor_metrix") else len(labels),), batch
        assert loss.dtype == torch.float32 and bool(loss.isfinite().all()), batch
        loss.sum().backward()
        assert z.grad is not None and z.grad.dtype == dtype and bool(z.grad.isfinite().all()), batch
        assert proxies.grad is None or bool(proxies.grad.isfinite().all()), batch


@pytest.mark.parametrize(
    "function",
    [
        *(partial(triplet_loss, margin=m, mining=mining, over=over, anchors=3)
          for m in (0.2, None) for mining in MININGS for over in ("mean", "nonzero")),
        *(partial(contrastive_loss, over=over, anchors=3) for over in ("sum", "nonzero")),
        info_nce_loss, sup_con_loss, multi_similarity_loss,
        *(partial(embedding_metrix, form, lam=0.3) for form in FORMS.values()),
    ],
)  # fmt: skip
def test_a_process_without_a_sample_stays_in_the_graph_of_the_others(function):
    """A batch of three over four processes: the gathered rows need their gradient in each of them."""
    z, labels, _ = rows("empty", torch.float32)
    others, their_labels, _ = rows("no_positives", torch.float32)
    keys = {"columns": others, "column_labels": their_labels}
    if isinstance(function, partial) and function.func is embedding_metrix:
        loss = embedding_metrix(function.args[0], z, labels, **function.keywords, **keys)
    else:
        loss = function(z, labels, **keys)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert not others.grad.any() and z.grad is not None


def test_no_loss_is_left_out():
    """Every public function of the kernels that is called a loss or mixes for one is among the cases above.

    Those that compare with a teacher have such batches in their own tests.
    """
    found = set()
    for path in Path(kernels.__path__[0]).glob("[!_]*.py"):
        module = importlib.import_module(f"kernels.{path.stem}")
        own = [name for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        found |= {name for name in own if name.endswith(("_loss", "_metrix"))}
    taught = {f.__name__ for f in (kd_loss, dkd_loss, dist_loss, nd_loss, rkd_angle_loss, rkd_distance_loss)}
    missing = found - taught - set(globals())
    assert not missing, missing
