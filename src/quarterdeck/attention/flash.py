"""Attention through the package ``flash-attn``, version 2.1 or newer: for GPUs, in float16 and bfloat16.

Its kernels know two things only: rows of one length, and rows of many lengths laid end to end. In both, the last
query of a row stands at its last key. Real tokens keep their order when the others are left out, so whatever padding
there is, before, behind or between, the second form holds it: query ``i`` of the ``n`` real ones in a row stands at
key ``m - n + i`` of the ``m`` real ones.

Shapes: ``B`` sequences, ``T`` queries, ``S`` keys, ``H`` and ``G`` heads of queries and keys, ``D`` head width,
``N`` and ``M`` real queries and keys of all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from quarterdeck.attention.mask import AttentionMask
from quarterdeck.errors import InputError, MissingPackageError, UnsupportedOptionError

NAME = "flash_attention_2"
DEVICES: frozenset[str] = frozenset({"cuda"})
"""Types of device that the package has kernels for; torch calls AMD's ``cuda`` too."""
DTYPES = (torch.float16, torch.bfloat16)


def flash_package() -> ModuleType:
    """The package ``flash_attn``.

    Raises:
        MissingPackageError: it is not installed, or older than 2.1.
    """
    try:
        import flash_attn  # type: ignore[import-not-found]  # it cannot be built without CUDA
    except ModuleNotFoundError as error:
        if error.name != "flash_attn":
            raise
        raise MissingPackageError("flash-attn", None, f"attn_implementation='{NAME}'") from error
    version = str(flash_attn.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 1):
        # before, the first query stood at the first key
        purpose = f"attn_implementation='{NAME}' ({version} is too old, 2.1 is needed)"
        raise MissingPackageError("flash-attn", None, purpose)
    package: ModuleType = flash_attn
    return package


def check_flash() -> None:
    """Refuse where this backend could never run.

    Raises:
        MissingPackageError: the package is not installed, or too old.
        UnsupportedOptionError: torch sees no device that it has kernels for.
    """
    flash_package()
    if "cpu" not in DEVICES and not torch.cuda.is_available():
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' runs on GPUs, and torch sees none: choose 'sdpa', which is the default"
        )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
) -> tuple[Tensor, None]:
    """As :func:`~quarterdeck.attention.eager.eager_attention`, without the weights and without finished masks.

    Queries that are padding give zeros. Under autocast, float32 is rounded to autocast's type.

    Raises:
        MissingPackageError: the package is not installed, or too old.
        UnsupportedOptionError: a type, device or mask that it has no kernel for.
        InputError: a padding mask that ends before the queries do.
    """
    package = flash_package()
    dtype = _kernel_dtype(query)
    # [B, T, H, D], [B, S, G, D]
    query, key, value = (tensor.transpose(1, 2).to(dtype) for tensor in (query, key, value))
    spans = mask.made("spans", lambda: _spans(mask))
    key, value = key[:, : spans.keys], value[:, : spans.keys]
    options = {"dropout_p": dropout, "softmax_scale": scale, "causal": True}
    if spans.ragged is None:
        output: Tensor = package.flash_attn_func(query, key, value, **options)
    else:
        output = _attend_ragged(package, query, key, value, spans.ragged, options)
    return output.transpose(1, 2), None


def _kernel_dtype(query: Tensor) -> torch.dtype:
    """The type that the kernel computes in."""
    device = query.device.type
    if device not in DEVICES:
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' runs on GPUs, and the model is on {device}: move it with "
            "model.to('cuda'), or choose 'sdpa' with model.set_attn_implementation"
        )
    dtype = query.dtype
    if dtype not in DTYPES and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype not in DTYPES:
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' computes in float16 and bfloat16 only, and the model in {dtype}: load it "
            f"with dtype=torch.bfloat16, or run it under torch.autocast('{device}', dtype=torch.bfloat16), or choose "
            "'sdpa', which takes any type"
        )
    return dtype


@dataclass(frozen=True)
class Ragged:
    """Rows of many lengths, laid end to end.

    Attributes:
        queries: ``[N]`` where the real queries stand in ``[B * T]``.
        keys: ``[M]`` where the real keys stand in ``[B * S]``.
        query_starts, key_starts: ``[rows + 1]`` int32, where each row begins among them, and the end.
        longest_query, longest_key: length of the longest row.
    """

    queries: Tensor
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Spans:
    """What the kernel is told in place of a mask.

    Attributes:
        keys: how many keys are filled; in a cache of fixed size there may be more.
        ragged: the rows, where they do not simply have one length.
    """

    keys: int
    ragged: Ragged | None


