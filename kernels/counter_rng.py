"""Random numbers as pure functions of counters: no state, so nothing to save, share or advance.

The draw of a sample depends on ``(seed, epoch, index, view)`` and the name of its stream and nothing else: not on its
batch, the worker that asks, the device, or what was drawn before. This is what makes resume exact and augmentation
independent of the number of workers. The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", OOPSLA): a bijective mixing of a 64-bit word, here in wrapping int64 arithmetic,
which is the same on every device.

Shape legend: B samples, S streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_VIEW_SHIFT = 40  # index takes the low 40 bits of the counter word, view the 23 above, the sign stays free
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(word: int) -> int:
    """The int64 that has the bits of ``word``."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift(word: Tensor, by: int) -> Tensor:
    """Logical right shift; ``>>`` of int64 copies the sign."""
    return (word >> by).bitwise_and_((1 << (64 - by)) - 1)


def mix(word: Tensor) -> Tensor:
    """SplitMix64's mixing of int64 words (a bijection); the argument is left as it is."""
    for shift, factor in _ROUNDS:
        word = (word ^ _shift(word, shift)).mul_(_signed(factor))
    return word ^ _shift(word, 31)


def mix_int(word: int) -> int:
    """``mix`` of one Python integer; the result is in 0 .. 2**64 - 1."""
    word &= _MASK
    for shift, factor in _ROUNDS:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word ^ (word >> 31)


def fold(*numbers: int) -> int:
    """One well-mixed 64-bit key from several integers; order matters.

    Example:
        >>> fold(0, 1) != fold(1, 0)
        True
    """
    key = 0
    for number in numbers:
        key = mix_int((key ^ (number & _MASK)) + GAMMA)
    return key


@lru_cache
def _offsets(streams: tuple[str, ...]) -> Tensor:
    """``[S, 1]`` a 64-bit number for each stream, from its name."""
    return torch.tensor([[_signed(fold(*name.encode()))] for name in streams], dtype=torch.int64)


def bits(seed: int, epoch: int, index_B: Tensor, view_B: Tensor | int, streams: Sequence[str]) -> Tensor:
    """64 random bits for each sample and stream.

    Args:
        seed: the run's seed.
        epoch: 0-based epoch.
        index_B: ``[B]`` int64, 0 <= index < 2**40.
        view_B: ``[B]`` int64 or one number, 0 <= view < 2**23.
        streams: one name for each use (``crop.top``, ``flip``); different names give independent numbers.

    Returns:
        ``[S, B]`` int64 on the device of ``index_B``.
    """
    counter = (index_B + (view_B << _VIEW_SHIFT)).bitwise_xor_(_signed(fold(seed, epoch)))
    return mix(counter + _offsets(tuple(streams)).to(counter.device))


def uniform(seed: int, epoch: int, index_B: Tensor, view_B: Tensor | int, streams: Sequence[str]) -> Tensor:
    """Uniform numbers in [0, 1), ``[S, B]`` float32, each an exact multiple of 2**-24.

    Example:
        >>> uniform(0, 0, torch.arange(3), 0, ["flip"]).shape
        torch.Size([1, 3])
    """
    return _shift(bits(seed, epoch, index_B, view_B, streams), 40).to(torch.float32).mul_(2.0**-24)


def uniform_like(image: Tensor, seed: int, epoch: int, index_B: Tensor, view_B: Tensor | int, stream: str) -> Tensor:
    """Uniform numbers in (0, 1), one for each number of each sample, of the shape and dtype of ``image``.

    Args:
        image: ``[B, ...]``; only its shape, dtype and device matter.
        seed, epoch, index_B, view_B: as for ``bits``.
        stream: name of the use.

    Returns:
        Odd multiples of 2**-24: exact in float32, so never 0 nor 1, and the same numbers in float32 and float64.
    """
    key_B = bits(seed, epoch, index_B, view_B, [stream])[0].to(image.device)
    place_P = torch.arange(image[0].numel() if len(image) else 0, device=image.device)
    word_BP = mix(key_B[:, None] + place_P * _signed(GAMMA))
    return (_shift(word_BP, 41).to(image.dtype) + 0.5).mul_(2.0**-23).view(image.shape)


def permutation(seed: int, epoch: int, count: int, stream: str = "order") -> Tensor:
    """A random order of ``0 .. count - 1``, ``[count]`` int64: the positions sorted by their random bits.

    Ties cannot happen, because the mixing is a bijection; so the order is the same on every platform.
    """
    return bits(seed, epoch, torch.arange(count), 0, [stream])[0].argsort()
