"""Binary PPM: what Pillow reads, and files that say what they are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.reading.ppm import read_ppm

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def written(path: Path, header: bytes, body: bytes = PIXELS.tobytes()) -> Path:
    path.write_bytes(header + body)
    return path


@pytest.mark.parametrize(
    "header", [b"P6\n7 5\n255\n", b"P6 7 5 255 ", b"P6\r\n7\t5\n255\n", b"P6\n# made by hand\n7 5\n# 9 9\n255\n"]
)
def test_equal_to_pillow(tmp_path: Path, header: bytes) -> None:
    path = written(tmp_path / "a.ppm", header)
    assert np.array_equal(read_ppm(path), PIXELS)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), PIXELS)


def test_written_by_pillow(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.ppm")
    assert np.array_equal(read_ppm(tmp_path / "a.ppm"), PIXELS)


def test_a_body_that_begins_like_white_space(tmp_path: Path) -> None:
    """One white space ends the header; what follows is the image."""
    pixels = np.full((1, 2, 3), 10, np.uint8)  # line ends
    assert np.array_equal(read_ppm(written(tmp_path / "a.ppm", b"P6\n2 1\n255\n", pixels.tobytes())), pixels)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "is no binary PPM file"),
        (b"P3\n7 5\n255\n", "is no binary PPM file"),
        (b"\x89PNG\r\n", "is no binary PPM file"),
        (b"P6\n7 -5\n255\n", "is no binary PPM file"),
        (b"P6\n7 555555\n255\n", "is no binary PPM file"),
        (b"P6\n7 5\n65535\n", "says 7x5 with values up to 65535; allowed: sides in 1..4096, up to 255"),
        (b"P6\n0 5\n255\n", "says 0x5 with"),
        (b"P6\n99999 99999\n255\n", "says 99999x99999 with"),
        (b"P6\n7 4\n255\n", "has 116 bytes, and 7x4 pixels are 95; bring another copy"),
        (b"P6\n7 6\n255\n", "has 116 bytes, and 7x6 pixels are 137; bring another copy"),
    ],
)
def test_damaged_files(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ppm(written(tmp_path / "a.ppm", header))


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ppm")
    with pytest.raises(ValueError, match="a.ppm is no regular file"):
        read_ppm(tmp_path / "a.ppm")