def _attend_ragged(
    package: ModuleType, query: Tensor, key: Tensor, value: Tensor, ragged: Ragged, options: dict[str, Any]
) -> Tensor:
    """``[B, T, H, D]`` through ``[N, H, D]``, zero where a query is not real."""
    empty = torch.zeros_like(query.flatten(0, 1))  # [B * T, H, D]
    if not ragged.longest_query:
        return empty.view(query.shape)  # nothing but padding in this run, which kernels refuse
    found: Tensor = package.flash_attn_varlen_func(
        query.flatten(0, 1)[ragged.queries],
        key.flatten(0, 1)[ragged.keys],
        value.flatten(0, 1)[ragged.keys],
        cu_seqlens_q=ragged.query_starts,
        cu_seqlens_k=ragged.key_starts,
        max_seqlen_q=ragged.longest_query,
        max_seqlen_k=ragged.longest_key,
        **options,
    )
    return empty.index_copy(0, ragged.queries, found).view(query.shape)


def _spans(mask: AttentionMask) -> Spans:
    """One look at the mask for all layers; waits for the device where there are places, padding or documents."""
    if mask.explicit is not None:
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' takes no 4-D attention_mask: give a [batch, positions] mask, "
            "or choose 'sdpa', 'eager' or 'flex_attention'"
        )
    if mask.window is not None:
        raise UnsupportedOptionError(f"attn_implementation='{NAME}' has no attention window yet: choose 'sdpa'")
    start = mask.start if mask.positions is None else _first_place(mask.positions)
    keys = start + mask.queries
    if mask.documents is not None:
        return Spans(keys, _documents(mask, start, keys))
    return Spans(keys, None if mask.padding is None else _padded(mask.padding, start, keys))


def _first_place(positions: Tensor) -> int:
    """Where the first query stands, if the others follow one another."""
    if torch.compiler.is_compiling():
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' reads cache_position, which a compiled step cannot: choose 'sdpa' or "
            "'flex_attention' for it, or leave cache_position out"
        )
    places = positions.tolist()
    if places != list(range(places[0], places[0] + len(places))):
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' needs places that follow one another, not cache_position {places}: "
            "choose 'sdpa'"
        )
    return int(places[0])


def _real(padding: Tensor, keys: int) -> Tensor:
    if padding.shape[1] < keys:
        raise InputError(
            f"attention_mask has shape {list(padding.shape)}, but past and new tokens are {keys}: '{NAME}' needs one "
            "number for each"
        )
    return padding[:, :keys]


def _padded(padding: Tensor, start: int, keys: int) -> Ragged:
    """``padding`` ``[B, n]``; the queries are the keys from ``start`` on."""
    real = _real(padding, keys)
    new = real[:, start:]
    query_counts, key_counts = new.sum(-1), real.sum(-1)
    longest = torch.stack((query_counts.max(), key_counts.max())).tolist()
    return Ragged(_places(new), _places(real), _starts(query_counts), _starts(key_counts), longest[0], longest[1])


def _documents(mask: AttentionMask, start: int, keys: int) -> Ragged:
    """Each document is a row; what is not padding only, where there is padding too."""
    documents = mask.documents
    assert documents is not None
    if start or mask.keys != keys:
        raise UnsupportedOptionError(f"attn_implementation='{NAME}' takes packed rows only whole, without a cache")
    real = torch.ones_like(documents, dtype=torch.bool) if mask.padding is None else _real(mask.padding, keys)
    places = _places(real)
    rows, numbers = places // keys, documents.flatten()[places]
    begins = torch.ones_like(places, dtype=torch.bool)
    begins[1:] = (rows[1:] != rows[:-1]) | (numbers[1:] != numbers[:-1])
    starts = pad(_places(begins), (0, 1), value=len(places)).to(torch.int32)
    longest = int(starts.diff().max())
    return Ragged(places, places, starts, starts, longest, longest)


def _places(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero().flatten()


def _starts(counts: Tensor) -> Tensor:
    return pad(counts.cumsum(0), (1, 0)).to(torch.int32)
