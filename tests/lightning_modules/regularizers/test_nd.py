"""ND: ten steps against a loop written from the paper, its moments, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernels.batch import Batch, Output, Update
from kernels.nd import nd_loss
from lightning_modules.class_means import load_class_means
from lightning_modules.frozen import Frozen
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import TrainingData
from lightning_modules.parts import Parts
from lightning_modules.regularizers.distilling import Distilling, LogitDistilling
from lightning_modules.regularizers.kd import KD
from lightning_modules.regularizers.nd import ND
from lightning_modules.step import run_step
from lightning_modules.teaching.teacher import Ensemble, Teacher

CLASSES = 3


class Wide(nn.Module):
    """Features of another width, and logits of them."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(5)
        self.num_features = width
        self.conv, self.head = nn.Conv2d(3, width, 3).double(), nn.Linear(width, CLASSES).double()

    def forward(self, image, label=None, mix_map=None):
        features = self.conv(image).relu().mean((2, 3))
        return Output(features=features, logits=self.head(features))


class Norms(Wide):
    """What a cache of one number an image gives."""

    def forward(self, image, label=None, mix_map=None):
        output = super().forward(image)
        norm = output.features.norm(dim=1)
        return Output(logits=output.logits, auxiliary={"feature_norm": norm})


def set_up(parts, network, teacher, make_context, batches=None, **facts):
    context = replace(make_context(network), networks={"teacher": teacher, **dict(parts.networks.items())}, **facts)
    parts.setup(context)
    if batches is not None:
        parts.prepare(TrainingData(lambda: batches, network, torch.device("cpu")))
    return parts


