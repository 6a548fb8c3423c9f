"""Copying, and looking up: the first thing to learn, since every other family is made of it.

Random tokens of the whole vocabulary are repeated, keys are looked up in tables, lists are said again. The spans are
ids, not text, so that no token is without an occasion to be copied.
"""

from __future__ import annotations

import random

import numpy as np

from quarterdeck.training.midshipman.example import BOS, END_OF_TURN, Encoded, Example, Segment
from quarterdeck.training.midshipman.invention import Inventor

FIRST_ORDINARY = 8
"""Ids below it are control tokens."""


def repeated_tokens(rng: random.Random, *, bos: int, end: int, last: int, length: int | None = None) -> Encoded:
    """A random span, and the same span again; the second one is supervised.

    Args:
        rng: draws the span.
        bos, end: the ids that begin and end a document.
        last: the ids from `FIRST_ORDINARY` up to it may occur.
        length: of the span; drawn if None.
    """
    count = length or rng.choice((4, 8, 16, 24, 32, 48, 64))
    span = [rng.randrange(FIRST_ORDINARY, last) for _ in range(count)]
    times = 1 if length else rng.choice((1, 1, 2))
    ids = [bos, *span, *span * times, end]
    mask = [False] * (1 + count) + [True] * (count * times + 1)
    return Encoded("primer", np.array(ids, dtype=np.uint16), np.array(mask, dtype=np.bool_))


def table_text(inventor: Inventor) -> Example:
    """Keys and values, then some of these lines again, which are what is learned: the first ones nobody can foresee."""
    rng = inventor.rng
    kinds = rng.choice(
        (
            ("name", "code"),
            ("person", "town"),
            ("word", "word"),
            ("code", "money"),
            ("town", "date"),
            ("gadget", "colour"),
            ("first", "phone"),
        )
    )
    rows = {inventor.value(kinds[0]): inventor.value(kinds[1]) for _ in range(rng.randint(2, 8))}
    form = rng.choice(
        ("{k}: {v}", "{k} = {v}", "{k} -> {v}", "The code of {k} is {v}.", "{k} is {v}.", "{v} belongs to {k}.")
    )
    listed = [form.format(k=k, v=v) for k, v in rows.items()]
    again = rng.sample(listed, rng.randint(1, len(listed)))
    said: tuple[Segment, ...] = (("text", "\n".join(listed) + "\n", False), ("text", "\n".join(again), True))
    return Example("table", (), "", written_out=(("control", BOS, False), *said, ("control", END_OF_TURN, True)))
