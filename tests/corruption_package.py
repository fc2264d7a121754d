"""A stand-in for the package imagecorruptions, for tests where it is not installed."""

import sys
from types import ModuleType

import numpy as np

from lightning_modules.evaluators.corruption_images import OWN_GENERATORS


def corrupt(image, severity=1, corruption_name=None, seed=None):
    """As the package behaves: noise from NumPy's global generator, or from the seed of kinds with their own."""
    assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and min(image.shape[:2]) >= 32
    assert image.shape[2] == 3 and severity in (1, 2, 3, 4, 5)
    if corruption_name == "brightness":
        return np.uint8(np.clip(image.astype(int) + 25 * severity, 0, 255))
    if corruption_name in OWN_GENERATORS:
        noise = np.random.default_rng(seed).normal(size=image.shape)
    else:
        noise = np.random.normal(size=image.shape)
    if corruption_name == "spatter" and noise[0, 0, 0] > 0:
        np.divide(np.zeros(1), np.zeros(1))  # no drop
    return np.uint8(np.clip(image + 20 * severity * noise, 0, 255))


def install(monkeypatch):
    module = ModuleType("imagecorruptions")
    module.corrupt = corrupt
    monkeypatch.setitem(sys.modules, "imagecorruptions", module)
