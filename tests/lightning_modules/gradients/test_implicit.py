"""The gradient through the attack: ten steps against the page's formula sample by sample, its limits, its refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lightning_modules.attacks.barrier import Barrier
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.gradients import trust_region
from lightning_modules.gradients.implicit import Implicit
from lightning_modules.gradients.kinks import kinks, kinks_of
from lightning_modules.gradients.sum import Sum
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.mixing.mixup import Mixup
from lightning_modules.network import Network
from lightning_modules.part import Loss, Mixing, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.base import operate
from lightning_modules.surgery.weight_standardization import WeightStandardization

C, EPS = 1e-2, 0.2


class Softmax(Reweighting):
    """Level A of the page: p = softmax(l) over the batch."""

    needs_all_losses = True

    def forward(self, losses, outputs, batch, step):
        return {name: loss.softmax(0) for name, loss in losses.items()}


def implicit(**keys):
    """From the first epoch on, and the formula as it stands."""
    return Implicit(**({"start_epoch": 0, "max_ratio": None} | keys))


def dot(ones, others):
    return sum((one * other).sum() for one, other in zip(ones, others, strict=True))


def found_by(attack, network, batch):
    with attacked(network) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(0, 0, batch.index)).image


def plain_gradient(network, batch, moved, coefficients, c=C, eps=EPS, whole=False):
    """sum_i p_i G_i, sample by sample, with lbar written out and a dense Hessian."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for i, p in enumerate(coefficients):
        x, y = batch.image[i : i + 1], batch.label[i : i + 1]
        a, b = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
        d = (moved[i : i + 1] - x).detach().requires_grad_(True)
        loss = cross_entropy(network(x + d).logits, y)
        lower = -loss - c * (torch.log(b - d) + torch.log(d - a)).sum()
        direct = torch.autograd.grad(loss, parameters, retain_graph=True)
        (outer,) = torch.autograd.grad(loss, d, retain_graph=True)
        (slope,) = torch.autograd.grad(lower, d, create_graph=True)
        hessian = torch.diag((c / (b - d) ** 2 + c / (d - a) ** 2).flatten())
        if whole:
            rows = [torch.autograd.grad(one, d, retain_graph=True)[0].flatten() for one in slope.flatten()]
            hessian = torch.stack(rows)
        v = torch.linalg.solve(hessian, outer.flatten()).view_as(d).detach()
        cross = torch.autograd.grad((slope * v).sum(), parameters, allow_unused=True)
        for sum_, one, other in zip(total, direct, cross, strict=True):
            sum_ += p * (one - (0 if other is None else other))
    return total


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("hessian", "reweighting", "steps", "size"),
    # A dense Hessian of 75 pixels, and a derivative for each of its rows, take their time.
    [("barrier", None, 10, 5), ("barrier", Softmax(), 10, 5), ("whole", None, 10, 3), ("whole", Softmax(), 2, 3)],
)
def test_ten_steps_equal_a_plain_loop(
    make_network, make_batch, make_step, micro_batches, hessian, reweighting, steps, size
):
    network, plain = make_network(), make_network()
    attack, far = Barrier(eps=EPS, c=C, steps=10), 0.0
    gradient = implicit(hessian=hessian, solver_steps=40)
    parts = Parts(CrossEntropy(), attack=attack, gradient=gradient, reweighting=reweighting)
    optimizer, reference = (torch.optim.SGD(n.parameters(), 0.5, momentum=0.9) for n in (network, plain))
    for update in range(steps):
        batch = make_batch(range(size), seed=update)
        optimizer.zero_grad()
        step = make_step(network, update=update, batch_size=size)
        run_step(parts, batch, step, micro_batches=micro_batches)
        optimizer.step()
        moved = found_by(attack, plain, batch)
        losses = cross_entropy(plain(moved).logits, batch.label, reduction="none")
        p = losses.detach().softmax(0) if reweighting else torch.full((size,), 1 / size, dtype=torch.float64)
        direct = torch.autograd.grad((p * losses).sum(), list(plain.parameters()))
        found = plain_gradient(plain, batch, moved, p, whole=hessian == "whole")
        for parameter, g, without in zip(plain.parameters(), found, direct, strict=True):
            parameter.grad, far = g, max(far, float((g - without).abs().max()))
        reference.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert far > 1e-3, "the plain gradient would not do"


