"""Conv-4 as a timm model, against the paper's blocks in plain functions."""

import timm
import torch
from torch.nn import functional as F

import lightning_modules.backbones  # noqa: F401  (registers conv4)


def test_blocks_of_the_paper():
    torch.manual_seed(0)
    model = timm.create_model("conv4", num_classes=5, channels=(4, 6)).double().train()
    image = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    x = image
    for convolution, norm, _, _ in model.blocks:
        x = F.conv2d(x, convolution.weight, padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        x = F.max_pool2d(x.clamp(min=0), 2)
    expected = F.linear(x.mean((2, 3)), model.linear.weight, model.linear.bias)
    torch.testing.assert_close(model(image), expected)
    torch.testing.assert_close(model.forward_features(image), x)


def test_the_paper_has_four_blocks_of_64_and_the_interface_is_timms():
    model = timm.create_model("conv4", num_classes=0)
    assert [block[0].out_channels for block in model.blocks] == [64] * 4
    assert sum(p.numel() for p in model.parameters()) == 3 * 64 * 9 + 3 * 64 * 64 * 9 + 4 * 128
    assert model(torch.rand(2, 3, 84, 84)).shape == (2, 64) and isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(7, "avgmax")
    assert model.head_hidden_size == 64 and model(torch.rand(2, 3, 84, 84)).shape == (2, 7)
    model.set_grad_checkpointing()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_first_kernel_takes_other_channels():
    assert timm.create_model("conv4", in_chans=1, num_classes=3)(torch.rand(2, 1, 32, 32)).shape == (2, 3)
