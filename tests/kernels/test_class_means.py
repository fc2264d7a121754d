"""Class means in a stream: equal to those of one shot for any split, counts, merging, classes without a sample."""

import pytest
import torch

from kernels.class_means import ClassMeans


def draw(rows=50, width=6, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = 3 + torch.randn(rows, width, generator=generator, dtype=dtype)
    return features, torch.randint(classes - 1, (rows,), generator=generator)  # the last class never occurs


def one_shot(features, labels, classes=5):
    rows = [features.double()[labels == c] for c in range(classes)]
    return torch.stack([row.mean(0) if len(row) else torch.zeros(6, dtype=torch.float64) for row in rows])


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [7, 0, 20, 23], [49, 1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_split_gives_the_means_of_one_shot(sizes, dtype):
    features, labels = draw(dtype=dtype)
    stream = ClassMeans.empty(5, 6)
    ranks = [ClassMeans.empty(5, 6) for _ in range(3)]
    for i, (x, y) in enumerate(zip(features.split(sizes), labels.split(sizes), strict=True)):
        assert stream.add(x, y) is stream
        ranks[i % 3].add(x, y)
    merged = ranks[0].merge(ranks[1]).merge(ranks[2])
    for seen in (stream, merged):
        torch.testing.assert_close(seen.means(), one_shot(features, labels), rtol=0, atol=1e-12)
        assert seen.counts.tolist() == torch.bincount(labels, minlength=5).tolist()
    assert not stream.means()[4].any() and stream.counts[4] == 0


def test_the_order_of_samples_changes_rounding_alone():
    features, labels = draw()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    first, second = ClassMeans.empty(5, 6).add(features, labels), ClassMeans.empty(5, 6)
    second.add(features[order], labels[order])
    torch.testing.assert_close(first.means(), second.means(), rtol=0, atol=1e-13)


def test_a_large_offset_does_not_cost_digits():
    """As a running float32 mean it would: 1e5 samples of 1000 +- 1e-3."""
    features = (1000 + 1e-3 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(2))).float()
    seen = ClassMeans.empty(1, 1)
    for rows in features.split(1000):
        seen.add(rows, torch.zeros(len(rows), dtype=torch.int64))
    assert seen.means().item() == pytest.approx(features.double().mean().item(), abs=1e-11)


def test_no_graph_is_kept():
    features, labels = draw()
    seen = ClassMeans.empty(5, 6).add(features.requires_grad_(), labels.int())
    assert not seen.sums.requires_grad and not seen.means().requires_grad


def test_refusals():
    seen = ClassMeans.empty(5, 6)
    for features in (torch.zeros(3, 5), torch.zeros(6)):
        with pytest.raises(ValueError, match=r"for means of 6 features; give \[B, 6\]"):
            seen.add(features, torch.zeros(3, dtype=torch.int64))
    for labels in (torch.zeros(3), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            seen.add(torch.zeros(3, 6), labels)
    with pytest.raises(ValueError, match=r"shape \[4, 6\] cannot be merged into \[5, 6\]; both must be of the same"):
        seen.merge(ClassMeans.empty(4, 6))
    with pytest.raises(ValueError, match="means of 0 classes and 6 features; both numbers must be at least 1"):
        ClassMeans.empty(0, 6)


def test_nothing_waits_for_the_device():
    """Tensors without data refuse whatever would read them."""
    seen = ClassMeans.empty(5, 6, "meta").add(torch.zeros(3, 6, device="meta"), torch.zeros(3, device="meta").long())
    assert seen.merge(ClassMeans.empty(5, 6, "meta")).means().shape == (5, 6)
