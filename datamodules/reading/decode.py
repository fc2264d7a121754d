"""Image files to RGB bytes: what is accepted, what is refused before it is decoded, how odd modes become RGB."""

from __future__ import annotations

import os
import stat
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # Pillow's own warning limit, 256 MiB of RGB
BLACK = "divided by 257, as 16 bits are, it would be black; save it as 8-bit, or with values up to 65535"
Interpolation = Literal["bilinear", "bicubic"]


def read_rgb(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file, upright, as 8-bit RGB.

    The first frame of an animation; turned as its EXIF orientation says. Grey and 1-bit: the value in all three
    channels. Grey of 16 or 32 bits: divided by 257. 16-bit colour: the upper byte. Alpha or a transparent palette
    colour: laid over white. CMYK and other colour spaces: Pillow's conversion (colour profiles are not applied).

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF or single-page TIFF file, recognized by its content.
        max_pixels: refuse larger images, by the size in their header, before anything is allocated.

    Raises:
        ValueError: no regular file, too large, several pages, float (which has no range to map to bytes), or deeper
            than 8 bits with values of 8 bits, of which only black would be left.
        OSError: another format, truncated, unreadable (and whatever else Pillow's decoders raise for damage).
    """
    from PIL import Image, ImageOps

    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for someone to write to it
        raise ValueError("it is no regular file but a folder, FIFO, socket or device")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
        _check_pixels(*_webp_canvas(file.read(30)), max_pixels)
        file.seek(0)
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; data.max_pixels is {max_pixels}") from error
        with image:
            _check_pixels(*image.size, max_pixels)
            if image.format == "TIFF":
                _check_tiff(image, max_pixels)
            deep = any(";16" in str(tile.args) for tile in image.tile)
            return _to_rgb(ImageOps.exif_transpose(image), deep)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} are more than data.max_pixels={max_pixels} pixels")


def _webp_canvas(header: bytes) -> tuple[int, int]:
    """Width and height that the first 30 bytes of a WebP file state; (0, 0) for any other file.

    Pillow makes WebP's decoder, with its canvas, when it opens the file, which is before it tells the size.
    """
    if len(header) < 30 or header[:4] != b"RIFF" or header[8:12] != b"WEBP":
        return 0, 0
    kind = header[12:16]
    if kind == b"VP8X":  # extended: two 24-bit numbers, less one
        return int.from_bytes(header[24:27], "little") + 1, int.from_bytes(header[27:30], "little") + 1
    if kind == b"VP8L":  # lossless: two 14-bit numbers, less one
        word = int.from_bytes(header[21:25], "little")
        return (word & 0x3FFF) + 1, (word >> 14 & 0x3FFF) + 1
    return int.from_bytes(header[26:28], "little") & 0x3FFF, int.from_bytes(header[28:30], "little") & 0x3FFF


def _check_tiff(image: Any, max_pixels: int) -> None:
    """Refuse what the size of a TIFF does not tell: further pages, and tiles larger than the image."""
    if image.is_animated:
        raise ValueError("it is a TIFF of several pages; save the page that is meant as a file of its own")
    width, length = (image.tag_v2.get(tag, 0) for tag in (322, 323))  # TileWidth, TileLength
    _check_pixels(width, length, max_pixels)


def _to_rgb(image: Image.Image, deep: bool) -> Image.Image:
    """Args: ``deep``: the file has 16 bits a channel, of which Pillow keeps the upper eight where there are colours."""
    from PIL import Image

    if image.mode.startswith("I"):  # integer grey of 16 or 32 bits, under several names
        return Image.fromarray(_bytes_of_16_bit(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ValueError("mode F (float) has no range that maps to 0..255; save it as 8-bit RGB")
    if deep and not any(high for _, high in _extrema(image.convert("RGB"))):
        raise ValueError(f"16-bit colour, and no value above 255: {BLACK}")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def _extrema(image: Image.Image) -> list[tuple[Any, Any]]:
    """The least and the greatest value of each channel of an image of several."""
    return list(image.getextrema())  # type: ignore[arg-type]


def _bytes_of_16_bit(grey: np.ndarray) -> np.ndarray:
    """Grey in 0 .. 65535 to uint8. One rule for all files of a set: a range taken from each would differ by image."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer grey values {values.min()}..{values.max()} are not 16-bit")
    if 0 < values.max() < 256:
        raise ValueError(f"grey of more than 8 bits, and no value above {values.max()}: {BLACK}")
    return np.round(values / 257.0).astype(np.uint8)


def resize_and_crop(image: Image.Image, resize_size: int, crop_size: int, interpolation: Interpolation) -> np.ndarray:
    """Shorter side to ``resize_size``, then the central square of ``crop_size``: ``[H, W, 3]`` uint8.

    Pillow's antialiased filters, sizes rounded as torchvision does, so pretrained networks see what they were tested
    on. Only the pixels that are kept are computed, which also bounds the memory of extremely long images.
    """
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    resized = (resize_size * width // shorter, resize_size * height // shorter)
    left, top = (round((side - crop_size) / 2) for side in resized)
    across, down = width / resized[0], height / resized[1]
    box = (left * across, top * down, (left + crop_size) * across, (top + crop_size) * down)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    # Rounding may push the box out by an ulp, which Pillow refuses.
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
    return np.array(image.resize((crop_size, crop_size), kind, box=box))
