"""The shared step: its order, its seats (with dummy parts), and the exactness of micro-batches."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_modules.frozen import Frozen
from lightning_modules.gradients.base import Gradient, sum_terms
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Attack, Loss, Mixing, Regularizer, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.step import run_step


def gradients(network):
    return [p.grad.clone() for p in network.parameters()]


@pytest.fixture
def network(make_network):
    return make_network()


@pytest.fixture
def batch(make_batch):
    return make_batch(list(range(8)))


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 20])
def test_gradient_is_that_of_the_whole_batch(network, batch, make_step, micro_batches):
    cross_entropy(network(batch.image).logits, batch.label).backward()
    expected = gradients(network)
    network.zero_grad()
    result = run_step(Parts(CrossEntropy()), batch, make_step(network), micro_batches=micro_batches)
    for ours, theirs in zip(gradients(network), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    whole = result.whole()
    assert torch.equal(whole.batch.index, batch.index) and whole.outputs["main"].logits.shape == (8, 3)
    assert not whole.outputs["main"].logits.requires_grad and whole.losses["cross_entropy"].shape == (8,)


class TwoViews(Loss):
    """Reads a clean, an adversarial and a second view."""

    views = ("clean", "adversarial", "second")
    prediction = "clean"

    def forward(self, outputs, batch, step):
        return {view: cross_entropy(outputs[view].logits, batch.label, reduction="none") for view in self.views}


class Shift(Attack):
    def forward(self, batch, step):
        return batch.replace(image=(batch.image + 0.1).clamp(0, 1), clean_image=batch.image)


def test_views_are_forwarded_once_each(network, batch, make_step):
    calls = []
    step = make_step(network)
    step.forward = lambda image, **keys: calls.append(image) or network(image, **keys)
    batch = batch.replace(second_image=batch.image.flip(-1))
    result = run_step(Parts(TwoViews(), attack=Shift()), batch, step)
    assert len(calls) == 3
    expected = sum(
        cross_entropy(network(image).logits, batch.label)
        for image in (batch.image, (batch.image + 0.1).clamp(0, 1), batch.image.flip(-1))
    )
    torch.testing.assert_close(sum_terms(result.terms), expected.detach())
    calls.clear()
    run_step(Parts(CrossEntropy(), attack=Shift()), batch, step)
    assert len(calls) == 1 and torch.equal(calls[0], (batch.image + 0.1).clamp(0, 1)), "main is the attacked image"


def test_a_view_the_batch_lacks_is_named(network, batch, make_step):
    with pytest.raises(ValueError, match="reads the view 'second', and the batch does not carry it"):
        run_step(Parts(TwoViews(), attack=Shift()), batch, make_step(network))
    with pytest.raises(ValueError, match="loss reads the view 'adversarial', and there is no attack"):
        Parts(TwoViews())


class Imitate(Regularizer):
    views = ("main", "teacher/main")

    def forward(self, outputs, batch, step):
        return (outputs["main"].logits - outputs["teacher/main"].logits).square().mean(1)


def test_a_frozen_network_is_a_view(network, make_network, batch, make_step):
    teacher = make_network(seed=5, batch_norm=True)
    parts = Parts(CrossEntropy(), {"imitate": Imitate()}, networks={"teacher": Frozen(teacher)})
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = run_step(parts.train(), batch, make_step(network))
    expected = (network(batch.image).logits - teacher(batch.image).logits).square().mean()
    torch.testing.assert_close(result.terms["imitate"], expected.detach())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not list(parts.parameters()), "its weights are nobody's to train"
    with pytest.raises(ValueError, match="imitate reads the view 'teacher/main', and there is no network 'teacher'"):
        Parts(CrossEntropy(), {"imitate": Imitate()})


class MapFlip(Mixing):
    """Averages the unpooled map with the partner's."""

    at = "feature_map"

    def mix_batch(self, batch, step):
        return batch

    def mix_map(self, feature_map, batch, step):
        return (feature_map + feature_map.flip(0)) / 2


