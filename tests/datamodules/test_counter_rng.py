"""Counter-based random numbers: known answers, range, and that neighbouring counters are unrelated."""

from __future__ import annotations

import pytest
import torch

from kernels.counter_rng import GAMMA, bits, fold, mix, mix_int, permutation, uniform

# The first outputs of SplitMix64 started at 1234567, from the public reference implementation.
KNOWN = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


def test_splitmix64_known_answers() -> None:
    counters = [(1234567 + k * GAMMA) % 2**64 for k in range(1, 6)]
    assert [mix_int(counter) for counter in counters] == KNOWN
    signed = torch.tensor([c - 2**64 if c >= 2**63 else c for c in counters])
    before = signed.clone()
    assert unsigned(mix(signed)) == KNOWN
    assert torch.equal(signed, before)


def test_bits_equal_python_integers() -> None:
    index, view, names = [0, 5, 2**40 - 1], [0, 3, 1], ["flip", "crop.top"]
    got = bits(7, 2, torch.tensor(index), torch.tensor(view), names)
    key = fold(7, 2)
    for s, name in enumerate(names):
        expected = [mix_int(((i + v * 2**40) ^ key) + fold(*name.encode())) for i, v in zip(index, view, strict=True)]
        assert unsigned(got[s]) == expected


def test_a_draw_does_not_depend_on_its_batch() -> None:
    index = torch.arange(100)
    whole = uniform(0, 1, index, 0, ["a", "b"])
    shuffled = torch.randperm(100)
    assert torch.equal(uniform(0, 1, shuffled, 0, ["a", "b"]), whole[:, shuffled])
    assert torch.equal(uniform(0, 1, index[41:42], 0, ["b"])[0], whole[1, 41:42])


def test_uniform_is_uniform() -> None:
    draws = uniform(3, 0, torch.arange(200_000), 0, ["x"])[0]
    assert draws.dtype == torch.float32 and draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 100, 0, 1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, standard deviation 14


@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view", "stream"])
def test_neighbours_are_unrelated(change: str) -> None:
    index = torch.arange(100_000)
    base = uniform(0, 0, index, 0, ["x"])[0]
    other = {
        "seed": lambda: uniform(1, 0, index, 0, ["x"]),
        "epoch": lambda: uniform(0, 1, index, 0, ["x"]),
        "index": lambda: uniform(0, 0, index + 1, 0, ["x"]),
        "view": lambda: uniform(0, 0, index, 1, ["x"]),
        "stream": lambda: uniform(0, 0, index, 0, ["y"]),
    }[change]()[0]
    correlation = torch.corrcoef(torch.stack([base, other]))[0, 1]
    assert abs(correlation) < 4 / 100_000**0.5


def test_one_bit_of_the_index_changes_half_of_the_bits() -> None:
    index = torch.arange(5_000)
    for bit in (0, 7, 31):
        changed = bits(0, 0, index, 0, ["x"]) ^ bits(0, 0, index ^ (1 << bit), 0, ["x"])
        share = sum(bin(word).count("1") for word in unsigned(changed[0])) / (64 * 5_000)
        assert abs(share - 0.5) < 0.005


def test_permutation() -> None:
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(0, 0, 1000))
    assert abs(torch.corrcoef(torch.stack([first, second]).double())[0, 1]) < 0.12
    assert permutation(0, 0, 8).tolist() == [6, 0, 4, 5, 3, 7, 2, 1]  # stored: a change would shuffle old runs anew
