"""What becomes of odd and damaged image files."""

from __future__ import annotations

import ctypes
import io
import math
import multiprocessing
import os
import resource
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode, v2

from datamodules.reading.decode import MAX_PIXELS, _to_rgb, read_rgb, resize_and_crop


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


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "tif", "gif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path, values = tmp_path / f"x.{suffix}", noise(6, 9, 3)
    values = np.repeat(values[..., :1], 3, 2) if suffix == "gif" else values  # 256 colours suffice for grey
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


def tiff(grey: np.ndarray, kind: int) -> bytes:
    """A TIFF with any type of grey (SampleFormat ``kind``: 1 unsigned, 2 signed, 3 float), written by hand."""
    data, bits = grey.tobytes(), 8 * grey.itemsize
    tags = [(256, 3, grey.shape[1]), (257, 3, grey.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, grey.shape[0]), (279, 4, len(data)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, size, 1, value) for tag, size, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


DEEP = {"uint16": 1, "int16": 2, "int32": 2, "uint32": 1}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_has_one_scale_and_is_never_black_in_silence(tmp_path: Path, kind: str) -> None:
    top = 32767 if kind == "int16" else 65535
    (tmp_path / "x.tif").write_bytes(tiff(np.array([[0, 200, 514, top]], dtype=kind), DEEP[kind]))
    assert pixels(tmp_path / "x.tif")[0, :, 2].tolist() == [0, 1, 2, round(top / 257)]
    (tmp_path / "x.tif").write_bytes(tiff(np.zeros((1, 4), dtype=kind), DEEP[kind]))
    assert not pixels(tmp_path / "x.tif").any(), "what is black stays black"
    (tmp_path / "x.tif").write_bytes(tiff(np.array([[0, 128, 254, 255]], dtype=kind), DEEP[kind]))
    with pytest.raises(ValueError, match="more than 8 bits, and no value above 255: .* black; save it as 8-bit, or"):
        read_rgb(tmp_path / "x.tif")
    if "32" in kind:
        (tmp_path / "x.tif").write_bytes(tiff(np.array([[0, 70_000]], dtype=kind), DEEP[kind]))
        with pytest.raises(ValueError, match="integer grey values 0..70000 are not 16-bit"):
            read_rgb(tmp_path / "x.tif")


def test_float_grey_is_refused_whatever_its_values(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(np.array([[0, 128, 255]], dtype=np.float32), 3))
    with pytest.raises(ValueError, match=r"mode F \(float\) has no range that maps to 0..255; save it as 8-bit RGB"):
        read_rgb(tmp_path / "x.tif")


ORANGE = (230, 120, 20)


@pytest.mark.parametrize(
    ("mode", "value", "kind", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 77, "tif", (77, 77, 77)),
        ("LA", (100, 51), "png", (224, 224, 224)),  # a fifth of 100 and four fifths of white
        ("LA", (100, 51), "tif", (224, 224, 224)),
        ("PA", (0, 51), "tif", (250, 228, 208)),
        ("RGBA", (*ORANGE, 51), "tif", (250, 228, 208)),
        ("RGBA", (*ORANGE, 51), "png", (250, 228, 208)),
        ("CMYK", (25, 135, 235, 0), "tif", ORANGE),
        ("CMYK", (25, 135, 235, 0), "jpg", ORANGE),
        ("YCbCr", (141, 60, 191), "tif", ORANGE),
        ("YCbCr", (141, 60, 191), "jpg", ORANGE),
        ("LAB", (136, 208, 195), "tif", (252, 3, 12)),  # L* 53, a* 80, b* 67: the red of sRGB
        ("LAB", (128, 128, 128), "tif", (119, 119, 119)),  # L* 50: middle grey
    ],
)
def test_every_mode_of_a_file_keeps_its_colour(
    tmp_path: Path, mode: str, value: object, kind: str, expected: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (16, 16), value)  # type: ignore[arg-type]
    if mode == "PA":
        image.putpalette([*ORANGE, 0, 0, 0])
    image.save(tmp_path / f"x.{kind}", **({"quality": 100} if kind == "jpg" else {}))
    assert np.abs(pixels(tmp_path / f"x.{kind}")[8, 8].astype(int) - expected).max() <= 3


def test_hue_saturation_value(tmp_path: Path) -> None:
    """No file format has it; what a decoder could give is converted all the same."""
    assert _to_rgb(Image.new("HSV", (2, 2), (20, 233, 230)), deep=False).getpixel((0, 0)) == (230, 119, 20)


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