def test_feature_maps_are_mixed_before_pooling(network, batch, make_step):
    result = run_step(Parts(CrossEntropy(), mixing=MapFlip()), batch, make_step(network))
    feature_map = network.backbone.forward_features(network.normalize(batch.image))
    logits = network.head((feature_map + feature_map.flip(0)).mean((2, 3)) / 2).logits
    torch.testing.assert_close(result.outputs[0]["main"].logits, logits.detach())


class Perturbed(Gradient):
    """SAM's two passes: the gradient at weights moved by the first gradient."""

    several_passes = True

    def forward(self, seat):
        for one in seat.passes():
            seat.backward(sum_terms(one.terms))
        first = [p.grad.clone() for p in seat.parameters.values()]
        with torch.no_grad():
            for p, g in zip(seat.parameters.values(), first, strict=True):
                p.add_(g, alpha=0.1)
                p.grad = None
        for one in seat.passes():
            seat.backward(sum_terms(one.terms))
        with torch.no_grad():
            for p, g in zip(seat.parameters.values(), first, strict=True):
                p.sub_(g, alpha=0.1)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_two_gradient_passes(make_network, batch, make_step, micro_batches):
    network, plain = make_network(), make_network()
    result = run_step(
        Parts(CrossEntropy(), gradient=Perturbed()), batch, make_step(network), micro_batches=micro_batches
    )
    loss = cross_entropy(plain(batch.image).logits, batch.label)
    first = torch.autograd.grad(loss, list(plain.parameters()))
    with torch.no_grad():
        for p, g in zip(plain.parameters(), first, strict=True):
            p.add_(g, alpha=0.1)
    cross_entropy(plain(batch.image).logits, batch.label).backward()
    for ours, theirs in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.terms["cross_entropy"], loss.detach())
    assert len(result.batches) == len(result.outputs) == min(micro_batches, 8), "only the first pass is recorded"


class Softmax(Reweighting):
    """Coefficients that need every loss of the update."""

    needs_all_losses = True

    term = "cross_entropy"

    def forward(self, losses, outputs, batch, step):
        loss_B = losses["cross_entropy"]
        assert len(loss_B) == len(batch) == len(outputs["main"].logits) == step.batch_size
        return {self.term: loss_B.softmax(0)}


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_coefficients_of_all_losses_are_exact_under_micro_batches(
    make_network, batch, make_step, micro_batches, batch_norm
):
    network, plain = make_network(batch_norm=batch_norm), make_network(batch_norm=batch_norm)
    run_step(Parts(CrossEntropy(), reweighting=Softmax()), batch, make_step(network), micro_batches=micro_batches)
    pieces = torch.cat([plain(piece.image).logits for piece in batch.split(micro_batches)])
    loss = cross_entropy(pieces, batch.label, reduction="none")
    (loss * loss.detach().softmax(0)).sum().backward()
    for ours, theirs in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for (name, ours), theirs in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), f"{name}: the extra pass moved the norm statistics"


class Broken(Regularizer):
    def forward(self, outputs, batch, step):
        return outputs["main"].logits.sum(1) * torch.where(batch.index == 5, float("nan"), 0.0)


def test_names_that_collide_or_do_not_exist(network, batch, make_step):
    with pytest.raises(ValueError, match="cross_entropy names a loss term and a regularizer"):
        run_step(Parts(CrossEntropy(), {"cross_entropy": Broken()}), batch, make_step(network))
    reweighting = Softmax()
    reweighting.term = "cros_entropy"
    for micro_batches in (1, 2):
        with pytest.raises(
            ValueError, match="the reweighting's term=cros_entropy is not known; did you mean cross_entropy"
        ):
            run_step(
                Parts(CrossEntropy(), reweighting=reweighting), batch, make_step(network), micro_batches=micro_batches
            )