@pytest.mark.parametrize("width", [4, 7], ids=["same width", "projector"])
def test_ten_steps_of_kd_plus_plus_equal_a_plain_loop(make_network, make_batch, make_step, make_context, width):
    network, plain, teacher = make_network(), make_network(), Frozen(Wide(width))
    data = [make_batch(list(range(start, start + 10)), seed=0) for start in range(0, 40, 10)]
    nd = ND(weight=2.0)
    parts = Parts(CrossEntropy(), {"kd": KD(weight=3.0, warmup_epochs=2), "nd": nd}, networks={"teacher": teacher})
    set_up(parts, network, teacher, make_context, data)
    trained = [*network.parameters(), *(p for p in parts.parameters() if p.requires_grad)]
    assert (nd.projector is not None) == (width != 4)
    optimizer = torch.optim.SGD(trained, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)

    # From the page alone: class means by a loop over images, the loss by a loop over samples.
    images, labels = torch.cat([batch.image for batch in data]), torch.cat([batch.label for batch in data])
    with torch.no_grad():
        features = teacher.network(images).features
    means = [sum(features[i] for i in range(40) if labels[i] == c) / (labels == c).sum() for c in range(CLASSES)]
    gamma, beta = torch.ones(4).double(), torch.zeros(4).double()
    running_mean, running_var = torch.zeros(4).double(), torch.ones(4).double()
    own = list(plain.parameters())
    if width != 4:
        weight, bias = nd.projector.linear.weight.detach().clone(), torch.zeros(width).double()
        own += [p.requires_grad_() for p in (gamma, beta, weight, bias)]
    reference = torch.optim.SGD(own, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)

    for update in range(10):
        batch = make_batch(list(range(8)), seed=update)
        step = make_step(network, update // 2, update)
        torch.manual_seed(update)  # the masks of dropout
        optimizer.zero_grad()
        result = run_step(parts, batch, step)
        optimizer.step()
        parts.commit(result.whole(), step)

        torch.manual_seed(update)
        reference.zero_grad()
        output = plain(batch.image)
        with torch.no_grad():
            taught = teacher.network(batch.image)
        s = output.features
        if width != 4:
            mean, var = s.mean(0), s.var(0, unbiased=False)
            running_mean = 0.9 * running_mean + 0.1 * mean.detach()
            running_var = 0.9 * running_var + 0.1 * s.detach().var(0, unbiased=True)
            normalized = (s - mean) / (var + 1e-5).sqrt() * gamma + beta
            s = F.dropout(normalized, 0.5) @ weight.T + bias
        total = F.cross_entropy(output.logits, batch.label)
        p = (taught.logits / 4).softmax(1)
        kl = (p * (p.log() - (output.logits / 4).log_softmax(1))).sum(1).mean()
        total = total + 3.0 * min(1, (update // 2 + 1) / 2) * 16 * kl
        for i in range(8):
            center = means[int(batch.label[i])]
            ns, nt = s[i].square().sum().sqrt(), taught.features[i].square().sum().sqrt()
            along = (s[i] * center).sum() / center.square().sum().sqrt()
            total = total + 2.0 / 8 * (1 - along / (ns if ns >= nt else nt))
        total.backward()
        reference.step()
    for ours, theirs in zip(trained, own, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-9)
    if width != 4:
        torch.testing.assert_close(nd.projector.norm.running_mean, running_mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(nd.projector.norm.running_var, running_var, rtol=0, atol=1e-9)
        assert nd.report() | {"projector_in": 4, "projector_out": 7} == nd.report()
        assert "4 -> 7" in repr(nd)


@pytest.fixture
def ready(make_network, make_batch, make_context):
    """A function that gives a term that is set up, with its network."""

    def make(teacher=None, batches=None, **keys):
        nd, network = ND(**keys), make_network()
        teacher = teacher or Frozen(Wide(4))
        batches = [make_batch(list(range(40)))] if batches is None else batches
        set_up(
            Parts(CrossEntropy(), {"nd": nd}, networks={"teacher": teacher}), network, teacher, make_context, batches
        )
        return nd, network, teacher

    return make


def value(nd, network, teacher, batch, make_step):
    outputs = {"main": network(batch.image), "teacher/main": teacher(batch.image)}
    return nd(outputs, batch, make_step(network))


@pytest.mark.parametrize("keys", [{}, {"direction_only": True}, {"norm_only": True}, {"norm": False}])
def test_norms_alone_are_enough(ready, make_batch, make_step, keys):
    nd, network, teacher = ready(**keys)
    batch = make_batch(list(range(8)))
    found = [value(nd, network, one, batch, make_step) for one in (teacher, Frozen(Norms(4)))]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-15)
    assert ND.reads_of_teacher == {"norms"}
    assert KD.reads_of_teacher == LogitDistilling.reads_of_teacher == {"logits"}
    assert Distilling.reads_of_teacher == {"features"}
    t = teacher(batch.image).features
    torch.testing.assert_close(found[0], nd_loss(network(batch.image).features, t, nd.means.means, batch.label, **keys))


def test_scaled_class_means_and_another_order_change_nothing(ready, make_batch, make_step):
    nd, network, teacher = ready()
    batch = make_batch(list(range(8)))
    before = value(nd, network, teacher, batch, make_step)
    assert bool((before >= 0).all()) and bool((before <= 2).all())
    nd.means.means *= torch.tensor([[0.1], [3.0], [50.0]], dtype=torch.float64)
    torch.testing.assert_close(value(nd, network, teacher, batch, make_step), before, rtol=0, atol=1e-14)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = batch.map(lambda tensor: tensor[order])
    torch.testing.assert_close(
        value(nd, network, teacher, shuffled, make_step), before[order], rtol=0, atol=1e-14, msg="a batch is a set"
    )


def test_the_teacher_and_its_means_get_no_gradient_and_the_student_does(ready, make_batch, make_step):
    nd, network, teacher = ready()
    value(nd, network, teacher, make_batch(list(range(8))), make_step).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    assert not nd.means.means.requires_grad and network.backbone.conv.weight.grad.abs().sum() > 0
    assert [name for name, p in nd.named_parameters()] == [], "nothing to train without a projector"


def test_mixed_labels_mean_mixed_class_means(ready, make_batch, make_step):
    nd, network, teacher = ready()
    batch = make_batch(list(range(6)))
    hard, other = F.one_hot(batch.label, CLASSES).double(), F.one_hot(batch.label.flip(0), CLASSES).double()

    def mixed(share):
        soft = batch.replace(label=share * hard + (1 - share) * other)
        return value(nd, network, teacher, soft, make_step)

    plain, flipped = (
        value(nd, network, teacher, batch.replace(label=y), make_step) for y in (batch.label, batch.label.flip(0))
    )
    torch.testing.assert_close(mixed(1.0), plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(mixed(0.0), flipped, rtol=0, atol=1e-14)
    s, t, means = network(batch.image).features, teacher(batch.image).features, nd.means.means
    for i, found in enumerate(mixed(0.3)):
        center = 0.3 * means[batch.label[i]] + 0.7 * means[batch.label.flip(0)[i]]
        wanted = 1 - (s[i] @ center / center.norm()) / max(s[i].norm(), t[i].norm())
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_labels_of_training_decide_the_means_and_a_class_may_never_occur(ready, make_batch, make_step):
    two = make_batch(list(range(40)))
    noisy = two.replace(label=(two.label == 0).long())  # class 2 does not occur, and 0 and 1 are others
    nd, network, teacher = ready(batches=noisy.split(3))
    features = teacher(two.image).features
    torch.testing.assert_close(nd.means.means[1], features[two.label == 0].mean(0), rtol=0, atol=1e-13)
    assert nd.means.counts.tolist() == [26, 14, 0]
    batch = make_batch([0, 1])
    assert bool(value(nd, network, teacher, batch, make_step).isfinite().all())
    with pytest.raises(ValueError, match="class 2 has no mean: no training sample had this label when the class means"):
        value(nd, network, teacher, make_batch([0, 2]), make_step)


def test_the_epoch_says_value_cosine_and_ratio_of_norms(ready, make_batch, make_step):
    nd, network, teacher = ready(weight=0.5)
    seen = []
    for update in range(3):
        batch, step = make_batch(list(range(4 * update, 4 * update + 4)), seed=update), make_step(network, 0, update)
        outputs = {"main": network(batch.image).detach(), "teacher/main": teacher(batch.image)}
        term = nd(outputs, batch, step)
        nd.commit(Update(outputs, batch), step)
        s, t, c = outputs["main"].features, outputs["teacher/main"].features, nd.means.means[batch.label]
        seen.append(
            torch.stack([term / 0.5, (s * c).sum(1) / s.norm(dim=1) / c.norm(dim=1), s.norm(dim=1) / t.norm(dim=1)])
        )
    row, wanted = nd.end_epoch(), torch.cat(seen, 1).mean(1).tolist()
    assert row == pytest.approx(dict(zip(("value", "cosine", "norm_ratio"), wanted, strict=True)), abs=1e-12)
    assert nd.end_epoch() == {"value": 0.0, "cosine": 0.0, "norm_ratio": 0.0}, "the sums are those of an epoch"
    assert nd.acted()


def test_norms_are_told_behind_the_projector_as_in_evaluation(ready, make_batch, make_step):
    nd, network, teacher = ready(teacher=Frozen(Wide(7)))
    batch, step = make_batch(list(range(8))), make_step(network)
    outputs = {"main": network(batch.image).detach(), "teacher/main": teacher(batch.image)}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    nd.commit(Update(outputs, batch), step)
    assert torch.equal(torch.get_rng_state(), state) and nd.projector.training and nd.projector.dropout.training
    assert int(nd.projector.norm.num_batches_tracked) == 0
    rows = nd.projector.eval()(outputs["main"].features)
    ratio = rows.norm(dim=1) / outputs["teacher/main"].features.norm(dim=1)
    assert nd.end_epoch()["norm_ratio"] == pytest.approx(float(ratio.detach().mean()), abs=1e-12)


def test_small_features_turn_to_the_class_mean_and_grow_to_the_norm_of_the_teacher(ready, make_batch, make_step):
    """Rows of a table in place of a network: nothing else holds them back."""
    nd, network, teacher = ready()
    batch = make_batch(list(range(6)))
    taught = teacher(batch.image)
    t, unit = taught.features.norm(dim=1), F.normalize(nd.means.means[batch.label])
    drawn = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s = (0.05 * drawn.abs()).requires_grad_()  # on the side of the means, which are of features behind a ReLU

    def step_once(rate):
        term = nd({"main": Output(features=s), "teacher/main": taught}, batch, make_step(network)).sum()
        (gradient,) = torch.autograd.grad(term, s)
        s.data -= rate * gradient

    before = s.detach().clone()
    step_once(1e-3)
    assert bool((s.norm(dim=1) > before.norm(dim=1)).all())
    assert bool((F.cosine_similarity(s, unit) > F.cosine_similarity(before, unit)).all())
    for _ in range(4000):
        step_once(1e-3)
    torch.testing.assert_close(F.cosine_similarity(s, unit), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-2)
    torch.testing.assert_close(s.detach().norm(dim=1), t, rtol=0, atol=2e-2)


def test_features_of_autocast_are_told_behind_the_projector(ready, make_batch, make_step):
    nd, network, teacher = ready(teacher=Frozen(Wide(7)))
    batch = make_batch(list(range(8)))
    outputs = {"main": network(batch.image).detach(), "teacher/main": teacher(batch.image)}
    outputs["main"].features = outputs["main"].features.bfloat16()
    nd.commit(Update(outputs, batch), make_step(network))
    assert nd.end_epoch()["norm_ratio"] > 0


def test_weight_zero_has_no_projector_and_no_means(ready, make_batch, make_step):
    nd, network, teacher = ready(teacher=Frozen(Wide(7)), weight=0.0)
    assert nd.projector is None and nd.means is None and list(nd.parameters()) == []
    assert value(nd, network, teacher, make_batch([0]), make_step) is None and nd.acted()


def test_a_projector_leaves_the_random_state_alone(make_network, make_context):
    network, teacher = make_network(), Frozen(Wide(7))
    state = torch.get_rng_state()
    nd = ND()
    set_up(Parts(CrossEntropy(), {"nd": nd}, networks={"teacher": teacher}), network, teacher, make_context)
    assert torch.equal(torch.get_rng_state(), state)
    assert nd.projector.linear.weight.dtype == torch.float64 and not nd.projector.linear.bias.any()
    assert nd.projector.dropout.p == 0.5 and bool(nd.projector.norm.weight.eq(1).all())


def test_a_warm_up_and_a_stop(ready, make_batch, make_step):
    nd, network, teacher = ready(weight=2.0, warmup_epochs=4, stop_epoch=6)
    batch = make_batch([0, 1, 2])
    outputs = {"main": network(batch.image), "teacher/main": teacher(batch.image)}
    first, full = (nd(outputs, batch, make_step(network, epoch)) for epoch in (0, 3))
    torch.testing.assert_close(4 * first, full)
    assert nd(outputs, batch, make_step(network, 6)) is None
    nd.commit(Update(outputs, batch), make_step(network, 6, 6))
    assert nd.geometry.sums[2] == 0, "nothing is measured while it is off"


def test_processes_wait_for_no_gradient_of_a_projector_that_is_off(ready, make_batch, make_step):
    nd, network, teacher = ready(teacher=Frozen(Wide(7)), stop_epoch=1)
    batch = make_batch([0, 1, 2])
    outputs = {"main": network(batch.image), "teacher/main": teacher(batch.image)}
    off = nd(outputs, batch, make_step(network, 1))
    off.backward()
    assert off == 0 and all(p.grad is not None and not p.grad.any() for p in nd.projector.parameters())


def test_the_file_of_the_class_means(ready, tmp_path):
    nd, _, teacher = ready()
    nd.files(tmp_path)
    found = load_class_means(tmp_path / "class_means.safetensors", network=teacher.checksum(), width=4, num_classes=3)
    assert torch.equal(found.means, nd.means.means) and found.counts.tolist() == [14, 13, 13]


def test_keys_that_leave_nothing():
    for keys in ({"direction_only": True}, {"norm": False}):
        with pytest.raises(ValueError, match="norm_only leaves out the direction, and direction_only .*; choose one"):
            ND(norm_only=True, **keys)
    with pytest.raises(ValueError, match="weight=-1.0 is out of range"):
        ND(weight=-1.0)


def test_teachers_of_which_there_are_no_class_means(make_network, make_context):
    network = make_network()

    def refused(teacher, message):
        parts = Parts(CrossEntropy(), {"nd": ND()}, networks={"teacher": teacher})
        with pytest.raises(ValueError, match=message):
            set_up(parts, network, teacher, make_context)

    several = Teacher(Ensemble([make_network(seed=1), make_network(seed=2)]))
    refused(several, "it reads features of the view 'teacher/main', and that network gives logits")
    moving = "it takes the class means of 'teacher' once, and that network changes in training; let teacher= name"
    refused(Frozen(make_network(), checked=False), moving)
    refused(make_network(), moving)


def test_outputs_that_say_too_little(ready, make_batch, make_step):
    nd, network, teacher = ready()
    batch, step = make_batch([0, 1]), make_step(network)
    own, taught = network(batch.image), teacher(batch.image)
    with pytest.raises(ValueError, match="nd reads features of the teacher or their norms .*; take a single teacher"):
        nd({"main": own, "teacher/main": Output(logits=taught.logits)}, batch, step)
    with pytest.raises(ValueError, match="nd reads pooled features, and the network's output has none; take a network"):
        nd({"main": Output(logits=own.logits), "teacher/main": taught}, batch, step)
    with pytest.raises(ValueError, match=r"nd has no class means: call setup\(context\), then prepare\(data\)"):
        ND()({"main": own, "teacher/main": taught}, batch, step)
    fresh, _, _ = ready(batches=[Batch(batch.image, batch.label, batch.index)])
    fresh.means.counts.zero_()
    with pytest.raises(ValueError, match=r"there are no class means yet; call prepare\(data\) once"):
        fresh({"main": own, "teacher/main": taught}, batch, step)
