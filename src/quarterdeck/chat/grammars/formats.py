"""The ``format``s of JSON Schema that are known: what a grammar writes, and what a value may be.

`FORMATS` are regular expressions for grammars. They describe less than their specifications allow, never more: years
from 1000 on, no leap seconds, addresses in ASCII and of bounded length. Whatever they match is right, so every
validator accepts it. `has_format` judges values that come from elsewhere, and takes all that the specifications allow
(of addresses it asks only for something on both sides of the @).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[-+]{_HOUR_MINUTE})"
_WORD = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"

FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "email": rf"[A-Za-z0-9_]{{1,30}}(?:[.+-][A-Za-z0-9_]{{1,30}}){{0,3}}@{_WORD}(?:\.{_WORD}){{0,4}}\.[A-Za-z]{{2,12}}",
}

_WIDE_TIME = re.compile(
    rf"{_HOUR_MINUTE}:(?:[0-5][0-9]|60)(?:\.[0-9]+)?(?:Z|[-+]{_HOUR_MINUTE})", re.IGNORECASE
)  # RFC 3339, section 5.6
_WIDE_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


def has_format(name: str, text: str) -> bool:
    """Whether a text is what one of `FORMATS` names."""
    match name:
        case "date":
            return _is_date(text)
        case "time":
            return _WIDE_TIME.fullmatch(text) is not None
        case "date-time":
            return _is_date(text[:10]) and text[10:11] in ("T", "t") and _WIDE_TIME.fullmatch(text[11:]) is not None
        case "email":
            before, _, after = text.rpartition("@")
            return bool(before) and bool(after)
    return re.fullmatch(FORMATS[name], text) is not None


def _is_date(text: str) -> bool:
    try:
        return _WIDE_DATE.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False
