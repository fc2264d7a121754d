"""What becomes of odd and damaged image files."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from datamodules.decode import read_rgb, resize_and_crop


def pixels(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.array(image)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def huge_png(width: int, height: int) -> bytes:
    """A small file whose header promises many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(3 * width + 1)) for _ in range(200)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path, values = tmp_path / f"x.{suffix}", noise(6, 9, 3)
    Image.fromarray(values).save(path, **({"lossless": True} if suffix == "webp" else {}))
    got = pixels(path)
    assert got.shape == (6, 9, 3)
    if suffix != "jpg":
        assert np.array_equal(got, values)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    grey = noise(5, 7)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(pixels(tmp_path / "grey.png"), np.stack([grey] * 3, 2))
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    assert np.array_equal(pixels(tmp_path / "bit.png")[..., 0], np.where(grey > 127, 255, 0))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png")[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    values = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "alpha.png")
    assert pixels(tmp_path / "alpha.png")[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]


def test_palette_with_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "transparent.png", transparency=1)
    assert pixels(tmp_path / "plain.png")[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert pixels(tmp_path / "transparent.png")[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red = pixels(tmp_path / "cmyk.jpg")[4, 4].astype(int)
    assert red[0] > 250 and red[1] < 5 and red[2] < 5


def test_exif_rotation(tmp_path: Path) -> None:
    values = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png"), np.rot90(values, -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(tmp_path / "moving.webp")[0, 0].tolist() == [255, 0, 0]


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    small = resize_and_crop(read_rgb(tmp_path / "dot.png"), 10, 8, "bicubic")
    assert small.shape == (8, 8, 3) and (small == [1, 2, 3]).all()


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(side, side))
    assert (tmp_path / "bomb.png").stat().st_size < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="data.max_pixels"):
        read_rgb(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; decoded it would be 300,000


def test_limit_can_be_set(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="10x10 are more than data.max_pixels=99 pixels"):
        read_rgb(tmp_path / "x.png", max_pixels=99)


def test_truncated_empty_and_foreign_files(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "JPEG")
    gif = io.BytesIO()
    Image.new("P", (4, 4)).save(gif, "GIF")
    jpeg = whole.getvalue()
    contents = {
        "header": jpeg[:300],
        "half": jpeg[: len(jpeg) // 2],
        "end": jpeg[:-40],
        "empty": b"",
        "text": b"no image",
        "gif": gif.getvalue(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        with pytest.raises(OSError, match="(?i)truncated|cannot identify"):
            read_rgb(tmp_path / f"{name}.jpg")


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(348, 464), (464, 348), (31, 57), (64, 64), (100, 101)])
def test_resize_and_crop_equals_torchvision(shape: tuple[int, int], kind: str) -> None:
    image = Image.fromarray(noise(*shape, 3))
    theirs = v2.CenterCrop(56)(v2.Resize(64, interpolation=InterpolationMode(kind))(image))
    ours = resize_and_crop(image, 64, 56, kind)  # type: ignore[arg-type]
    difference = np.abs(ours.astype(int) - np.array(theirs).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_extremely_long_image_needs_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resize_and_crop(Image.new("RGB", (2_000_000, 1)), 256, 224, "bicubic").shape == (224, 224, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; resized whole: 400 GB
