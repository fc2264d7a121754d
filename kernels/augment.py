"""Augmentation of whole batches of small images, as pure functions: the caller draws the random numbers.

Images are uint8 ``[N, 3, H, W]`` until ``to_float``. Each function does for every sample what its name says, with
the sample's own parameters; all run on any device.

Shape legend: N images of the set, B samples, P padding, T side of the output.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_UNIT = 1.0 / 255.0


def pad(images: Tensor, padding: int, mode: str = "constant") -> Tensor:
    """``[N, 3, H + 2P, W + 2P]``: black borders (``constant``) or mirrored ones (``reflect``).

    Done once for a whole set; ``crop`` then only copies. Raises ValueError where ``reflect`` has too little to mirror.
    """
    if padding == 0:
        return images.contiguous()
    if mode == "constant":
        return F.pad(images, (padding,) * 4)
    height, width = images.shape[-2:]
    if padding >= min(height, width):
        raise ValueError(
            f"reflect padding of {padding} needs images larger than that, got {height}x{width}; "
            "use a smaller crop_padding or padding_mode=constant"
        )
    return images[:, :, _mirror(height, padding, images.device)][..., _mirror(width, padding, images.device)]


def _mirror(size: int, padding: int, device: torch.device) -> Tensor:
    """Positions ``-P .. size + P - 1`` folded back into the image, the edge not repeated."""
    position = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def crop(images: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, size: tuple[int, int]) -> Tensor:
    """The window of ``size`` at (top, left) of each chosen image, ``[B, 3, T, T]`` uint8.

    Copies whole rows: ``images`` is seen as all its runs of T bytes, of which those that start a row of a window
    are taken. About ten times as fast as indexing pixels.

    Args:
        images: ``[N, 3, H, W]`` uint8, contiguous (padded beforehand).
        index_B: ``[B]`` positions in ``images``; may repeat.
        top_B: ``[B]`` first row, 0 .. H - T.
        left_B: ``[B]`` first column, 0 .. W - T.
        size: height and width of the window.
    """
    channels, image_height, image_width = images.shape[1:]
    height, width = size
    runs = images.as_strided((max(images.numel() - width + 1, 0), width), (1, 1))
    first_B = (index_B * (channels * image_height)).add_(top_B).mul_(image_width).add_(left_B)
    offset = _row_offsets(channels, image_height, image_width, height, images.device)
    picked = runs.index_select(0, (first_B[:, None] + offset).view(-1))
    return picked.view(len(index_B), channels, height, width)


@lru_cache
def _row_offsets(channels: int, image_height: int, image_width: int, height: int, device: torch.device) -> Tensor:
    """``[channels * height]`` where each row of a window starts, seen from its first."""
    channel = torch.arange(channels, device=device) * image_height
    return ((channel[:, None] + torch.arange(height, device=device)) * image_width).view(-1)


def flip(images: Tensor, flip_B: Tensor) -> Tensor:
    """Mirror left to right where ``flip_B`` is true, in place.

    Args:
        images: ``[B, 3, H, W]`` uint8, contiguous.
        flip_B: ``[B]`` bool; on the CPU also for images elsewhere, so that counting its trues does not wait for them.
    """
    chosen = flip_B.nonzero()[:, 0].to(images.device, non_blocking=True)
    _words(images)[chosen] = _words(images.index_select(0, chosen).flip(-1))
    return images


def _words(images: Tensor) -> Tensor:
    """The bytes of each image as a row, eight at a time where they come out even: assigning is much faster so."""
    rows = images.flatten(1)
    return rows.view(torch.int64) if rows.shape[1] % 8 == 0 else rows


def cutout(images: Tensor, row_B: Tensor, column_B: Tensor, size: int) -> Tensor:
    """Blacken a square of side ``size`` centred at (row, column), cut off at the border.

    Source: DeVries, Taylor (2017), "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552.
    """
    height, width = images.shape[-2:]
    row = _inside(row_B, size, height)
    column = _inside(column_B, size, width)
    return images.masked_fill((row[:, :, None] & column[:, None, :])[:, None], 0)


def _inside(center_B: Tensor, size: int, length: int) -> Tensor:
    """``[B, length]`` whether each position lies in the span of ``size`` around the centre."""
    distance = torch.arange(length, device=center_B.device) - (center_B[:, None] - size // 2)
    return (distance >= 0) & (distance < size)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1]: times ``1 / 255`` in float32.

    Within one unit in the last place of the quotient; a division would give other bits on CUDA than on the CPU.
    """
    return images.to(torch.float32).mul_(_UNIT)


def jitter(images: Tensor, brightness_B: Tensor, contrast_B: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], made brighter and then stretched around the image's own mean, clipped once.

    ``y = b x``, ``z = c (y - mean(y)) + mean(y)``; takes the place of ``to_float``. The mean is summed in float64,
    which is exact for bytes, so it does not depend on the batch the image is in.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        brightness_B: ``[B]`` factors b around 1.
        contrast_B: ``[B]`` factors c around 1.
    """
    pixels = images.to(torch.float32).view(len(images), -1)
    mean_B = (pixels.sum(1, dtype=torch.float64) * (_UNIT / pixels.shape[1])).to(torch.float32)
    shift_B = (1.0 - contrast_B) * brightness_B * mean_B
    pixels.mul_((brightness_B * contrast_B * _UNIT)[:, None]).add_(shift_B[:, None]).clamp_(0.0, 1.0)
    return pixels.view(images.shape)
