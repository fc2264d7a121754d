"""The plain convolutional network of few-shot learning, registered as the timm model ``conv4``.

Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning", NeurIPS 2016
(arXiv:1606.04080), section 4.1; the same network stands in Snell et al. 2017 (arXiv:1703.05175). timm has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from lightning_modules.backbones.interface import TimmModel


class ConvNet(TimmModel):
    """Blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling; then global pooling. The interface is timm's.

    Args:
        num_classes: outputs of the classifier ``linear``; 0 for none.
        in_chans: channels of the image.
        global_pool: timm's pooling type; the paper flattens, which ``avg`` replaces so that any image size fits.
        drop_rate: dropout before the classifier.
        channels: of each block; four times 64 in the paper.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        channels: Sequence[int] = (64, 64, 64, 64),
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        pairs = zip((in_chans, *channels), channels, strict=False)
        self.blocks = nn.Sequential(*(_block(before, after) for before, after in pairs))
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"} for i, width in enumerate(channels)
        ]
        self.add_classifier(channels[-1], global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter groups for layer-wise learning-rate decay, as timm asks for them."""
        return {"stem": r"^blocks\.0", "blocks": r"^blocks\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the unpooled map, H and W halved by each block."""
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    # in place: saves a copy of the largest maps, and the value before the ReLU is needed by nobody
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True), nn.MaxPool2d(2))


default_cfgs = generate_default_cfgs(
    {
        "conv4": {
            "num_classes": 1000,
            "input_size": (3, 84, 84),
            "pool_size": (5, 5),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "blocks.0.0",
            "classifier": "linear",
            "paper_ids": "arXiv:1606.04080",
        }
    }
)


@register_model
def conv4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Conv-4 with 64 channels, 0.11 million parameters."""
    return build_model_with_cfg(ConvNet, "conv4", pretrained, **kwargs)
