"""The dual head: which gradient goes where, what is evaluated, and what is taken away."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from taught import batch_of, small, teacher, together, train
from torch import nn

from kernels.batch import Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.dual import Dual
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.regularizers.binary_kl_norm import BinaryKLNorm
from lightning_modules.step import run_step
from recipes.exporting.export import export_safetensors

KINDS = pytest.mark.parametrize("kind", ["linear", "nonlinear"])


def dual(kind="linear", **keys):
    return small(head=Dual, head_keys={"auxiliary": kind, **keys})


@KINDS
def test_the_main_classifier_starts_as_linear_does(kind):
    torch.manual_seed(3)
    ours = Dual(4, 3, auxiliary=kind)
    torch.manual_seed(3)
    plain = Linear(4, 3)
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)
    assert not torch.equal(next(ours.auxiliary.parameters())[:3, :4], ours.weight), "two classifiers, not one twice"


def test_the_official_nonlinear_form():
    """Linear(D, 200), dropout 0.1, batch norm, ReLU, Linear(200, C)."""
    made = Dual(4, 3, auxiliary="nonlinear").auxiliary
    kinds = [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(module) for module in made] == kinds
    assert made[0].weight.shape == (200, 4) and made[1].p == 0.1 and made[4].weight.shape == (3, 200)
    assert isinstance(Dual(4, 3).auxiliary, nn.Linear)


@KINDS
def test_values(kind):
    head = Dual(4, 3, auxiliary=kind, dropout_prob=0.5).double()
    features = torch.randn(6, 4, dtype=torch.float64)
    torch.manual_seed(0)
    output = head(features)
    torch.manual_seed(0)
    plain = nn.functional.dropout(features, 0.5)
    torch.testing.assert_close(output.logits, plain @ head.weight.T + head.bias)
    expected = head.auxiliary(features)
    assert output.auxiliary["logits"].shape == (6, 3) and output.features is features
    if kind == "linear":
        assert torch.equal(output.auxiliary["logits"], expected), "without the dropout of the main one"


@KINDS
def test_evaluation_ignores_the_auxiliary_one(kind):
    head = Dual(4, 3, auxiliary=kind, dropout_prob=0.5).eval()
    features = torch.randn(6, 4)
    output, plain = head(features), head.plain()
    assert output.auxiliary == {} and torch.equal(output.logits, plain(features).logits)
    assert type(plain) is Linear and plain.settings() == {"bias": True, "dropout_prob": 0.5} and not plain.training
    assert plain.weight is head.weight and plain.bias is head.bias
    with torch.no_grad():
        for parameter in head.auxiliary.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(head(features).logits, output.logits)
    assert Dual(4, 3, bias=False).plain().bias is None
    again = Dual(4, 3, **head.settings())
    again.load_state_dict(head.state_dict())


@KINDS
def test_each_head_has_the_gradient_of_its_own_term(kind):
    """The loss never reaches the auxiliary head, nor the term the main one; both reach the backbone."""
    student = dual(kind)
    parts = together(BinaryKLNorm(head="auxiliary"), student, [teacher()])
    batch, step = batch_of(0), Step(0, 0, seed=0, network=student, forward=student, batch_size=8)
    outputs = {"main": student(batch.image), "teacher/main": parts.networks["teacher"](batch.image)}
    named = dict(student.named_parameters())
    for value, own, other in (
        (parts.loss(outputs, batch, step)["cross_entropy"].mean(), "head.weight", "head.auxiliary"),
        (parts.regularizers["term"](outputs, batch, step).mean(), "head.auxiliary", "head.weight"),
    ):
        grads = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
        found = dict(zip(named, grads, strict=True))
        reached = {name for name, grad in found.items() if grad is not None}
        assert any(name.startswith(own) for name in reached) and "backbone.conv.weight" in reached
        assert not any(name.startswith(other) for name in reached), reached


@KINDS
def test_a_step_adds_both_and_nothing_more(kind):
    student = dual(kind)
    parts = together(BinaryKLNorm(head="auxiliary", weight=0.5), student, [teacher()])
    step = Step(0, 0, seed=0, network=student, forward=student, batch_size=8)
    result = run_step(parts, batch_of(0), step)
    assert list(result.terms) == ["cross_entropy", "term"]
    assert all(p.grad is not None for p in student.parameters())


def test_a_second_head_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match="head has an auxiliary classifier, and no part of this run reads it"):
        Parts(CrossEntropy(), head=dual().head)
    with pytest.raises(ValueError, match="term needs auxiliary_logits: choose a head that gives them in training"):
        together(BinaryKLNorm(head="auxiliary"), small(), [teacher()])


@KINDS
def test_export_is_one_plain_timm_file(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name="test_resnet")
    network = Network(backbone, Dual(backbone.num_features, 3, auxiliary=kind))
    images, path = torch.rand(4, 3, 48, 48), tmp_path / "net.safetensors"
    facts = {"image_size": 48, "resize_size": 48, "interpolation": "bicubic", "channels": "RGB"}
    keys = {"name": "test_resnet", "kwargs": {}, "in_channels": 3, "classes": ["a", "b", "c"]}
    written = export_safetensors(network, path, **keys, preprocessing=facts, sample_images=images)
    assert written == [path] and [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path)).eval()
    expected = network.eval()(images).logits
    torch.testing.assert_close(model(network.normalize(images)), expected, rtol=0, atol=1e-5)


def test_training_moves_both_heads():
    student = dual()
    before = {name: value.clone() for name, value in student.head.state_dict().items()}
    train(together(BinaryKLNorm(head="auxiliary"), student, [teacher()]), student, updates=2)
    assert all(not torch.equal(value, before[name]) for name, value in student.head.state_dict().items())
