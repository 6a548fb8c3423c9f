"""How the scripts of training end when something does not fit: with one line, and an exit code of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

from quarterdeck.errors import QuarterdeckError

FAILED = 2
"""The exit code; 1 is what a script says of its result, as an evaluation does of a gate."""


def run_script(main: Callable[[], int | None]) -> int:
    """The exit code of ``main()``, 0 for None; `FAILED`, and a line on standard error, if it raises one of ours."""
    try:
        return main() or 0
    except QuarterdeckError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