def gradients_of(network, batch, make_step, micro_batches=1, **seats):
    parts = Parts(CrossEntropy(), **seats)
    result = run_step(parts, batch, make_step(network, batch_size=len(batch)), micro_batches=micro_batches)
    return [p.grad.clone() for p in network.parameters()], result


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_without_barrier_it_is_plain_adversarial_training(make_network, make_batch, make_step, micro_batches):
    """c -> 0: the same images, and a difference that goes as c does."""
    far = []
    for c in (1e-5, 1e-7, 1e-9):
        batch, attack = make_batch(range(8)), Barrier(c=c, steps=10)
        ours, first = gradients_of(
            make_network(),
            batch,
            make_step,
            micro_batches,
            attack=attack,
            gradient=implicit(solver_steps=5),
        )
        plain, second = gradients_of(make_network(), batch, make_step, micro_batches, attack=attack)
        assert torch.equal(first.whole().batch.image, second.whole().batch.image)
        assert torch.equal(first.terms["cross_entropy"], second.terms["cross_entropy"])
        far.append(max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)))
    assert far[0] > 1e-4 and far[2] < 1e-6 and all(50 < a / b < 200 for a, b in zip(far, far[1:], strict=False))
    same, _ = gradients_of(make_network(), batch, make_step, attack=Barrier(eps=0.0), gradient=implicit())
    plain, _ = gradients_of(make_network(), batch, make_step, attack=Barrier(eps=0.0))
    assert all(torch.equal(a, b) for a, b in zip(same, plain, strict=True)), "without a ball, bit for bit"


def test_batch_norm_and_dropout(make_network, make_batch, make_step):
    """The outer level is the training forward, the lower one the network in eval mode as the attack saw it."""
    network, attack = make_network(batch_norm=True, dropout=0.5).train(), Barrier(eps=EPS, c=C, steps=20)
    plain, batch = copy.deepcopy(network), make_batch(range(8))
    torch.manual_seed(7)
    ours, _ = gradients_of(network, batch, make_step, attack=attack, gradient=implicit(hessian="barrier"))
    random = torch.get_rng_state()

    before = copy.deepcopy(plain).eval()  # the statistics of the attack
    moved = found_by(attack, before, batch)
    d = (moved - batch.image).requires_grad_(True)
    torch.manual_seed(7)
    loss = cross_entropy(plain(batch.image + d).logits, batch.label)
    assert torch.equal(torch.get_rng_state(), random), "no further draw"
    *direct, outer = torch.autograd.grad(loss, [*plain.parameters(), d])
    a, b = (-batch.image).clamp(min=-EPS), (1 - batch.image).clamp(max=EPS)
    v = outer / (C / (b - d) ** 2 + C / (d - a) ** 2)
    lower = -cross_entropy(before(batch.image + d).logits, batch.label, reduction="sum")
    (slope,) = torch.autograd.grad(lower, d, create_graph=True)
    cross = torch.autograd.grad((slope * v.detach()).sum(), list(before.parameters()), allow_unused=True)
    for g, one, other in zip(ours, direct, cross, strict=True):
        torch.testing.assert_close(g, one - (0 if other is None else other), rtol=0, atol=1e-12)
    assert network.training and network.backbone.norm.training
    for ours_, theirs in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=0, atol=1e-15)


