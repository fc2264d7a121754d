"""Second moments of unfolded rows against the definition, for many geometries and any size of a piece."""

import itertools

import pytest
import torch
from torch.nn.functional import pad, unfold

from kernels import second_moment
from kernels.second_moment import Window, conv2d_second_moment, linear_second_moment

KERNELS, STRIDES, PADS, DILATIONS = [(3, 3), (1, 1), (2, 4), (3, 1)], [(1, 1), (2, 1), (1, 3)], [0, 1], [(1, 1), (2, 1)]


def unfolded(image, window):
    padded = pad(image, window.padding)
    return unfold(padded, window.kernel, window.dilation, 0, window.stride).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("piece_values", [1 << 22, 1000, 1], ids=["whole", "some images", "one line of windows"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_windows_equal_unfolded_rows(monkeypatch, piece_values, memory_format):
    monkeypatch.setattr(second_moment, "PIECE_VALUES", piece_values)
    torch.manual_seed(0)
    image = torch.randn(3, 2, 9, 8, dtype=torch.float64).contiguous(memory_format=memory_format)
    for kernel, stride, size, dilation in itertools.product(KERNELS, STRIDES, PADS, DILATIONS):
        window = Window(kernel, stride, (size, 0, size, size), dilation)
        X_Rn = unfolded(image, window)
        rows, columns = window.positions(9, 8)
        assert len(X_Rn) == 3 * rows * columns
        moment = conv2d_second_moment(image, window, torch.float64)
        torch.testing.assert_close(moment, X_Rn.T @ X_Rn, rtol=0, atol=1e-12, msg=lambda m, w=window: f"{w}: {m}")


def test_pieces_bound_the_copy(monkeypatch):
    monkeypatch.setattr(second_moment, "PIECE_VALUES", 3000)
    for stride, overlapping in ((1, True), (3, False)):
        window = Window((3, 3), (stride, stride), (1, 1, 1, 1), (1, 1))
        for shape in ((16, 3, 8, 8), (2, 3, 64, 20)):
            pieces = list(second_moment._pieces(torch.zeros(shape), window, torch.float32, overlapping))
            assert len(pieces) > 1
            for batch, channels, height, width in (piece.shape for piece in pieces):
                rows, columns = (height - 3) // stride + 1, (width - 3) // stride + 1
                assert batch * channels * 3 * columns * (rows if overlapping else 3 * rows) <= 3000


def test_wide_rows_are_split_into_blocks():
    torch.manual_seed(0)
    X_Rn = torch.randn(7, 301, dtype=torch.float64)
    moment = linear_second_moment(X_Rn, torch.float64)
    torch.testing.assert_close(moment, X_Rn.T @ X_Rn, rtol=0, atol=1e-12)
    assert torch.equal(moment, moment.T)


def test_half_precision_rows_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(second_moment, "PIECE_VALUES", 64)
    X_Rn = torch.full((5000, 8), 1.5, dtype=torch.bfloat16)
    moment = linear_second_moment(X_Rn.view(10, 500, 8), torch.float32)
    assert moment.dtype == torch.float32 and torch.equal(moment, torch.full((8, 8), 5000 * 2.25))


def test_no_rows():
    assert not linear_second_moment(torch.zeros(0, 3), torch.float32).any()
    window = Window((3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    assert not conv2d_second_moment(torch.zeros(0, 2, 5, 5), window, torch.float32).any()
