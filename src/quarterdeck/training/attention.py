"""Attention of packed documents while training, through the packed kernel: no matrix of who sees whom is made.

A backend that a model is given as its ``attn_implementation``. Before each forward pass over one row ``[1, N]`` the
trainer sets its layout, which positions cannot tell: which documents go on from the tokens of another one.
"""

from __future__ import annotations

from torch import Tensor

from quarterdeck.attention.mask import AttentionMask
from quarterdeck.errors import InputError
from quarterdeck.kernels.packed_attention import PackedLayout, packed_attention


class PackedAttention:
    """An attention backend for one row that holds all documents of a step.

    Attributes:
        layout: where the documents of the next forward pass are, and which of them begin with another one's tokens.
    """

    def __init__(self) -> None:
        self.layout: PackedLayout | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
    ) -> tuple[Tensor, None]:
        """``[1, H, N, D]``, ``[1, G, N, D]``, ``[1, G, N, D]`` to ``[1, H, N, D]``; see `AttentionFunction`.

        Raises:
            InputError: no layout was given, more than one row, padding, a window or dropout.
        """
        plain = mask.padding is None and mask.window is None and mask.explicit is None and not dropout
        if self.layout is None or query.shape[0] != 1 or query.shape[2] != mask.keys or not plain:
            raise InputError(
                "PackedAttention computes one whole row of packed documents, without padding, window, dropout or a "
                f"cache, after its layout was set; this is {query.shape[0]} rows of {query.shape[2]} queries over "
                f"{mask.keys} keys"
            )
        q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))  # [N, heads, D]
        return packed_attention(q, k, v, self.layout, scale).transpose(0, 1)[None], None