def test_first_frame_of_a_gif_and_a_single_page_of_a_tiff(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="TIFF of several pages; save the page that is meant"):
        read_rgb(tmp_path / "pages.tif")


def test_16_bit_colour_and_float(tmp_path: Path) -> None:
    """Pillow keeps the upper byte of 16-bit colour; a float TIFF has no range."""
    rows = b"".join(b"\0" + struct.pack(">3H", 0, 0x1234, 0xFFFF) for _ in range(2))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert pixels(tmp_path / "deep.png")[1, 0].tolist() == [0, 0x12, 0xFF]
    low = chunk(b"IDAT", zlib.compress(bytes([0, 0, 200, 0, 100, 0, 255]) * 2))
    (tmp_path / "low.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + low + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match="16-bit colour, and no value above 255: .* it would be black"):
        read_rgb(tmp_path / "low.png")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"mode F \(float\) has no range"):
        read_rgb(tmp_path / "float.tif")


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    small = resize_and_crop(read_rgb(tmp_path / "dot.png"), 10, 8, "bicubic")
    assert small.shape == (8, 8, 3) and (small == [1, 2, 3]).all()


def peak_growth(path: Path, max_pixels: int) -> tuple[str, float]:
    """What reading a file says and by how many MB the peak memory of a process grows meanwhile."""
    pipe, other = multiprocessing.Pipe()
    with suppress(AttributeError):  # memory that other tests freed and the process kept would hide what is allocated
        ctypes.CDLL(None).malloc_trim(0)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            said = str(read_rgb(path, max_pixels).size)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        other.send((said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    answer = pipe.recv() if pipe.poll(20) else ("no answer", math.inf)
    process.kill()
    process.join()
    return answer


def huge_webp(width: int, height: int) -> bytes:
    """An extended WebP header with a canvas of any size."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little") + b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def patched_tiff(changes: dict[int, tuple[int, int | None]]) -> bytes:
    """A small TIFF some tags of which are renamed and given another number: ``{tag: (new tag, value)}``."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "TIFF")
    data = bytearray(content.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        tag, value = changes.pop(struct.unpack_from("<H", data, entry)[0], (None, None))
        if tag is not None:
            struct.pack_into("<H", data, entry, tag)
        if value is not None:
            struct.pack_into("<HII", data, entry + 2, 4, 1, value)
    assert not changes
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    """A GIF whose frame promises more than its screen."""
    screen = struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


BOMBS: dict[str, Callable[[], bytes]] = {
    "100 Mpx png": lambda: huge_png(10_000, 10_000),
    "400 Mpx png": lambda: huge_png(20_000, 20_000),
    "webp": lambda: huge_webp(16_000, 16_000),
    "webp of 140 Mpx": lambda: huge_webp(14_000, 10_000),
    "tiff": lambda: patched_tiff({256: (256, 12_000), 257: (257, 12_000)}),
    "tiff tile": lambda: patched_tiff({278: (322, 100_000), 284: (323, 100_000), 273: (324, None), 279: (325, None)}),
    "gif": lambda: gif(60_000, 60_000),
    "bmp": lambda: b"BM" + struct.pack("<IIIIiiHH", 70, 0, 54, 40, 30_000, 30_000, 1, 24) + bytes(40),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", BOMBS)
def test_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bomb").write_bytes(BOMBS[kind]())
    assert (tmp_path / "bomb").stat().st_size < 20_000
    said, growth = peak_growth(tmp_path / "bomb", MAX_PIXELS)
    assert "ValueError" in said and "data.max_pixels" in said and growth < 20, (said, growth)


@pytest.mark.fault
def test_the_measure_of_memory_sees_a_decoded_image(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 4000)).save(tmp_path / "large.png")
    said, growth = peak_growth(tmp_path / "large.png", 12_000_000)
    assert said == "(3000, 4000)" and growth > 30


def test_limit_can_be_set(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="10x10 are more than data.max_pixels=99 pixels"):
        read_rgb(tmp_path / "x.png", max_pixels=99)


@pytest.mark.fault
def test_truncated_empty_and_foreign_files(tmp_path: Path) -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "JPEG")
    foreign = {kind: io.BytesIO() for kind in ("EPS", "PPM", "ICO")}
    for kind, file in foreign.items():
        Image.new("RGB", (4, 4)).save(file, kind)
    jpeg = whole.getvalue()
    contents = {
        "header": jpeg[:300],
        "half": jpeg[: len(jpeg) // 2],
        "end": jpeg[:-40],
        "empty": b"",
        "text": b"no image",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
        **{kind: file.getvalue() for kind, file in foreign.items()},
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
