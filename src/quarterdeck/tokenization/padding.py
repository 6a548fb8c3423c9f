"""Padding of rows that were encoded before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenization.options import EncodeOptions, Lengths
from quarterdeck.tokenization.tensors import TensorType, to_python


def pad_encoded(
    encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    options: EncodeOptions,
    lengths: Lengths,
    pad_id: int,
    pad_type_id: int,
    main_input: str,
) -> BatchEncoding:
    """Pads one row or several; see `Encoder.pad`.

    Args:
        encoded: one encoding, a list of encodings, or a dictionary of lists of rows.
        options: with the side of padding and whether to add an attention mask filled in.
        lengths: what to pad to.
        pad_id, pad_type_id: what to fill ``input_ids`` and ``token_type_ids`` with.
        main_input: the name of the input whose length counts.
    """
    inputs = dict(encoded) if isinstance(encoded, Mapping) else _as_columns(encoded)
    if main_input not in inputs:
        raise TokenizerError(f"pad needs '{main_input}' among its inputs, which are {', '.join(inputs) or 'none'}")
    tensor_type = options.return_tensors or _tensor_type_of(inputs[main_input])
    columns = {name: to_python(value) for name, value in inputs.items()}
    first = columns[main_input]
    if not first:
        return BatchEncoding({**columns, **({"attention_mask": []} if options.return_attention_mask else {})})
    fill = {"attention_mask": 0, "token_type_ids": pad_type_id, "special_tokens_mask": 1, main_input: pad_id}
    if not isinstance(first[0], list):
        width = _width([len(first)], options, lengths)
        return BatchEncoding(_pad_row(columns, width, fill, options, main_input), tensor_type=tensor_type)
    _check_columns(columns, main_input)
    width = _width([len(row) for row in first], options, lengths)
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(first))]
    return BatchEncoding(
        _as_columns([_pad_row(row, width, fill, options, main_input) for row in rows]), tensor_type=tensor_type
    )


def _as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise TokenizerError("pad needs an encoding or a list of encodings, each a dictionary, and at least one")
    names = rows[0].keys()
    for number, row in enumerate(rows):
        if row.keys() != names:
            odd = ", ".join(repr(name) for name in sorted(map(str, row.keys() ^ names)))
            raise TokenizerError(
                f"pad: encodings 0 and {number} do not have the same inputs; only one of them has {odd}: add what is "
                "missing, or leave it out of all"
            )
    return {name: [row[name] for row in rows] for name in names}


def _check_columns(columns: Mapping[str, Any], main_input: str) -> None:
    count = len(columns[main_input])
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != count:
            raise TokenizerError(f"pad: '{main_input}' has {count} rows but '{name}' does not")


def _tensor_type_of(value: Any) -> TensorType | None:
    """The kind of tensor that the caller gave, which is then what he gets."""
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    if not hasattr(value, "tolist"):
        return None
    return "np" if type(value).__module__ == "numpy" else "pt"


def _width(row_lengths: list[int], options: EncodeOptions, lengths: Lengths) -> int:
    """The length to pad to, in tokens; 0 pads nothing."""
    if lengths.padding == "do_not_pad":
        return 0
    width = max(row_lengths) if lengths.padding == "longest" else lengths.max_length or 0
    multiple = options.pad_to_multiple_of
    return -(-width // multiple) * multiple if multiple else width


def _pad_row(
    row: dict[str, Any], width: int, fill: Mapping[str, int], options: EncodeOptions, main_input: str
) -> dict[str, Any]:
    length = len(row[main_input])
    if options.return_attention_mask and "attention_mask" not in row:
        row = {**row, "attention_mask": [1] * length}
    missing = max(0, width - length)
    padded = dict(row)
    for name in fill.keys() & row.keys():
        padding = [fill[name]] * missing
        padded[name] = padding + row[name] if options.padding_side == "left" else row[name] + padding
    return padded
