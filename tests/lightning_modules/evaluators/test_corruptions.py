"""Accuracy under corruptions: plain loops, draws that depend on the image alone, and what is refused."""

import sys

import corruption_package
import numpy as np
import pytest
import torch
from torch import nn

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.corruption_images import BENCHMARK, GROUPS, KINDS, corrupted
from lightning_modules.evaluators.corruptions import CorruptionsEvaluator
from lightning_modules.state.random_state import numpy_seeded

SIZE, COUNT = 32, 40
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def package(monkeypatch):
    corruption_package.install(monkeypatch)


class Bright(nn.Module):
    """Class 1 for an image whose upper left quarter is brighter than a threshold."""

    def forward(self, image):
        value = image[:, :, : SIZE // 2, : SIZE // 2].mean((1, 2, 3)) - 0.5
        return Output(logits=torch.stack([-value, value], 1))


def images(count=COUNT):
    generator = torch.Generator().manual_seed(3)
    level = 0.35 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    image = (level + 0.1 * torch.rand(count, 3, SIZE, SIZE, generator=generator)).clamp(0, 1)
    label = Bright()(image).logits.argmax(1)
    label[::7] = 1 - label[::7]
    return Batch(image, label, torch.arange(count) * 3 + 1)


def data(batch, size=COUNT, order=None, brief=False):
    rows = torch.arange(len(batch)) if order is None else order
    return EvaluationData(
        [batch.map(lambda t, at=at: t[at]) for at in rows.split(size)], ("dark", "light"), brief=brief
    )


def test_the_kinds_are_those_of_the_benchmark_and_four():
    assert len(KINDS) == len(set(KINDS)) == 19 and KINDS[:15] == BENCHMARK and KINDS[15:] == GROUPS["extra"]
    assert [len(GROUPS[name]) for name in ("noise", "blur", "weather", "digital")] == [3, 4, 4, 4]


def test_metrics_are_those_of_plain_loops(package):
    batch, network = images(), Bright()
    kinds, severities = ["speckle_noise", "brightness", "noise"], [4, 1, 4]
    found = CorruptionsEvaluator(kinds=kinds, severities=severities, seed=5)(network, data(batch, 16))
    expected = {}
    for kind in ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "speckle_noise"):
        for severity in (1, 4):
            right = 0
            for image, label, index in zip(batch.image, batch.label, batch.index, strict=True):
                pixels = np.uint8(np.rint(image.double().permute(1, 2, 0).numpy() * 255))
                made = torch.from_numpy(corrupted(pixels, kind, severity, 5, int(index))).permute(2, 0, 1)
                right += int(network(made[None].double() / 255).logits.argmax() == label)
            expected[kind, severity] = right / COUNT
    table = found.tables["Accuracy by kind and severity"]
    assert [row[0].replace(" ", "_") for row in table.rows] == list(dict.fromkeys(kind for kind, _ in expected))
    for kind, group, mean, *by_severity in table.rows:
        name = kind.replace(" ", "_")
        assert by_severity == [expected[name, 1], expected[name, 4]] and name in GROUPS[group]
        assert mean == pytest.approx(sum(by_severity) / 2)
    means = {name: sum(expected[name, s] for s in (1, 4)) / 2 for name, _ in expected}
    extra = means.pop("speckle_noise")
    metrics = found.metrics
    assert metrics["accuracy"] == (network(batch.image).logits.argmax(1) == batch.label).double().mean().item()
    assert metrics["corruption_accuracy"] == pytest.approx(sum(means.values()) / 4)
    assert metrics["extra_accuracy"] == pytest.approx(extra)
    assert metrics["worst_kind"] == pytest.approx(min(extra, *means.values()))
    assert metrics["images"] == COUNT and len(set(expected.values())) > 3, "the example tells them apart"
    curve = found.figures["Accuracy over severity"]
    assert curve.x == [0, 1, 4] and set(curve.lines) == {"noise", "weather", "extra"}
    assert curve.lines["weather"] == [metrics["accuracy"], expected["brightness", 1], expected["brightness", 4]]
    noise = [sum(expected[kind, s] for kind in GROUPS["noise"]) / 3 for s in (1, 4)]
    assert curve.lines["noise"][1:] == pytest.approx(noise)


@pytest.mark.parametrize("limit", [None, 11])
def test_an_image_meets_the_same_corruption_in_any_batch(package, limit):
    batch, evaluator = images(), CorruptionsEvaluator(severities=[2, 5], limit=limit, seed=1)
    whole = evaluator(Bright(), data(batch))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    parts = evaluator(Bright(), data(batch, 7, order))
    assert parts.metrics == whole.metrics and parts.figures == whole.figures and parts.tables == whole.tables
    assert whole.metrics["images"] == (limit or COUNT)
    (rows,), (others,) = whole.pictures.values(), parts.pictures.values()
    assert [row.index for row in rows] == [row.index for row in others] and len(rows) == 2
    for row, other in zip(rows, others, strict=True):
        assert row.note == other.note and "severity 5" in row.note and len(row.pictures) == 20
        for one, two in zip(row.pictures, other.pictures, strict=True):
            assert one.caption == two.caption and np.array_equal(one.picture, two.picture)


