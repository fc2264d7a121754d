"""Utilization against plain loops, and what mixing adds."""

import pytest
import torch

from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.utilization import Utilization
from lightning_modules.heads.embedding import Embedding


@pytest.fixture
def network(make_network):
    net = make_network(dtype=torch.float32)
    torch.manual_seed(0)
    net.head = Embedding(4, 3, dim=3)
    return net.eval()


def data(seed=0, train=True):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(30, 3, 5, 5, generator=generator)

    def batches(rows):
        return [Batch(images[rows], torch.tensor(rows) % 3, torch.tensor(rows))]

    test, seen = list(range(10)), list(range(10, 30))
    return EvaluationData(batches(test), ("a", "b", "c"), train=(lambda: batches(seen)) if train else None), images


def test_it_is_the_mean_of_the_smallest_squared_distances(network):
    given, images = data()
    found = Utilization()(network, given).metrics
    with torch.no_grad():
        z = torch.nn.functional.normalize(network(images).embedding.double())
    nearest = [min(float((z[q] - z[x]).square().sum()) for x in range(10, 30)) for q in range(10)]
    assert found["utilization"] == pytest.approx(sum(nearest) / 10, rel=1e-5)
    e = torch.nn.functional.normalize(z[10:])
    mixed = Utilization().mixes(e, torch.arange(10, 30) % 3)
    nearest = [min(float((z[q] - x).square().sum()) for x in torch.cat([e, mixed])) for q in range(10)]
    assert found["utilization_mixed"] == pytest.approx(sum(nearest) / 10, rel=1e-5)
    assert 0 < found["utilization_mixed"] < found["utilization"] and found["images"] == 10


def test_mixes_lie_between_two_classes():
    z = torch.nn.functional.normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)))
    labels = torch.arange(12) % 2
    mixes = Utilization(mixed_per_image=50).mixes(z, labels)
    assert 0.3 * 600 < len(mixes) < 0.7 * 600
    torch.testing.assert_close(mixes.norm(dim=1), torch.ones(len(mixes)))
    one = Utilization().mixes(z, torch.zeros(12, dtype=torch.int64))
    assert one.shape == (0, 3), "one class leaves nothing to mix"
    assert torch.equal(mixes, Utilization(mixed_per_image=50).mixes(z, labels))
    assert not torch.equal(mixes[:10], Utilization(mixed_per_image=50, seed=1).mixes(z, labels)[:10])


def test_more_mixes_come_nearer_and_one_class_adds_nothing(network):
    values = [Utilization(mixed_per_image=n)(network, data()[0]).metrics["utilization_mixed"] for n in (1, 40)]
    assert values[1] < values[0]


def test_what_is_refused(network):
    with pytest.raises(ValueError, match=r"mixed_per_image=0 is out of range; allowed: mixed_per_image >= 1 \(int\)"):
        Utilization(mixed_per_image=0)
    with pytest.raises(ValueError, match="this data has none"):
        Utilization()(network, data(train=False)[0])
