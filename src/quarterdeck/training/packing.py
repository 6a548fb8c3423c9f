"""Examples of any length to rows of one length, or to one long stream, with a mask of what is to be learned.

Needs no torch. A row holds several documents one after another. Positions begin again at 0 with each, and by that the
model keeps them apart: see `quarterdeck.attention.mask.packed_documents`. What is left of a row is one more document
that nothing is asked of.

A stream is one row as long as its documents, and says where they are. Documents that begin with the same tokens, as
prompts with the same preamble do, share them: these tokens are there once, as a document of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quarterdeck.errors import InputError

Ids = tuple[NDArray[np.uint16], NDArray[np.bool_]]
"""The ids of a document, and which of them are supervised."""


@dataclass(frozen=True)
class PackedRows:
    """A batch of R rows of T tokens.

    Attributes:
        ids: ``[R, T]`` inputs.
        positions: ``[R, T]`` within their document.
        asked: ``[K]`` places in the flattened rows whose next token is supervised, in order.
        targets: ``[K]`` these tokens.
        documents: how many.
        used: how many of the ``R * T`` places hold documents.
    """

    ids: NDArray[np.uint16]
    positions: NDArray[np.int32]
    asked: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: int
    used: int


def pack(documents: Iterable[Ids], *, rows: int, length: int, pad: int = 0, patience: int = 12) -> PackedRows:
    """Fill rows with documents, each into the first row that has room, until `patience` in a row find none.

    A document of n ids takes n - 1 places, since nothing follows its last one. Documents that are longer than a row
    are left out.

    Raises:
        InputError: there are no documents, or none is short enough.
    """
    ids = np.full((rows, length), pad, dtype=np.uint16)
    positions = np.zeros((rows, length), dtype=np.int32)
    filled = np.zeros(rows, dtype=np.int64)
    asked: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    count, misses = 0, 0.0
    for tokens, supervised in documents:
        size = len(tokens) - 1
        room = np.flatnonzero(filled + size <= length)
        if len(room) == 0 or size < 1:
            misses += 1 if size <= length else 0.01  # one that never fits says little about how full the rows are
            if misses >= patience:
                break
            continue
        misses, count, row = 0.0, count + 1, int(room[0])
        begin = int(filled[row])
        ids[row, begin : begin + size] = tokens[:-1]
        positions[row, begin : begin + size] = np.arange(size)
        places = np.flatnonzero(supervised[1:])
        asked.append(places + (row * length + begin))
        targets.append(tokens[1:][places].astype(np.int64))
        filled[row] += size
    if not count:
        raise InputError(f"no document fits a row of {length} tokens; choose longer rows or shorter documents")
    for row in range(rows):
        positions[row, filled[row] :] = np.arange(length - filled[row])
    order = np.argsort(np.concatenate(asked), kind="stable")
    return PackedRows(
        ids, positions, np.concatenate(asked)[order], np.concatenate(targets)[order], count, int(filled.sum())
    )


@dataclass(frozen=True)
class PackedStream(PackedRows):
    """One row of N tokens, all of them in documents.

    Attributes:
        layout: ``[M, 4]`` begin, end, prefix begin and prefix end of every document: it sees these tokens of a
            document before it, all of them, and its own up to each. Equal numbers: it sees its own alone.
    """

    layout: NDArray[np.int64]


Packer = Callable[[Iterable[Ids]], PackedRows]
"""An endless supply of documents to one batch."""


def pack_stream(
    documents: Iterable[Ids],
    *,
    tokens: int,
    longest: int | None = None,
    shared: int = 64,
    multiple: int = 1,
    patience: int = 1000,
) -> PackedStream:
    """The first documents that together have about ``tokens`` tokens, with common beginnings once.

    Args:
        documents: ids and which are supervised; a document of n ids takes n - 1 places.
        tokens: how many to stop at, common beginnings counted each time.
        longest: documents with more tokens are left out.
        shared: a common beginning is worth sharing from this many tokens on.
        multiple: fill up to a multiple of it, with one more document that nothing is asked of: libraries that compile
            a product for every shape then meet few.
        patience: how many documents in a row may be left out.

    Raises:
        InputError: there are no documents of at least two ids, or so many are too long.
    """
    taken: list[Ids] = []
    total = misses = 0
    for ids, supervised in documents:
        size = len(ids) - 1
        if size < 1 or (longest is not None and size > longest):
            misses += 1
            if misses >= patience:
                raise InputError(f"{misses} documents in a row have not 1 to {longest} tokens; allow longer ones")
            continue
        misses = 0
        taken.append((ids, supervised))
        total += size
        if total >= tokens:
            break
    if not taken:
        raise InputError("there is no document of at least two tokens to pack")
    taken.sort(key=lambda one: one[0].astype(">u2").tobytes())  # equal beginnings lie side by side
    return _laid_out(_with_prefixes(taken, shared), len(taken), multiple)


def _with_prefixes(documents: Sequence[Ids], shared: int) -> list[tuple[int, list[Ids]]]:
    """Neighbours that share a beginning: how many tokens, and the documents; 0 and one document where none do."""
    groups: list[tuple[int, list[Ids]]] = []
    for one in documents:
        if groups:
            length, group = groups[-1]
            common = min(_common(group[0], one), length or len(one[0]))
            if common >= shared and common >= 0.7 * length:
                groups[-1] = (common, [*group, one])
                continue
        groups.append((0, [one]))
    return groups


def _common(first: Ids, second: Ids) -> int:
    """How many tokens two documents begin with that are the same in both and have nothing to learn after them."""
    ends = [min(len(ids) - 2, int(np.argmax(mask)) - 1 if mask.any() else len(ids)) for ids, mask in (first, second)]
    end = max(0, min(ends))
    differs = np.flatnonzero(first[0][:end] != second[0][:end])
    return int(differs[0]) if len(differs) else end


def _laid_out(groups: Sequence[tuple[int, list[Ids]]], count: int, multiple: int) -> PackedStream:
    ids: list[NDArray[np.uint16]] = []
    positions: list[NDArray[np.int32]] = []
    asked: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    layout: list[tuple[int, int, int, int]] = []
    place = 0

    def add(tokens: NDArray[np.uint16], first: int, prefix: tuple[int, int]) -> None:
        nonlocal place
        ids.append(tokens)
        positions.append(np.arange(first, first + len(tokens), dtype=np.int32))
        layout.append((place, place + len(tokens), *prefix))
        place += len(tokens)

    for length, group in groups:
        prefix = (place, place + length)
        if length:
            add(group[0][0][:length], 0, (place, place))
        for tokens, supervised in group:
            begin = place - length
            add(tokens[length:-1], length, prefix if length else (place, place))
            found = np.flatnonzero(supervised[1:])
            asked.append(found + begin)
            targets.append(tokens[1:][found].astype(np.int64))
    used = place
    if used % multiple:
        add(np.zeros(-used % multiple, dtype=np.uint16), 0, (used, used))
    return PackedStream(
        np.concatenate(ids)[None],
        np.concatenate(positions)[None],
        np.concatenate(asked),
        np.concatenate(targets),
        count,
        used,
        np.array(layout, dtype=np.int64),
    )
