"""Second moment of the inputs of a linear layer or convolution: ``X^T X`` over its rows, in bounded memory.

The rows of a convolution are its unfolded windows. They are never all in memory: the images are taken in pieces, and
overlapping windows are not even unfolded along the height.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Values of the largest copy of the input at one time: 16 MB in float32.
PIECE_VALUES = 1 << 22
#: Above this many columns only the blocks on and above the diagonal are computed.
SPLIT_COLUMNS = 256


class Window(NamedTuple):
    """Geometry of a convolution, each as (height, width); ``padding`` as (left, right, top, bottom)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @property
    def span(self) -> tuple[int, int]:
        """Pixels from the first to the last of a window, both included."""
        (kernel_h, kernel_w), (dilation_h, dilation_w) = self.kernel, self.dilation
        return (kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Number of windows along height and width of an image; zero or less where it is too small."""
        left, right, top, bottom = self.padding
        (span_h, span_w), (stride_h, stride_w) = self.span, self.stride
        return (height + top + bottom - span_h) // stride_h + 1, (width + left + right - span_w) // stride_w + 1


def linear_second_moment(input: Tensor, dtype: torch.dtype) -> Tensor:
    """``X^T X [n, n]`` in ``dtype``, where the rows of X are the input ``[..., n]`` without its leading dimensions."""
    X_Rn = input.reshape(-1, input.shape[-1])
    columns = X_Rn.shape[1]
    moment_nn = torch.zeros(columns, columns, dtype=dtype, device=input.device)
    if X_Rn.dtype == dtype:
        _add_rows(moment_nn, X_Rn)
    else:  # the copy in dtype is bounded as well
        for piece in X_Rn.split(max(1, PIECE_VALUES // columns)):
            _add_rows(moment_nn, piece.to(dtype))
    return _mirrored(moment_nn)


def conv2d_second_moment(image: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    """``X^T X [n, n]`` in ``dtype``, where the rows of X are the windows of the images, zero padding included.

    Args:
        image: ``[B, C, H, W]`` or ``[C, H, W]``, of any memory format.
        window: of the convolution.
        dtype: that sums are computed in.

    Returns:
        ``[n, n]`` with ``n = C * kernel_h * kernel_w``, in the order of ``weight.reshape(O, n)``.
    """
    image_BCHW = image if image.ndim == 4 else image[None]
    columns = image_BCHW.shape[1] * window.kernel[0] * window.kernel[1]
    moment_nn = torch.zeros(columns, columns, dtype=dtype, device=image.device)
    overlapping = window.stride[0] < window.kernel[0] and window.dilation[0] == 1
    for piece in _pieces(image_BCHW, window, dtype, overlapping):
        if overlapping:
            _add_overlapping(moment_nn, piece, window)
        else:
            _add_rows(moment_nn, _windows(piece, window).permute(0, 2, 3, 1, 4, 5).reshape(-1, columns))
    return moment_nn if overlapping else _mirrored(moment_nn)


def _pieces(image_BCHW: Tensor, window: Window, dtype: torch.dtype, overlapping: bool) -> Iterator[Tensor]:
    """Padded images, or bands of one padded image, whose windows take at most ``PIECE_VALUES`` values."""
    batch, channels, height, width = image_BCHW.shape
    rows, columns = window.positions(height, width)
    copied = window.stride[0] if overlapping else window.kernel[0]  # lines that one row of windows adds to the copy
    row_values = channels * copied * window.kernel[1] * columns
    images = max(1, PIECE_VALUES // (rows * row_values))
    band = max(1, PIECE_VALUES // row_values) if rows * row_values > PIECE_VALUES else rows
    for piece in image_BCHW.split(images):
        piece = piece.to(dtype)
        padded = pad(piece, window.padding) if any(window.padding) else piece
        for row in range(0, rows, band):
            first, last = row * window.stride[0], (min(row + band, rows) - 1) * window.stride[0] + window.span[0]
            yield padded[:, :, first:last]


def _windows(image_BCHW: Tensor, window: Window) -> Tensor:
    """View ``[B, C, rows, columns, kernel_h, kernel_w]`` of padded images."""
    (span_h, span_w), (stride_h, stride_w) = window.span, window.stride
    view = image_BCHW.unfold(2, span_h, stride_h).unfold(3, span_w, stride_w)
    return view[..., :: window.dilation[0], :: window.dilation[1]]


def _add_rows(moment_nn: Tensor, X_Rn: Tensor) -> None:
    """Add ``X^T X``; of many columns only the blocks on and above the diagonal (see ``_mirrored``)."""
    for start, stop in _blocks(len(moment_nn)):
        moment_nn[start:stop, start:].addmm_(X_Rn[:, start:stop].T, X_Rn[:, start:])


def _mirrored(moment_nn: Tensor) -> Tensor:
    """Fill the blocks below the diagonal."""
    for start, stop in _blocks(len(moment_nn)):
        moment_nn[stop:, start:stop] = moment_nn[start:stop, stop:].T
    return moment_nn


def _blocks(columns: int) -> list[tuple[int, int]]:
    """Four ranges, which save 3/8 of the products; one where they would be too narrow to be fast."""
    size = columns if columns < SPLIT_COLUMNS else -(-columns // 4)
    return [(start, min(start + size, columns)) for start in range(0, columns, size)]


def _add_overlapping(moment_nn: Tensor, image_BCHW: Tensor, window: Window) -> None:
    """Add ``X^T X`` of windows that share lines of the image, each product of two lines computed once.

    The windows are unfolded along the width alone: ``lines_HqK``, with q = (C, kernel_w) and K = (B, columns). The
    block of the kernel rows (i, i + a) is the sum of ``lines[h] lines[h + a]^T`` over the lines h = i, i + stride, ...,
    so the products of each line with the ``kernel_h`` lines that begin with it hold every block.
    """
    kernel_h, kernel_w = window.kernel
    batch, channels, height, _ = image_BCHW.shape
    columns = window.positions(0, image_BCHW.shape[3] - window.padding[0] - window.padding[1])[1]
    q = channels * kernel_w
    lines_HqK = image_BCHW.new_empty(height + kernel_h - 1, q, batch * columns)
    lines_HqK[height:] = 0.0  # below the image, so that the last lines have followers too
    view = image_BCHW.unfold(3, window.span[1], window.stride[1])[..., :: window.dilation[1]]
    lines_HqK[:height].view(height, channels, kernel_w, batch, columns).copy_(view.permute(2, 1, 4, 0, 3))
    following_HpK = lines_HqK.unfold(0, kernel_h, 1).permute(0, 3, 1, 2).flatten(1, 2)  # a view, p = (a, q)
    products_Hqp = torch.bmm(lines_HqK[:height], following_HpK.transpose(1, 2))
    sums_qpi = products_Hqp.unfold(0, kernel_h, window.stride[0]).sum(0)
    sums = sums_qpi.view(channels, kernel_w, kernel_h, channels, kernel_w, kernel_h)
    moment = moment_nn.view(channels, kernel_h, kernel_w, channels, kernel_h, kernel_w)
    for i in range(kernel_h):
        for a in range(kernel_h - i):
            block = sums[:, :, a, :, :, i]
            moment[:, i, :, :, i + a] += block
            if a:
                moment[:, i + a, :, :, i] += block.permute(2, 3, 0, 1)
