"""Who is to blame: term, samples, image, layer or backward; and the saved batch."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernels.batch import Batch
from lightning_modules.finite.batch import save_batch
from lightning_modules.finite.check import NonFiniteError, Verdict
from lightning_modules.finite.guard import FiniteGuard
from lightning_modules.finite.report import describe, first_bad_layer
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Regularizer
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

pytestmark = pytest.mark.fault


class Overflow(nn.Module):
    """Finite in, infinite out, for the brightest sample of the batch."""

    def forward(self, x):
        scale = torch.where(x.flatten(1).amax(1) == x.amax(), math.inf, 1.0)
        return x * scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class Explodes(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


class Broken(Regularizer):
    def forward(self, outputs, batch, step):
        return outputs["main"].class_scores.sum(1) * torch.where(batch.index % 3 == 2, math.nan, 0.0)


@pytest.fixture
def blame(make_batch, make_step):
    """(message, result, step) of one step with this network, after its gradient."""

    def run(network, batch=None, parts=None, micro_batches=2):
        parts, step = parts or Parts(CrossEntropy()), make_step(network, epoch=2, update=17)
        result = run_step(parts, batch or make_batch(list(range(8, 16))), step, micro_batches=micro_batches)
        return describe(result, step, parts), result, step

    return run


START = "the term cross_entropy is not finite in epoch 2, update 17; this update was not made. "


def test_the_first_layer_is_named_not_those_behind_it(make_network, blame):
    network = make_network(batch_norm=True)
    network.backbone.norm = nn.Sequential(network.backbone.norm, Overflow(), nn.Identity(), nn.BatchNorm2d(4).double())
    message, result, _ = blame(network)
    assert message.startswith(START) and message.endswith("First non-finite layer: network.backbone.norm.1.")
    assert "Samples with such a loss: 8, 9, 10, 11, 12, 13, 14, 15 (8 in all)." in message


def test_an_operation_between_layers_is_that_of_the_module_around_it(make_network, blame):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.second(self.first(x) / 0.0)

    network = make_network()
    network.backbone.norm = nn.Sequential(nn.Identity(), Between())
    assert blame(network)[0].endswith("First non-finite layer: network.backbone.norm.1.")
    network = make_network()
    network.pool = lambda feature_map: feature_map.mean((2, 3)).log()  # outside of every layer: the network itself
    assert blame(network)[0].endswith("First non-finite layer: network.")


def test_a_weight_that_is_not_finite_is_named(make_network, blame):
    network = make_network()
    network.backbone.conv.weight.data[0, 0, 0, 0] = math.nan
    assert blame(network)[0].endswith("layer: network.backbone.conv, whose weight is not finite.")
    network = make_network(batch_norm=True)
    network.backbone.norm.eval().running_var[1] = math.inf
    network.backbone.norm.running_mean[2] = math.nan
    assert "network.backbone.norm, whose running_mean and running_var are not finite." in blame(network)[0]


def test_an_image_is_named_by_its_index(make_network, make_batch, blame):
    batch = make_batch([30, 31, 4, 33])
    batch.image[2, 1, 0, 0] = math.nan
    message, *_ = blame(make_network(), batch)
    end = "Samples with such a loss: 4 (1 in all). The images themselves are not finite for samples 4 (1 in all)"
    assert message == f"{START}{end}: look at the data."
    batch.image[2, 1, 0, 0] = -math.inf  # tanh makes the loss finite again, not the gradient
    assert blame(make_network(), batch)[0].startswith("the gradient norm is not finite in epoch 2, update 17; ")
    assert blame(make_network(), batch)[0].endswith("not finite for samples 4 (1 in all): look at the data.")
    many = make_batch(list(range(20)))
    many.image[:] = math.nan
    assert "for samples 0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)" in blame(make_network(), many)[0]


def test_one_of_two_terms(make_network, blame):
    message, result, _ = blame(make_network(), parts=Parts(CrossEntropy(), {"broken": Broken()}))
    assert message == (
        "the term broken is not finite in epoch 2, update 17; this update was not made. Samples with such a loss: "
        "8, 11, 14 (3 in all). The outputs of the network are finite: the term itself is at fault."
    )
    assert result.terms["cross_entropy"].isfinite()


def test_the_backward(make_network, blame):
    network = make_network()
    norm = network.backbone.norm = nn.BatchNorm2d(4).double()
    norm.register_forward_hook(lambda module, args, output: Explodes.apply(output))
    message, *_ = blame(network)
    assert message.startswith("the gradient norm is not finite in epoch 2, update 17;") and message.endswith(
        "The forward is finite, the backward is not: network.backbone.norm.bias is the parameter closest to the output "
        "with a non-finite gradient (4 of 6 have one)."
    )


def test_a_norm_that_overflows(make_network, blame):
    network = make_network(dtype=torch.float32)
    batch = Batch(torch.rand(4, 3, 5, 5), torch.arange(4) % 3, torch.arange(4))
    _, result, step = blame(network, batch)
    for p in network.parameters():
        p.grad.fill_(1.0)
    network.head.bias.grad[0] = 2e30
    message = describe(result, step, Parts(CrossEntropy()))
    assert message.endswith("their norm overflows: the largest is 2.0e+30, in network.head.bias.")


def test_what_depends_on_a_draw_is_said_to(make_network, blame):
    """A second forward that is finite is no reason to blame a layer, nor the loss."""
    network, calls = make_network(), []

    class Once(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x * math.nan if len(calls) == 1 else x

    network.backbone.norm = Once()
    assert "A second forward of the same batch was finite" in blame(network)[0]


def test_the_search_leaves_no_trace(make_network, make_batch, make_step):
    network = make_network(batch_norm=True, dropout=0.5)
    before, batch = copy.deepcopy(network.state_dict()), make_batch(list(range(8)))
    state = torch.get_rng_state()
    assert first_bad_layer(batch.split(2), make_step(network), Parts(CrossEntropy())) is None
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())


def test_a_search_that_fails_does_not_hide_the_failure(make_network, make_batch, make_step):
    network = make_network()
    batch, parts, step = make_batch(list(range(8))), Parts(CrossEntropy()), make_step(network)
    batch.image[0] = math.nan
    result = run_step(parts, batch, step)

    def fails(*args, **keys):
        raise RuntimeError("out of memory")

    message = describe(result, replace(step, network=nn.Module()), parts)
    assert (
        message.startswith("the term cross_entropy") and "The search for the first non-finite layer failed: " in message
    )
    network.pool = fails
    assert "layer failed: out of memory." in describe(result, step, parts)


def test_the_batch_is_saved_and_loads_safely(make_network, make_batch, make_step, tmp_path):
    network = make_network()
    batch, parts = make_batch([30, 31, 4, 33]), Parts(CrossEntropy(), {"broken": Broken()})
    batch.image[2, 1, 0, 0] = math.nan
    step = make_step(network, epoch=2, update=17)
    result = run_step(parts, batch, step, micro_batches=2)
    path = tmp_path / "nonfinite_update_17.pt"
    with pytest.raises(NonFiniteError, match=rf"The batch is in {path}\. Lower optimizer.lr") as caught:
        FiniteGuard().act(Verdict(False), result, step, parts, directory=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    saved = torch.load(path, weights_only=True)
    torch.testing.assert_close(saved["images"], batch.image, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(saved["indices"], batch.index) and torch.equal(saved["labels"], batch.label)
    assert (saved["epoch"], saved["update"]) == (2, 17) and str(caught.value).startswith(saved["message"])
    assert math.isnan(saved["terms"]["broken"]) and set(saved["terms"]) == {"cross_entropy", "broken"}
    losses = torch.cat([losses["cross_entropy"] for losses in saved["losses"]])
    assert losses.isnan().tolist() == [False, False, True, False]


def test_at_most_three_files_a_run(make_network, make_batch, make_step, tmp_path):
    result = run_step(Parts(CrossEntropy()), make_batch([1, 2]), make_step(make_network()))
    for update in range(5):
        said = save_batch(tmp_path, result, make_step(None, update=update), "why")
        assert ("The batch is not saved: 3 files of earlier ones are in" in said) == (update >= 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"nonfinite_update_{n}.pt" for n in range(3)]
    assert "The batch is in" in save_batch(tmp_path, result, make_step(None, update=1), "again")


def test_a_disk_that_fails_does_not_hide_the_failure(make_network, make_batch, make_step, tmp_path, monkeypatch):
    network, parts = make_network(), Parts(CrossEntropy())
    network.backbone.conv.weight.data.fill_(math.nan)
    step = make_step(network)
    result = run_step(parts, make_batch(list(range(8))), step)
    (tmp_path / "file").touch()
    for directory in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(
            NonFiniteError, match="term cross_entropy .* could not be saved to .*nonfinite_update_0.pt: "
        ):
            FiniteGuard().act(Verdict(False), result, step, parts, directory=directory)

    def full(content, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NonFiniteError, match="could not be saved to .*No space left on device"):
        FiniteGuard().act(Verdict(False), result, step, parts, directory=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "no half file stays"


def test_the_search_runs_under_autocast_too(make_network, make_batch, make_step):
    """A layer that only overflows in half precision is found there."""
    network = make_network(dtype=torch.float32)
    network.backbone.conv.weight.data.fill_(3.2e38)
    batch = make_batch(list(range(8)), dtype=torch.float32)
    step = make_step(network)
    with torch.autocast("cpu", torch.bfloat16):
        result = run_step(Parts(CrossEntropy()), batch, step)
        assert "First non-finite layer: network.backbone.conv." in describe(result, step, Parts(CrossEntropy()))
