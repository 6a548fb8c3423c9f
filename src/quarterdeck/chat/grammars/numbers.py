"""Regular expressions for the JSON numbers in a range.

A range is two one-sided conditions that the grammar intersects, so each is a comparison of digits with one bound:

    integers from 12 on      the first digit is more: [2-9][0-9]    the second: 1[2-9]    more digits: [1-9][0-9]{2,}

What is below zero is the mirrored comparison after a minus sign. Numbers with a bound are written without an exponent.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Any

_DIGITS = 16
"""Digits before the point, and after it, that a number may have where its bounds do not need more: enough for what a
double holds, and short enough that every number comes to its end."""

Number = int | float


def number_terminal(low: Number | None, high: Number | None, *, whole: bool) -> str | None:
    """A Lark terminal for the JSON numbers from ``low`` to ``high``, both included; None if there is none.

    Raises:
        ValueError: a bound is not finite.
    """
    least, most = _decimal(low, whole, up=True), _decimal(high, whole, up=False)
    if least is not None and most is not None and least > most:
        return None
    before, after = _room(least, most)
    shape = f"-?(0|[1-9][0-9]{{0,{before - 1}}})"
    if not whole:
        shape += rf"(\.[0-9]{{1,{after}}})?"
        if least is None and most is None:
            shape += "([eE][-+]?[0-9]{1,2})?"
    conditions = [shape]
    if least is not None:
        conditions.append(_at_least(least))
    if most is not None:
        conditions.append(_at_most(most))
    return " & ".join(f"/{one}/" for one in conditions)


def limits(schema: dict[str, Any], *, whole: bool) -> tuple[Number | None, Number | None]:
    """The least and the greatest number that ``minimum``, ``exclusiveMinimum`` and their likes allow.

    An exclusive bound becomes the next number inside it: the next integer, or the next double.
    """
    lows = [schema.get("minimum"), _next(schema.get("exclusiveMinimum"), up=True, whole=whole)]
    highs = [schema.get("maximum"), _next(schema.get("exclusiveMaximum"), up=False, whole=whole)]
    return (
        max((one for one in lows if one is not None), default=None),
        min((one for one in highs if one is not None), default=None),
    )


def _next(bound: Number | None, *, up: bool, whole: bool) -> Number | None:
    if bound is None:
        return None
    if not whole:
        return math.nextafter(bound, math.inf if up else -math.inf)
    return math.floor(bound) + 1 if up else math.ceil(bound) - 1


def _decimal(bound: Number | None, whole: bool, *, up: bool) -> Decimal | None:
    if bound is None:
        return None
    if not math.isfinite(bound):
        raise ValueError(f"{bound} is not finite")
    if whole:
        bound = math.ceil(bound) if up else math.floor(bound)
    try:
        return Decimal(repr(bound))
    except InvalidOperation as error:
        raise ValueError(f"{bound!r} is not a number") from error


def _parts(value: Decimal) -> tuple[str, str]:
    """The digits before the point and those after it, without zeros at the end; the sign does not count."""
    before, _, after = f"{abs(value):f}".partition(".")
    return before, after.rstrip("0")


def _room(least: Decimal | None, most: Decimal | None) -> tuple[int, int]:
    """Digits before and after the point: as many as it takes to write the bound that is next to zero."""
    bounds = [_parts(bound) for bound in (least, most) if bound is not None]
    is_above, is_below = least is not None and least > 0, most is not None and most < 0
    needed = _parts(least)[0] if is_above and least else _parts(most)[0] if is_below and most else ""
    return max(_DIGITS, len(needed)), max(_DIGITS, *(len(after) for _, after in bounds), 0)


def _at_least(bound: Decimal) -> str:
    if bound > 0:
        return _more(*_parts(bound))
    return rf"[0-9.]+|-({_less(*_parts(bound))})"


def _at_most(bound: Decimal) -> str:
    if bound >= 0:
        return rf"-[0-9.]+|{_less(*_parts(bound))}"
    return f"-({_more(*_parts(bound))})"


def _more(before: str, after: str) -> str:
    """Decimals without a sign that are at least ``before.after``."""
    longer = f"[1-9][0-9]{{{len(before)},}}"
    greater = [
        f"{before[:place]}{_range(int(digit) + 1, 9)}[0-9]{{{len(before) - place - 1}}}"
        for place, digit in enumerate(before)
        if digit != "9"
    ]
    fraction = rf"({_fraction_from(after)})" if after else r"(\.[0-9]+)?"
    return rf"({'|'.join([longer, *greater])})(\.[0-9]+)?|{before}{fraction}"


def _fraction_from(after: str) -> str:
    greater = [
        rf"\.{after[:place]}{_range(int(digit) + 1, 9)}[0-9]*" for place, digit in enumerate(after) if digit != "9"
    ]
    return "|".join([*greater, rf"\.{after}[0-9]*"])


def _less(before: str, after: str) -> str:
    """Decimals without a sign that are at most ``before.after``."""
    smaller = ["0", f"[1-9][0-9]{{0,{len(before) - 2}}}"] if len(before) > 1 else []
    for place, digit in enumerate(before):
        first = 1 if place == 0 and len(before) > 1 else 0
        if int(digit) > first:
            smaller.append(f"{before[:place]}{_range(first, int(digit) - 1)}[0-9]{{{len(before) - place - 1}}}")
    fraction = rf"({_fraction_to(after)})?"
    whole = rf"({'|'.join(smaller)})(\.[0-9]+)?|" if smaller else ""
    return f"{whole}{before}{fraction}"


def _fraction_to(after: str) -> str:
    smaller = [rf"\.{after[:place]}" for place in range(1, len(after))]
    smaller += [
        rf"\.{after[:place]}{_range(0, int(digit) - 1)}[0-9]*" for place, digit in enumerate(after) if digit != "0"
    ]
    return "|".join([*smaller, rf"\.{after}0*" if after else r"\.0+"])


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"
