r"""Server-sent events, from bytes as they come (WHATWG HTML, section 9.2).

data: {"choices": [...]}\n\n        ->  '{"choices": [...]}'
: a comment\nevent: x\ndata: a\ndata: b\n\n   ->  'a\nb'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_LINE = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a return at the end may be the first half of a line's end


def event_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of every event. One that the stream breaks off in is left out, unless its lines are whole."""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    if data:
        yield "\n".join(data)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines; nothing but line feeds and returns ends one."""
    rest = b""
    for chunk in chunks:
        *whole, rest = _LINE.split(rest + chunk)
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest.endswith(b"\r"):
        yield rest[:-1].decode("utf-8", "replace")