def test_an_objective_that_knows_the_clean_prediction(make_network, make_batch, make_step):
    """objective=kl: the clean prediction too moves with the weights."""
    network, plain, batch = make_network(), make_network(), make_batch(range(8))
    attack = Barrier(eps=EPS, c=1e-3, steps=20, objective="kl")
    ours, _ = gradients_of(network, batch, make_step, attack=attack, gradient=implicit(hessian="barrier"))
    d = (found_by(attack, plain, batch) - batch.image).requires_grad_(True)
    *direct, outer = torch.autograd.grad(
        cross_entropy(plain(batch.image + d).logits, batch.label), [*plain.parameters(), d]
    )
    a, b = (-batch.image).clamp(min=-EPS), (1 - batch.image).clamp(max=EPS)
    v = outer / (1e-3 / (b - d) ** 2 + 1e-3 / (d - a) ** 2)
    clean, other = (log_softmax(plain(x).logits, 1) for x in (batch.image, batch.image + d))
    (slope,) = torch.autograd.grad(-kl_div(other, clean, reduction="sum", log_target=True), d, create_graph=True)
    cross = torch.autograd.grad((slope * v.detach()).sum(), list(plain.parameters()))
    for g, one, two in zip(ours, direct, cross, strict=True):
        torch.testing.assert_close(g, one - two, rtol=0, atol=1e-12)


def test_mixed_images_have_a_lower_level_of_their_own(make_network, make_batch, make_step):
    """Mixing at the input: the attack is around the mixed image, for its soft label."""
    network, plain, batch, mixing = make_network(), make_network(), make_batch(range(8)), Mixup(alpha=1.0)
    mixing.num_classes = 3
    attack = Barrier(eps=EPS, c=C, steps=20)
    ours, result = gradients_of(
        network, batch, make_step, mixing=mixing, attack=attack, gradient=implicit(hessian="barrier")
    )
    seen = result.whole().batch
    mixed = batch.replace(image=seen.clean_image, label=seen.label)
    expected = plain_gradient(plain, mixed, seen.image, torch.full((8,), 1 / 8, dtype=torch.float64))
    for g, one in zip(ours, expected, strict=True):
        torch.testing.assert_close(g, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_backbones_that_are_smooth(make_step, make_batch, name):
    """Fused attention and the norms of timm have a second derivative here; nothing of the network is touched."""
    torch.manual_seed(0)
    kwargs = {"img_size": 32} if name == "test_vit" else {}
    backbone = create_backbone(name=name, kwargs=kwargs)
    network = Network(backbone, Linear(backbone.num_features, 3)).train()
    batch = make_batch(range(4), dtype=torch.float32)
    batch = batch.replace(image=nn.functional.interpolate(batch.image, 32))
    assert kinks_of(network, 3, 32) == [] and network.training
    plain, _ = gradients_of(copy.deepcopy(network), batch, make_step, attack=Barrier(c=1e-3))
    ours, _ = gradients_of(network, batch, make_step, attack=Barrier(c=1e-3), gradient=implicit(solver_steps=3))
    assert all(g.isfinite().all() for g in ours)
    assert not all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("conv4", ["ReLU", "max-pooling"]),
        ("cifar_resnet20", ["ReLU"]),
        ("tf_efficientnet_lite0", ["ReLU6 or Hardtanh"]),
        ("test_resnet", ["ReLU", "max-pooling"]),
        ("test_nfnet", ["ReLU"]),
    ],
)
def test_backbones_with_kinks_are_refused_at_build(make_context, name, found):
    """Also where they call functions, and where the kink is in a gate alone."""
    backbone = create_backbone(name=name)
    network = Network(backbone, Linear(backbone.num_features, 3))
    context = make_context(network)
    object.__setattr__(context, "image_size", 32)
    with pytest.raises(ValueError, match="cannot work together:\n- .* computes with " + ", ".join(found)):
        implicit().setup(context)
    assert network.training


