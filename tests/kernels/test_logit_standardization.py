"""Standardized logits: z-scores, their invariance, rows that are flat."""

import torch

from kernels.logit_standardization import standardize_logits


def draw(rows, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v, torch.randint(classes, (rows,), generator=generator)


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def test_standardized_logits():
    z, _, _ = draw(4, 6, 12)
    found = standardize_logits(z)
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(found.mean(1), zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(1), zero + 1, rtol=0, atol=1e-6)
    expected = (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(standardize_logits(30 * z + 5), found, rtol=0, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        flat = torch.full((2, 1000), 0.1, dtype=dtype, requires_grad=True)
        scores = standardize_logits(flat)
        assert not scores.any() and not gradient(scores * torch.randn(2, 1000), flat).any()
    assert standardize_logits(torch.ones(2, 1)).tolist() == [[0.0], [0.0]]