def test_coefficients_of_a_second_pass_are_those_of_the_first(make_network, batch, make_step):
    seen = []
    for micro_batches in (1, 2):
        network = make_network()
        parts = Parts(CrossEntropy(), reweighting=Softmax(), gradient=Perturbed())
        run_step(parts, batch, make_step(network), micro_batches=micro_batches)
        seen.append(gradients(network))
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_second_pass_under_autocast_sees_the_moved_weights(make_network, make_batch, make_step):
    network = make_network(dtype=torch.float32)
    batch, norms = make_batch(list(range(8)), dtype=torch.float32), []

    class Far(Gradient):
        several_passes = True

        def forward(self, seat):
            for _ in range(2):
                for one in seat.passes():
                    seat.backward(sum_terms(one.terms))
                norms.append(sum(p.grad.norm() for p in network.parameters()))
                with torch.no_grad():
                    for p in network.parameters():
                        p.add_(1.0)
                        p.grad = None

    with torch.autocast("cpu", dtype=torch.bfloat16):
        run_step(Parts(CrossEntropy(), gradient=Far()), batch, make_step(network))
    assert norms[0] != norms[1]


def test_the_extra_pass_leaves_the_random_state(make_network, batch, make_step):
    network = make_network(dropout=0.5)
    parts = Parts(CrossEntropy(), reweighting=Softmax())
    torch.manual_seed(3)
    result = run_step(parts, batch, make_step(network), micro_batches=2)
    torch.manual_seed(3)
    expected = torch.cat([network(piece.image).logits for piece in batch.split(2)])
    assert torch.equal(result.whole().outputs["main"].logits, expected.detach())


class Two(Loss):
    """Two terms with different losses."""

    def forward(self, outputs, batch, step):
        loss_B = cross_entropy(outputs["main"].logits, batch.label, reduction="none")
        return {"one": loss_B, "two": loss_B**2}


class Across(Reweighting):
    """KL weights from the losses of one term, for the other one."""

    needs_all_losses = True

    def forward(self, losses, outputs, batch, step):
        return {"two": losses["one"].softmax(0)}


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_weights_of_one_term_for_another(make_network, batch, make_step, micro_batches):
    network, plain = make_network(), make_network()
    result = run_step(Parts(Two(), reweighting=Across()), batch, make_step(network), micro_batches=micro_batches)
    loss_B = cross_entropy(plain(batch.image).logits, batch.label, reduction="none")
    weight_B = loss_B.detach().softmax(0)
    (loss_B.mean() + (weight_B * loss_B**2).sum()).backward()
    for ours, theirs in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    whole = result.whole()
    torch.testing.assert_close(whole.coefficients, {"two": weight_B}, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.losses["one"], loss_B.detach(), rtol=0, atol=1e-12)


def test_coefficients_of_another_shape_are_refused(network, batch, make_step):
    class Short(Reweighting):
        def forward(self, losses, outputs, batch, step):
            return {"cross_entropy": losses["cross_entropy"][:3]}

    with pytest.raises(ValueError, match=r"Short gives coefficients of shape \[3\] for the term cross_entropy"):
        run_step(Parts(CrossEntropy(), reweighting=Short()), batch, make_step(network))


class CleanFirst(Loss):
    """As TRADES: the prediction is the clean view, whose forward comes first and alone moves norm statistics."""

    views = ("clean", "adversarial")
    prediction = "clean"
    still = frozenset({"adversarial"})

    def forward(self, outputs, batch, step):
        return {view: cross_entropy(outputs[view].logits, batch.label, reduction="none") for view in self.views}


class Reads(Regularizer):
    def forward(self, outputs, batch, step):
        return outputs[self.view].logits.square().mean(1)


def test_regularizers_read_the_prediction_of_the_loss(make_network, batch, make_step):
    network, plain = make_network(batch_norm=True), make_network(batch_norm=True)
    parts = Parts(CleanFirst(), {"free": Reads(), "own": Reads(view="adversarial")}, attack=Shift())
    assert parts.views == ("clean", "adversarial") and parts.still == {"adversarial"}
    result = run_step(parts, batch, make_step(network))
    clean = plain(batch.image).logits
    for ours, theirs in zip(network.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), "only the clean forward moves norm statistics"
    torch.testing.assert_close(result.terms["free"], clean.detach().square().mean())
    shifted = plain((batch.image + 0.1).clamp(0, 1)).logits
    torch.testing.assert_close(result.terms["own"], shifted.detach().square().mean())


def test_a_prediction_must_be_read():
    class Odd(Loss):
        prediction = "clean"

    with pytest.raises(ValueError, match="loss calls the view 'clean' its prediction and does not read it; it reads"):
        Parts(Odd())