def test_what_is_a_kink():
    x = torch.linspace(-2, 2, 5).view(1, 1, 5, 1).requires_grad_(True)
    w = torch.ones(1, requires_grad=True)
    smooth = [nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Softplus(), nn.ELU(), nn.CELU(0.5), nn.AvgPool2d(1), nn.Sigmoid()]
    kinked = [nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.ReLU6(), nn.SELU(), nn.Hardswish(), nn.Hardsigmoid()]
    assert [kinks(module(x), x) for module in smooth] == [[]] * len(smooth)
    assert all(len(kinks(module(x), x)) == 1 for module in kinked)
    assert kinks(x * w.relu(), x) == [], "a kink in a function of the weights alone is none of the image"
    assert kinks(nn.functional.max_pool2d(x.tanh(), 1).relu_().tanh(), x) == ["ReLU", "max-pooling"]
    assert kinks(w * 2, x) == kinks(x.detach(), x) == kinks(x, x) == []


def test_a_network_that_nobody_looked_at_is_refused_by_the_first_update(make_network, make_batch, make_step):
    network = make_network()
    network.backbone.norm = nn.ReLU()
    with pytest.raises(ValueError, match="it computes with ReLU, which has no second derivative"):
        gradients_of(network, make_batch(range(8)), make_step, attack=Barrier(), gradient=implicit())


class Clean(Loss):
    views = ("clean",)
    prediction = "clean"

    def forward(self, outputs, batch, step):
        return {"clean": cross_entropy(outputs["clean"].class_scores, batch.label, reduction="none")}


class MapMixing(Mixing):
    at = "feature_map"


def test_refusals(make_network, make_batch, make_step):
    with pytest.raises(ValueError, match="gradient needs barrier: an attack whose solution is a smooth function"):
        Parts(CrossEntropy(), gradient=implicit())
    with pytest.raises(ValueError, match="gradient needs barrier: .* take attack=barrier"):
        Parts(CrossEntropy(), gradient=implicit(), attack=PGD())
    with pytest.raises(ValueError, match="gradient cannot be combined with mixing: .* mixed feature maps"):
        Parts(CrossEntropy(), gradient=implicit(), attack=Barrier(), mixing=MapMixing())
    parts = Parts(Clean(), gradient=implicit(), attack=Barrier())
    with pytest.raises(ValueError, match="no term depends on the attacked image"):
        run_step(parts, make_batch(range(8)), make_step(make_network()))
    parts = Parts(CrossEntropy(), gradient=implicit(), attack=Barrier())
    parts.attack = PGD()
    with pytest.raises(ValueError, match="and this run's attack is PGD; set attack=barrier"):
        run_step(parts, make_batch(range(8)), make_step(make_network()))
    with pytest.raises(ValueError, match="solver_steps=0 is out of range; allowed: solver_steps >= 1"):
        implicit(solver_steps=0)


def test_other_gradients_get_images_as_they_are(make_network, make_batch, make_step):
    seen = []

    class Looks(Sum):
        def forward(self, seat):
            seen.append(seat.attack)
            for one in seat.passes():
                seen.append((one.batch.image.requires_grad, one.batch.clean_image is not None))
                seat.backward(sum(one.terms.values()))

    gradients_of(make_network(), make_batch(range(8)), make_step, 2, attack=Barrier(), gradient=Looks())
    assert isinstance(seen[0], Barrier) and seen[1:] == [(False, True)] * 2


def test_before_its_start_it_is_the_sum(make_network, make_batch, make_step, make_context):
    found = []
    for gradient in (Sum(), Implicit(start_epoch=1)):
        network, batch = make_network(), make_batch(range(8))
        run_step(Parts(CrossEntropy(), attack=Barrier(), gradient=gradient), batch, make_step(network))
        found.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="can never act: gradient.start_epoch=5 .0-based. lies behind the 5 epochs"):
        Implicit(start_epoch=5).setup(make_context(network))


