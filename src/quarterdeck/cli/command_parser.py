"""The parser of one command, which takes ``name=value`` anywhere among the options."""

from __future__ import annotations

import argparse
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose ``flags``, if it has such an argument, may stand between options.

    argparse fills a positional argument from the first words in a row that fit and calls later ones unrecognized.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base, with the words left over that look like flags put to them."""
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "flags"):
            return found, rest
        late = [word for word in rest if "=" in word and not word.startswith("-")]
        found.flags = [*(found.flags or []), *late]
        return found, [word for word in rest if word not in late]
