"""The classic CIFAR ResNets (20, 32, 44, 56, 110 layers), registered as timm models ``cifar_resnet20`` and so on.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385), section 4.2.
timm has no such model. Module names follow github.com/akamaster/pytorch_resnet_cifar10, so its checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.backbones.interface import TimmModel


def shortcut_a(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Option A of the paper: every ``stride``-th row and column, missing channels filled with zeros on both sides.

    Args:
        x: ``[B, C, H, W]``.
        out_channels: channels of the result; the missing ones are zero, half of them before and half after.
        stride: 1 or 2.

    Returns:
        ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``; no parameters.
    """
    missing = out_channels - x.shape[1]
    if missing == 0 and stride == 1:
        return x
    before = missing // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a parameter-free shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut_a(x, self.out_channels, self.stride))


class CifarResNet(TimmModel):
    """Three stages of ``blocks`` basic blocks with 1, 2 and 4 times ``width`` channels; the interface is timm's.

    Args:
        blocks: residual blocks in each stage.
        num_classes: outputs of the classifier ``linear``; 0 for none.
        in_chans: channels of the image.
        global_pool: timm's pooling type, ``avg`` in the paper.
        drop_rate: dropout before the classifier, 0 in the paper.
        width: channels of the first stage, 16 in the paper.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        width: int = 16,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.feature_info = [{"num_chs": width * 2**i, "reduction": 2**i, "module": f"layer{i + 1}"} for i in range(3)]
        self.add_classifier(4 * width, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter groups for layer-wise learning-rate decay, as timm asks for them."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the unpooled map ``[B, 4 * width, H / 4, W / 4]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


# The constants of the public checkpoints: they were trained with ImageNet's mean and std, not CIFAR's.
default_cfgs = generate_default_cfgs(
    {
        f"cifar_resnet{depth}": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "linear",
            "paper_ids": "arXiv:1512.03385",
        }
        for depth in (20, 32, 44, 56, 110)
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    blocks = (int(name.removeprefix("cifar_resnet")) - 2) // 6  # layers = 6 * blocks + 2
    return build_model_with_cfg(CifarResNet, name, pretrained, blocks=blocks, **kwargs)


# One plain function each: whoever lists our models without importing torch reads these names from the source.
@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-20, 0.27 million parameters."""
    return _create("cifar_resnet20", pretrained, kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-32, 0.46 million parameters."""
    return _create("cifar_resnet32", pretrained, kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-44, 0.66 million parameters."""
    return _create("cifar_resnet44", pretrained, kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-56, 0.85 million parameters."""
    return _create("cifar_resnet56", pretrained, kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-110, 1.73 million parameters."""
    return _create("cifar_resnet110", pretrained, kwargs)
