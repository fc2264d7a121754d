"""TrAct in its seat: which layer changes, what stays, ten steps against a plain loop, two processes."""

import copy
import multiprocessing
import pickle

import pytest
import timm
import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy, unfold
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize

from kernels import tract as kernel
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.anatomy import Anatomy
from lightning_modules.surgery.base import fold, operate
from lightning_modules.surgery.tract import TrAct, TrActConv2d, TrActConv2dSame, TrActLinear

LAM = 0.1


class Body(nn.Module):
    """One layer in timm's interface."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem

    def forward_features(self, image):
        return self.stem(image)

    def forward(self, image):
        return self.forward_features(image).tanh()


def changed_body(stem, **settings):
    body = Body(stem)
    operate(body, {"tract": TrAct(**settings)}, image_size=8)
    return body


def divided(g, X_Rn, lam=LAM):
    A = X_Rn.T @ X_Rn / len(X_Rn) + lam * torch.eye(X_Rn.shape[1], dtype=X_Rn.dtype)
    return (g.flatten(1) @ torch.linalg.inv(A)).view_as(g)


def windows(image, conv):
    rows = unfold(image, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    return rows.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(
    ("name", "kwargs", "stem", "kind"),
    [
        ("test_resnet", {}, ["conv1.0"], TrActConv2d),
        ("test_vit", {}, ["patch_embed.proj"], TrActConv2d),
        ("test_efficientnet", {}, ["conv_stem"], TrActConv2d),
        ("tf_mobilenetv3_small_minimal_100", {}, ["conv_stem"], TrActConv2dSame),
        ("repvgg_a0", {}, ["stem.conv_kxk.conv", "stem.conv_1x1.conv"], TrActConv2d),
        ("naflexvit_base_patch16_gap", {"depth": 1, "embed_dim": 24, "num_heads": 2}, ["embeds.proj"], TrActLinear),
    ],
)
def test_exactly_the_first_layer_of_a_timm_model(name, kwargs, stem, kind):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    plain, image = copy.deepcopy(model), torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
    lines = operate(model, {"tract": TrAct(lam=0.2)})
    assert lines[0] == f"tract: {len(stem)} modules changed, 0 left as they are"
    for path, module in model.named_modules():
        before = plain.get_submodule(path)
        assert isinstance(module, type(before)), "isinstance still holds"
        assert type(module) is (kind if path in stem else type(before))
        assert getattr(module, "owns_weight_gradient", False) is (path in stem)
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(image), plain(image))
    model(image).square().mean().backward()
    plain(image).square().mean().backward()
    for (key, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if key.removesuffix(".weight") in stem:
            assert (ours.grad - theirs.grad).norm() > 0.05 * theirs.grad.norm()
        else:
            assert ours.grad is theirs.grad or torch.equal(ours.grad, theirs.grad)
    assert fold(model, {"tract": TrAct()}) == {}
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert "tract" not in vars(model.get_submodule(stem[0]))


def test_dynamic_same_padding_of_tensorflow_models():
    torch.manual_seed(0)
    stem = timm.layers.Conv2dSame(3, 4, 3, stride=2).double()
    body, image = changed_body(stem), torch.randn(2, 3, 8, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad(body(image).sum(), stem.weight)
    plain = timm.layers.Conv2dSame(3, 4, 3, stride=2).double()
    plain.load_state_dict(stem.state_dict())
    (g,) = torch.autograd.grad(plain(image).tanh().sum(), plain.weight)
    padded = nn.functional.pad(image, (1, 1, 0, 1))  # 7 columns need 2 pixels, 8 lines need 1, below
    torch.testing.assert_close(found, divided(g, windows(padded, plain)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode).double()
    plain, image = copy.deepcopy(conv), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    (g,) = torch.autograd.grad(plain(image).tanh().sum(), plain.weight)
    (found,) = torch.autograd.grad(changed_body(conv)(image).sum(), conv.weight)
    rows = unfold(nn.functional.pad(image, (1, 1, 1, 1), mode=mode), 3).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, divided(g, rows), rtol=0, atol=1e-11)


def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context):
    network, plain = make_network(), make_network()
    operate(network.backbone, {"tract": TrAct(lam=0.2)}, image_size=5)
    parts = Parts(CrossEntropy())
    parts.setup(make_context(network))
    optimizer, reference = (
        torch.optim.SGD(net.parameters(), 0.2, momentum=0.9, weight_decay=1e-3) for net in (network, plain)
    )
    for update in range(10):
        batch = make_batch(list(range(8)), seed=update)
        optimizer.zero_grad()
        step = make_step(network, update // 2, update)
        result = run_step(parts, batch, step)
        optimizer.step()
        parts.commit(result.whole(), step)

        reference.zero_grad()
        cross_entropy(plain(batch.image).logits, batch.label).backward()
        conv = plain.backbone.conv
        rows = unfold(plain.normalize(batch.image), 3, padding=1).transpose(1, 2).reshape(-1, 27)
        A = sum(torch.outer(row, row) for row in rows) / len(rows) + 0.2 * torch.eye(27, dtype=torch.float64)
        conv.weight.grad = torch.linalg.solve(A, conv.weight.grad.flatten(1).T).T.view_as(conv.weight)
        reference.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_micro_batches_have_a_second_moment_each(make_network, make_batch, make_step, make_context):
    network = make_network()
    operate(network.backbone, {"tract": TrAct(lam=LAM)}, image_size=5)
    parts, batch = Parts(CrossEntropy()), make_batch(list(range(8)))
    parts.setup(make_context(network))
    run_step(parts, batch, make_step(network), micro_batches=2)
    plain, expected = make_network(), 0.0
    for half in batch.split(2):
        (g,) = torch.autograd.grad(cross_entropy(plain(half.image).logits, half.label) / 2, plain.backbone.conv.weight)
        expected = expected + divided(g, windows(plain.normalize(half.image), plain.backbone.conv))
    torch.testing.assert_close(network.backbone.conv.weight.grad, expected, rtol=0, atol=1e-12)


def test_an_attack_and_evaluation_cost_nothing(monkeypatch, make_network, make_batch):
    calls, original = [], kernel._mean_second_moment
    monkeypatch.setattr(kernel, "_mean_second_moment", lambda *args: (calls.append(1), original(*args))[1])
    network, batch = make_network(), make_batch([0, 1, 2, 3])
    operate(network.backbone, {"tract": TrAct()}, image_size=5)
    for parametrized in (False, True):
        if parametrized:
            parametrizations.weight_norm(network.backbone.conv)
        for mode in (True, False):
            image = batch.image.clone().requires_grad_()
            loss = cross_entropy(network.train(mode)(image).logits, batch.label)
            torch.autograd.grad(loss, image)
            with torch.no_grad():
                network(image)
    assert not calls
    cross_entropy(network(image).logits, batch.label).backward()
    assert len(calls) == 1


def removed_either_way(body, order):
    """Parametrization and TrAct taken out in this order; the weight stays."""
    weight = body.stem.weight.detach().clone()
    for what in order:
        if what == "parametrization":
            parametrize.remove_parametrizations(body.stem, "weight")
        else:
            assert TrAct().fold(body) == []
    assert type(body.stem) is nn.Conv2d and torch.equal(body.stem.weight, weight)


@pytest.mark.parametrize("first", ["tract", "parametrization"])
@pytest.mark.parametrize("order", [("tract", "parametrization"), ("parametrization", "tract")])
def test_parametrized_stem(first, order):
    torch.manual_seed(0)
    body, image = Body(nn.Conv2d(3, 4, 3).double()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    if first == "parametrization":
        parametrizations.weight_norm(body.stem)
    lines = operate(body, {"tract": TrAct(lam=LAM)}, image_size=8)
    note = "stem is parametrized: TrAct acts on the gradient of its effective weight"
    assert any(note in line for line in lines) is (first == "parametrization")
    if first == "tract":
        parametrizations.weight_norm(body.stem)
    assert isinstance(body.stem, TrActConv2d) and body.stem.owns_weight_gradient
    with pytest.raises(ValueError, match="applied to stem before"):
        operate(body, {"tract": TrAct()}, image_size=8)
    original = body.stem.parametrizations.weight.original1
    (found,) = torch.autograd.grad(body(image).sum(), original)
    with parametrize.cached():
        effective = body.stem.weight
        y = nn.functional.conv2d(image, effective, body.stem.bias).tanh().sum()
        (g,) = torch.autograd.grad(y, effective, retain_graph=True)
        (expected,) = torch.autograd.grad(effective, original, divided(g, windows(image, body.stem)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    copied = copy.deepcopy(body)
    removed_either_way(copied, order)
    assert isinstance(body.stem, TrActConv2d) and parametrize.is_parametrized(body.stem), "the copy alone is changed"


def test_copies_and_files():
    body = changed_body(nn.Conv2d(3, 4, 3), lam=0.3, gram="global")
    for other in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):  # noqa: S301
        assert type(other.stem) is TrActConv2d and other.stem.tract == body.stem.tract
    plain = Body(nn.Conv2d(3, 4, 3))
    plain.load_state_dict(body.state_dict())
    average = torch.optim.swa_utils.AveragedModel(body)
    average.update_parameters(body)
    assert torch.equal(average.module.stem.weight, plain.stem.weight)


def test_channels_last_and_compiled():
    torch.manual_seed(0)
    body, image = changed_body(nn.Conv2d(3, 4, 3, padding=1)).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for network, memory_format in (
        (body, torch.contiguous_format),
        (body, torch.channels_last),
        (torch.compile(body, backend="aot_eager"), torch.contiguous_format),
    ):
        body.to(memory_format=memory_format)
        network(image.contiguous(memory_format=memory_format)).sum().backward()
        assert body.stem.weight.grad.is_contiguous(memory_format=memory_format)
        results.append(body.stem.weight.grad)
        body.stem.weight.grad = None
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[2], results[0], rtol=1e-9, atol=1e-9)


def test_frozen_stem_and_several_calls_are_noted():
    lines = operate(Body(nn.Conv2d(3, 4, 3).requires_grad_(False)), {"tract": TrAct()}, image_size=8)
    assert "  warning: stem is frozen, so TrAct has no effect while it is" in lines
    twice = Body(nn.Conv2d(3, 3, 3))
    twice.forward_features = lambda image: twice.stem(twice.stem(image))
    lines = operate(twice, {"tract": TrAct()}, image_size=8)
    assert "  stem is called 2 times in a forward; each call has its own second moment" in lines


def test_refused_first_layers():
    class Other(nn.Conv2d):
        pass

    for stem, why in (
        (timm.layers.StdConv2d(3, 4, 3), "StdConv2d standardizes its weight in each forward"),
        (timm.layers.ScaledStdConv2d(3, 4, 3), "ScaledStdConv2d standardizes its weight"),
        (Other(3, 4, 3), "TrAct knows the gradient of Conv2d, Conv2dSame, Linear, and the first layer is a Other"),
        (nn.Conv2d(3, 6, 3, groups=3), "the convolution has 3 groups"),
    ):
        with pytest.raises(ValueError, match=f"TrAct matches no module of this backbone: {why}"):
            operate(Body(stem), {"tract": TrAct()}, image_size=8)
    with pytest.raises(ValueError, match="it has no layer of that kind"):
        TrAct().apply(nn.Module(), Anatomy((), (), (), (), 8))


def test_refused_settings_and_a_second_application():
    for lam in (0.0, -0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"lam={lam} is out of range; allowed: lam > 0"):
            TrAct(lam=lam)
    with pytest.raises(ValueError, match="gram=lokal is not known; did you mean local"):
        TrAct(gram="lokal")
    body = changed_body(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="TrAct was applied to stem before; a second time would divide twice"):
        operate(body, {"tract": TrAct()}, image_size=8)


def process(rank, rendezvous, results):
    """Gradients of this process's share under DDP, with the local and the global second moment."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for gram in ("local", "global"):
        network, image = ddp_case(gram)
        averaging = DistributedDataParallel(network)
        averaging(image[:2] if rank == 0 else image[2:]).square().mean().backward()
        found[gram] = network.stem.weight.grad.tolist()
    results.put((rank, found))
    distributed.destroy_process_group()


def ddp_case(gram):
    torch.manual_seed(0)
    body = changed_body(nn.Conv2d(3, 4, 3).double(), gram=gram)
    return body, torch.randn(4, 3, 6, 6, dtype=torch.float64) * torch.tensor([1.0, 1.0, 3.0, 3.0]).view(4, 1, 1, 1)


def test_global_second_moment_does_not_depend_on_the_number_of_processes(tmp_path):
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [
        context.Process(target=process, args=(r, tmp_path / "rendezvous", results), daemon=True) for r in (0, 1)
    ]
    for each in processes:
        each.start()
    try:
        both = dict(results.get(timeout=60) for _ in processes)
    finally:
        for each in processes:
            each.join(10)
            each.kill()
    assert both[0] == both[1]
    network, image = ddp_case("global")
    network(image).square().mean().backward()
    alone = network.stem.weight.grad
    error = {gram: (torch.tensor(both[0][gram], dtype=torch.float64) - alone).norm() / alone.norm() for gram in both[0]}
    assert error["global"] < 1e-12 and error["local"] > 0.05
