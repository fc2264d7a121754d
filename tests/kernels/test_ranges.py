"""Ranges: how they are written, what they hold, and what a call refuses."""

import math
import subprocess
import sys
from fractions import Fraction
from typing import Annotated

import numpy as np
import pytest

from kernels.ranges import Range, RangeChecked, range_checked


@pytest.mark.parametrize(
    ("text", "held", "refused"),
    [
        ("0 <= x < 1", [0, 0.0, 0.999], [-1e-9, 1, 1.0]),
        ("0 < x <= 1", [1e-9, 1], [0, 1 + 1e-9]),
        ("-1 <= x <= 0.5", [-1, 0, 0.5], [-1.1, 0.51]),
        ("1e-6 < x < 2.5e3", [0.1, 2499], [1e-6, 2500]),
        ("x >= 1", [1, 1e300], [0.9, -5]),
        ("x > 0", [5e-324], [0, -0.0]),
        ("x <= 1", [-1e300, 1], [1.1]),
        ("x < 1", [0.9], [1]),
        ("0 < x", [1], [0]),
        ("finite", [-1e300, 0, 1e300], []),
    ],
)
def test_what_a_range_holds(text, held, refused):
    stated = Range.parse("float", text)
    assert all(stated.holds(value) for value in held)
    assert not any(
        stated.holds(value) for value in [*refused, math.nan, math.inf, -math.inf, 10**400, True, False, "1", None]
    )


def test_kinds():
    whole, real = Range.parse("int", "x >= 0"), Range.parse("float", "x >= 0")
    assert all(whole.holds(value) for value in (3, 2**70, np.int64(3)))
    assert not any(whole.holds(value) for value in (3.0, np.float32(3), np.bool_(True), Fraction(3)))
    assert all(real.holds(value) for value in (3, 3.0, np.float32(3), np.int64(3), Fraction(1, 3)))


@pytest.mark.parametrize(
    "text", ["", "x", "x>0", "x > = 1", "0 < y < 1", "1 > x > 0", "0 <= x < inf", "x > nan", "x > a"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match='is no range; write "x >= 1", "0 <= x < 1" or "finite"'):
        Range.parse("float", text)


@pytest.mark.parametrize("text", ["1 <= x <= 0", "1 < x <= 1", "1 <= x < 1"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(ValueError, match="a range without a number in it"):
        Range.parse("float", text)


def test_words():
    assert Range.parse("float", "0 <= x < 1").said_of("max_x") == "0 <= max_x < 1"
    assert Range.parse("int", "x >= 1").said_of("lag") == "lag >= 1 (int)"
    assert Range.parse("float", "finite").said_of("margin") == "any finite margin"


@range_checked
def call(
    first: int = 0,
    *,
    rate: Annotated[float, "0 <= x < 1"] | None = None,
    sizes: list[Annotated[int, "x >= 1"]] | tuple[Annotated[int, "x >= 1"], ...] = (),
    options: dict[str, Annotated[int, "x >= 1"]] | None = None,
    epoch: Annotated[int, "x >= 0"] | Annotated[float, "0 < x < 1"] | str = 0,
    noted: Annotated[str, "a remark"] = "",
    free: float = 0.0,
    absent: "Nowhere" = None,  # noqa: F821  # what has no range need not be resolvable
) -> tuple:
    """Of the house."""
    return first, rate, sizes, options, epoch


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rate": 0},
        {"rate": None},
        {"sizes": [1, 2]},
        {"sizes": (1,)},
        {"options": {"a": 1, "b": None}},
        {"epoch": 3},
        {"epoch": 0.5},
        {"epoch": "last"},
        {"noted": "x"},
        {"free": math.nan},
    ],
)
def test_a_call_inside(keys):
    assert call(7, **keys)[0] == 7
    assert call.__doc__ == "Of the house."


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rate": 1.0}, r"^rate=1.0 is out of range; allowed: 0 <= rate < 1$"),
        ({"rate": math.nan}, "rate=nan is out of range"),
        ({"rate": True}, "rate=True is out of range"),
        ({"sizes": [1, 0]}, r"sizes=\[1, 0\] is out of range; allowed: sizes >= 1 \(int\)$"),
        ({"sizes": (1, 2.5)}, "sizes=.* is out of range"),
        ({"options": {"a": 0}}, "options=.* is out of range"),
        ({"epoch": -1}, r"epoch=-1 is out of range; allowed: epoch >= 0 \(int\) or 0 < epoch < 1$"),
        ({"epoch": 3.0}, "epoch=3.0 is out of range"),
    ],
)
def test_a_call_outside(keys, message):
    with pytest.raises(ValueError, match=message):
        call(**keys)


def test_a_text_that_is_no_range_is_an_error():
    @range_checked
    def wrong(*, rate: Annotated[float, "from 0 to 1"] = 0.5) -> None: ...

    with pytest.raises(ValueError, match="'from 0 to 1' is no range"):
        wrong(rate=0.5)


def test_classes_check_their_own_keys_and_those_they_pass_on():
    class Base(RangeChecked):
        def __init__(self, *, lag: Annotated[int, "x >= 1"] = 1) -> None:
            self.lag = lag

    class Middle(Base): ...

    class Derived(Middle):
        def __init__(self, *, rate: Annotated[float, "0 <= x < 1"] = 0.0, **common) -> None:
            super().__init__(**common)

    assert Derived(rate=0.5, lag=2).lag == 2 and Middle(lag=3).lag == 3
    for made, keys in ((Middle, {"lag": 0}), (Derived, {"lag": 0}), (Derived, {"rate": 1})):
        with pytest.raises(ValueError, match="is out of range"):
            made(**keys)


def test_torch_is_not_imported():
    subprocess.run([sys.executable, "-c", "import kernels.ranges, sys; assert 'torch' not in sys.modules"], check=True)
