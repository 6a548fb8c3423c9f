"""Examples of any length to rows of one length, with a mask of what is to be learned. Needs no torch.

A row holds several documents one after another. Positions begin again at 0 with each, and by that the model keeps
them apart: see `quarterdeck.attention.mask.packed_documents`. What is left of a row is one more document that nothing
is asked of.
"""

from __future__ import annotations

from collections.abc import Iterable
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
