"""The ``format``s of JSON Schema that grammars know, as regular expressions that match the whole text.

They describe less than their specifications allow, never more: years from 1000 on, no leap seconds, offsets always
given, addresses in lower ASCII of bounded length. Whatever they match is right, so every validator accepts it.
"""

from __future__ import annotations

from collections.abc import Mapping

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