def test_the_draw_depends_on_seed_index_kind_and_severity(package):
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    for kind in ("gaussian_noise", "glass_blur", "impulse_noise"):
        first = corrupted(image, kind, 3, 0, 7)
        assert np.array_equal(first, corrupted(image, kind, 3, 0, 7))
        for seed, index in ((1, 7), (0, 8)):
            assert not np.array_equal(first, corrupted(image, kind, 3, seed, index))
    noises = [corrupted(image, "gaussian_noise", s, 0, 7) / 1.0 - 128 for s in (1, 2)]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.1
    other = corrupted(image, "shot_noise", 1, 0, 7) / 1.0 - 128
    assert abs(np.corrcoef(noises[0].ravel(), other.ravel())[0, 1]) < 0.1


def test_global_random_state_is_left_as_it_is(package):
    np.random.seed(9)
    np.random.normal()  # leaves a second number waiting
    numpy, torch_state = np.random.get_state(), torch.get_rng_state()
    CorruptionsEvaluator(severities=[1], num_pictures=1)(Bright(), data(images(4)))
    after = np.random.get_state()
    assert np.array_equal(numpy[1], after[1]) and numpy[2:] == after[2:]
    assert torch.equal(torch_state, torch.get_rng_state())
    with pytest.raises(KeyError), numpy_seeded(0):
        np.random.normal()
        raise KeyError
    assert np.array_equal(numpy[1], np.random.get_state()[1]) and numpy[2:] == np.random.get_state()[2:]


def test_a_spatter_without_a_drop_leaves_the_image(package):
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    same = [np.array_equal(corrupted(image, "spatter", 1, 0, index), image) for index in range(20)]
    assert 3 < sum(same) < 17


def test_a_validation_is_brief(package):
    found = CorruptionsEvaluator(kinds=["extra"], severities=[1])(Bright(), data(images(6), brief=True))
    assert set(found.metrics) == {"accuracy", "extra_accuracy", "worst_kind", "images"}
    assert not (found.tables or found.figures or found.pictures)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(
        ValueError, match="second OpenCV: pip install scikit-image numba && pip install --no-deps image"
    ):
        CorruptionsEvaluator()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kinds": ["fogg", "snow"]}, "kinds names fogg; there are noise, .* saturate"),
        ({"kinds": []}, "must name at least one each; null stands for all"),
        ({"severities": []}, "must name at least one each"),
        ({"severities": [0]}, "severities"),
        ({"severities": [6]}, "severities"),
        ({"limit": 0}, "limit"),
    ],
)
def test_keys_are_checked(package, keys, said):
    with pytest.raises(ValueError, match=said):
        CorruptionsEvaluator(**keys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.replace(image=b.image[..., :31]), "images of 3 channels and 31 x 32 px; .* at least 32 px a side"),
        (lambda b: b.replace(image=b.image[:, :1]), "images of 1 channels .* need three channels"),
        (lambda b: b.replace(image=b.image + 1), r"changed within \[0, 1\]"),
        (lambda b: b.replace(label=torch.rand(4, 2)), "one class for each image"),
    ],
)
def test_images_that_cannot_be_corrupted_are_refused(package, change, said):
    with pytest.raises(ValueError, match=said):
        CorruptionsEvaluator(severities=[1])(Bright(), data(change(images(4))))
    with pytest.raises(ValueError, match="there is no image to evaluate"):
        CorruptionsEvaluator()(Bright(), EvaluationData([], ("dark", "light")))


def test_scores_that_are_not_finite_are_refused(package):
    class Broken(nn.Module):
        def forward(self, image):
            return Output(logits=Bright()(image).logits / (image.amax((1, 2, 3)) < 0.999)[:, None])

    batch = images(4).map(lambda t: t)
    with pytest.raises(ValueError, match="scores for a corrupted image are not finite"):
        CorruptionsEvaluator(kinds=["noise"], severities=[5])(Broken(), data(batch))


def test_the_package_itself():
    """Every kind of the real package: as named, deterministic, and nothing left behind."""
    package = pytest.importorskip("imagecorruptions")
    if package.__spec__ is None:
        pytest.skip("a stand-in")
    assert tuple(package.get_corruption_names("all")) == KINDS
    image = np.random.default_rng(0).integers(0, 256, (16, 18, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    kept, state = image.copy(), np.random.get_state()
    for kind in KINDS:
        for severity in (1, 5):
            first = corrupted(image, kind, severity, 0, 3)
            assert first.shape == image.shape and first.dtype == np.uint8 and not np.array_equal(first, image), kind
            np.random.seed(severity)
            assert np.array_equal(first, corrupted(image, kind, severity, 0, 3)), f"{kind} draws from elsewhere"
            np.random.set_state(state)
    assert np.array_equal(kept, image)
    found = CorruptionsEvaluator(limit=3)(Bright(), data(images(5)))
    assert (
        found.metrics["images"] == 3
        and found.metrics == CorruptionsEvaluator(limit=3)(Bright(), data(images(5))).metrics
    )
