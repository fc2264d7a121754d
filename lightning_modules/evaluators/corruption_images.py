"""Corrupted images: the package ``imagecorruptions``, made a pure function of the image and a key.

Hendrycks, Dietterich. "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations". ICLR 2019,
arXiv 1903.12261.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from lightning_modules.state.random_state import numpy_seeded

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
BENCHMARK = KINDS[:15]  # the others are for choosing settings
SMALLEST = 32  # pixels a side
OWN_GENERATORS = ("impulse_noise", "glass_blur")  # start from the system's entropy unless they are given a seed
INSTALL = "pip install scikit-image numba && pip install --no-deps imagecorruptions-imaug"


def corrupting() -> Callable[..., Pixels]:
    """``imagecorruptions.corrupt``.

    Raises:
        ValueError: it cannot be imported; with the commands that install it without a second OpenCV.
    """
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise ValueError(
            f"evaluator=[corruptions] needs the package imagecorruptions-imaug ({error}); install it without a second "
            f"OpenCV: {INSTALL}"
        ) from error
    found: Callable[..., Pixels] = corrupt
    return found


def package_version() -> str:
    """What draws the corruptions, for the protocol."""
    try:
        return f"imagecorruptions-imaug {version('imagecorruptions-imaug')}"
    except PackageNotFoundError:  # on the path without having been installed
        return "imagecorruptions"


def corrupted(image: Pixels, kind: str, severity: int, seed: int, index: int) -> Pixels:
    """One image with one corruption; the same for the same arguments, and global random state is left as it is.

    Args:
        image: ``[H, W, 3]``, at least 32 pixels a side.
        kind: one of ``KINDS``.
        severity: 1 to 5.
        seed: of the evaluation.
        index: of the image, ``Batch.index``.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    key = np.random.SeedSequence([seed, index, KINDS.index(kind), severity])
    own, other = (int(word) for word in key.generate_state(2))
    keys = {"seed": other} if kind in OWN_GENERATORS else {}
    with numpy_seeded(own), np.errstate(invalid="raise"):
        try:
            return corrupting()(image, severity=severity, corruption_name=kind, **keys)
        except FloatingPointError:
            if kind != "spatter":
                raise
            return image  # no drop fell on it, and the package divides by the largest
