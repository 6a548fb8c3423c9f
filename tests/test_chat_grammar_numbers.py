"""The regular expressions of number ranges, against arithmetic."""

from __future__ import annotations

import math
import re
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quarterdeck.chat.grammars.numbers import limits, number_terminal

bounds = (
    st.none()
    | st.integers(-(10**20), 10**20)
    | st.integers(-30, 30)
    | st.floats(-1e6, 1e6)
    | st.decimals(-100, 100, places=2).map(float)
)


def matches(terminal: str, text: str) -> bool:
    return all(re.fullmatch(one[1:-1], text) for one in terminal.split(" & "))


def near(bound: float | None, draw: st.DataObject) -> Decimal:
    """A number around a bound, often the bound itself."""
    offset = draw.draw(st.sampled_from(("0", "0.001", "-0.001", "1", "-1", "0.5", "-9.99", "100")) | st.just("0"))
    return Decimal(repr(bound or 0)) + Decimal(offset)


@settings(max_examples=250, deadline=None)
@given(bounds, bounds, st.booleans(), st.data())
def test_a_range_is_what_lies_between_its_bounds(
    low: float | None, high: float | None, whole: bool, data: st.DataObject
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    value = near(data.draw(st.sampled_from((low, high))), data)
    value = value.to_integral_value() if whole else value
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if max(map(len, text.lstrip("-").split("."))) > 16:
        return  # more digits than are given without need
    terminal = number_terminal(low, high, whole=whole)
    is_inside = (low is None or value >= Decimal(repr(low))) and (high is None or value <= Decimal(repr(high)))
    assert (terminal is not None and matches(terminal, text)) == is_inside, (terminal, text)


@settings(max_examples=150, deadline=None)
@given(bounds, bounds, st.from_regex(r"\A-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,4})?\Z"))
@example(0, 0, "-0.00")
@example(0.5, 0.5, "0.50")
def test_equal_numbers_with_other_zeros_are_inside_too(low: float | None, high: float | None, text: str) -> None:
    terminal = number_terminal(low, high, whole=False)
    value = Decimal(text)
    is_inside = (low is None or value >= Decimal(repr(low))) and (high is None or value <= Decimal(repr(high)))
    assert (terminal is not None and matches(terminal, text)) == is_inside


@pytest.mark.parametrize(
    ("low", "high", "whole", "right", "wrong"),
    [
        (None, None, True, ["0", "-7", "1234567890123456"], ["01", "1.0", "1e3", "12345678901234567", "--1", ""]),
        (None, None, False, ["0.5", "1e-07", "-1.5E+10", "1e16"], ["1.", ".5", "1e400", "NaN", "0x1", "+1"]),
        (10**30, None, True, [str(10**30)], [str(10**30 - 1), "5"]),
        (0.2, 2.8, True, ["1", "2"], ["0", "3", "1.5"]),
        (1e-20, None, False, ["0.00000000000000000001", "1"], ["0", "0.000000000000000000009"]),
        (None, -1e300, False, ["-1" + "0" * 300], ["-1", "0"]),
    ],
)
def test_examples(low: float | None, high: float | None, whole: bool, right: list[str], wrong: list[str]) -> None:
    terminal = number_terminal(low, high, whole=whole)
    assert terminal is not None
    assert [text for text in right if not matches(terminal, text)] == []
    assert [text for text in wrong if matches(terminal, text)] == []


def test_exclusive_bounds_are_the_next_numbers_inside() -> None:
    assert limits({"exclusiveMinimum": 1, "exclusiveMaximum": 3}, whole=True) == (2, 2)
    assert limits({"exclusiveMinimum": 0.5, "minimum": 0, "maximum": 9}, whole=True) == (1, 9)
    assert limits({"exclusiveMaximum": 1, "maximum": 5}, whole=False) == (None, math.nextafter(1, 0))
    assert limits({}, whole=False) == (None, None)
    assert number_terminal(2, 1, whole=True) is None
    assert number_terminal(0.1, 0.9, whole=True) is None
