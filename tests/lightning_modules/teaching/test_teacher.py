"""The networks that teach as one: means of logits, images of their own size, half precision."""

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.picked import Picked
from lightning_modules.teaching.live import Live
from lightning_modules.teaching.teacher import Ensemble, Teacher


@pytest.fixture
def image():
    return torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def nets(make_network, *seeds):
    return [make_network(seed=seed, dtype=torch.float32).eval() for seed in seeds]


def test_several_give_the_mean_of_their_logits(make_network, image):
    one, two, three = nets(make_network, 1, 2, 3)
    ours = Live().teacher([one, two, three], [None] * 3)(image).logits
    expected = torch.stack([net(image).logits.double() for net in (one, two, three)]).mean(0)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-7)
    log_mean = torch.stack([net(image).logits.log_softmax(1) for net in (one, two, three)]).mean(0)
    torch.testing.assert_close(ours.softmax(1), log_mean.softmax(1))  # the geometric mean of predictions


def test_two_of_the_same_are_that_one(make_network, image):
    (one,) = nets(make_network, 1)
    assert torch.equal(Live().teacher([one, one], [None] * 2)(image).logits, one(image).logits)


def test_several_give_no_features(make_network, image):
    teacher = Live().teacher(nets(make_network, 1, 2), [None] * 2)
    assert teacher.gives == {"logits"} and teacher.num_features is None and teacher.network.several
    output = teacher(image)
    assert output.features is None and output.embedding is None
    single = Live().teacher(nets(make_network, 1), [None])
    assert single.gives == {"logits", "features"} and single.num_features == 4 and single(image).features is not None


def test_several_of_which_one_gives_no_logits_give_none(make_network, image):
    one, two = nets(make_network, 1, 2)
    ensemble = Ensemble([one, two.with_head(Picked(two.head, None))])
    assert ensemble(image).logits is None and not ensemble.gives


def test_each_sees_images_of_its_own_size(make_network, image):
    one, two = nets(make_network, 1, 2)
    ours = Live().teacher([one, two], [12, None])(image).logits
    larger = F.interpolate(image, (12, 12), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(ours, (one(larger).logits + two(image).logits) / 2)
    assert torch.equal(Live().teacher([one], [6])(image).logits, one(image).logits), "the size they have"


def test_resized_images_stay_between_black_and_white(make_network):
    seen = []
    (one,) = nets(make_network, 1)
    one.register_forward_hook(lambda module, given, gave: seen.append(given[0]))
    edge = torch.zeros(1, 3, 6, 6)
    edge[..., 3:] = 1
    Live().teacher([one], [24])(edge)
    assert seen[0].shape[-2:] == (24, 24) and seen[0].min() == 0 and seen[0].max() == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_float32_and_is_close(make_network, image, precision):
    (one,) = nets(make_network, 1)
    half, whole = Live(precision=precision).teacher([one], [None])(image), one(image)
    assert half.logits.dtype == half.features.dtype == torch.float32
    assert not torch.equal(half.logits, whole.logits), "it is computed in half precision"
    torch.testing.assert_close(half.logits, whole.logits, rtol=0.02, atol=0.02)
    torch.testing.assert_close(half.features, whole.features, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("image_size", "size"), [("own", 224), ("data", None), (96, 96)])
def test_the_size_it_is_given(image_size, size):
    assert Live(image_size=image_size).size(224) == size


def test_it_is_frozen_and_says_what_it_is(make_network):
    teacher = Live(check=False).teacher(nets(make_network, 1), [None])
    assert isinstance(teacher, Teacher) and not teacher.checked_on_data and not teacher.keyed_by_sample
    assert not any(p.requires_grad for p in teacher.network.parameters()) and not teacher.network.training