@pytest.fixture
def corrections(monkeypatch):
    """What was to be added to the direct gradient, of every update."""
    seen, add = [], trust_region.add_correction

    def spy(weights, correction, max_ratio):
        seen.append([part.clone() for part in correction])
        return add(weights, correction, max_ratio)

    monkeypatch.setattr("lightning_modules.gradients.implicit.add_correction", spy)
    return seen


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_half_precision_has_the_correction_of_single(
    make_network, make_batch, make_step, corrections, standardized, objective
):
    """Not of the rounded images, in a ball of a few spacings, nor of rounded second derivatives."""
    network, batch = make_network(dtype=torch.float32), make_batch(range(8), dtype=torch.float32)
    if standardized:
        operate(network.backbone, {"ws": WeightStandardization(select="all")}, 5)
    network, batch = network.bfloat16(), batch.replace(image=batch.image.bfloat16())
    single = copy.deepcopy(network).float(), batch.replace(image=batch.image.float())
    for net, images in ((network, batch), single):
        attack = Barrier(eps=8 / 255 if objective == "ce" else EPS, c=C, steps=20, objective=objective)
        gradients_of(net, images, make_step, attack=attack, gradient=implicit())
    assert all(part.dtype == torch.bfloat16 for part in corrections[0])
    half, exact = (torch.cat([part.flatten().double() for part in parts]) for parts in corrections)
    assert exact.norm() > 1e-4 and (half - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_bound_is_that_of_the_whole_update(make_network, make_batch, make_step, micro_batches):
    def found(**seats):
        gradients, _ = gradients_of(
            make_network(), make_batch(range(8)), make_step, micro_batches, attack=Barrier(eps=EPS, c=C), **seats
        )
        return torch.cat([g.flatten() for g in gradients])

    direct, whole = found(), found(gradient=implicit())
    correction = whole - direct
    ratio = float(correction.norm() / direct.norm())
    torch.testing.assert_close(found(gradient=implicit(max_ratio=2 * ratio)), whole, rtol=0, atol=0)
    bounded = implicit(max_ratio=ratio / 4)
    torch.testing.assert_close(found(gradient=bounded), direct + correction / 4, rtol=0, atol=1e-12)
    assert not bounded.acted() and bounded.report() == {}, "counted when the update has happened"
    bounded.commit(None, make_step(None))
    assert bounded.acted() and bounded.report() == bounded.end_epoch()
    expected = {"ratio": ratio / 4, "scaled_down_share": 1.0, "left_out_share": 0.0}
    assert bounded.report() == pytest.approx(expected, rel=1e-9) and bounded.end_epoch() == {}


def test_without_second_derivatives_the_direct_gradient_is_left(make_network, make_batch, make_step):
    """Running statistics that are of no use, which the direct gradient does not read: it stays bit for bit."""
    found = []
    for gradient in (Sum(), implicit()):
        network = make_network(batch_norm=True).train()
        network.backbone.norm.running_mean.fill_(torch.inf)
        found.append(gradients_of(network, make_batch(range(8)), make_step, attack=Barrier(), gradient=gradient)[0])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))
    gradient.commit(None, make_step(None))
    assert gradient.report() == {"ratio": 0.0, "scaled_down_share": 0.0, "left_out_share": 1.0}
    assert not gradient.acted()


def test_of_untrained_statistics_it_is_no_longer_than_the_direct_gradient(make_network, make_batch, make_step):
    """Where they shrink what they should normalize, second derivatives are of any size, and finite."""
    found = []
    for gradient in (Sum(), implicit(), implicit(max_ratio=1.0)):
        network = make_network(batch_norm=True).train()
        network.backbone.norm.running_var.fill_(1e-4)
        batch, attack = make_batch(range(8)), Barrier(eps=EPS, c=1e-4)
        gradients, _ = gradients_of(network, batch, make_step, attack=attack, gradient=gradient)
        found.append(torch.cat([g.flatten() for g in gradients]))
    direct, whole, bounded = found
    assert (whole - direct).norm() > 10 * direct.norm()
    torch.testing.assert_close((bounded - direct).norm(), direct.norm())
    assert torch.dot(bounded, direct) >= 0, "never against the direct gradient"
