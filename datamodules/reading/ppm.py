"""Binary PPM, the format of GTSRB: a header of four words and the bytes of the pixels."""

from __future__ import annotations

import os
import re
import stat

import numpy as np

MAX_SIDE = 4096
#: ``P6``, width, height and the largest value, apart by white space or comments; one white space ends the header.
_HEADER = re.compile(rb"P6" + 3 * rb"(?:\s|#[^\n]*\n)+([0-9]{1,5})" + rb"\s")
_HEADER_BYTES = 1024  # comments included


def read_ppm(path: str | os.PathLike[str]) -> np.ndarray:
    """The pixels of a file, ``[H, W, 3]`` uint8.

    Raises:
        ValueError: no regular file, another format, more than 8 bits, a side beyond 4096, or a file that is longer or
            shorter than its header says.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for someone to write to it
        raise ValueError(f"{path} is no regular file but a folder, FIFO, socket or device")
    with open(path, "rb") as file:
        header = _HEADER.match(file.read(_HEADER_BYTES))
        if header is None:
            raise ValueError(f"{path} is no binary PPM file (P6, width, height, 255); bring another copy")
        width, height, largest = map(int, header.groups())
        if largest != 255 or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise ValueError(
                f"{path} says {width}x{height} with values up to {largest}; allowed: sides in 1..{MAX_SIDE}, up to 255"
            )
        expected = header.end() + 3 * width * height
        if found.st_size != expected:
            raise ValueError(
                f"{path} has {found.st_size} bytes, and {width}x{height} pixels are {expected}; bring another copy"
            )
        file.seek(header.end())
        return np.fromfile(file, np.uint8, 3 * width * height).reshape(height, width, 3)
