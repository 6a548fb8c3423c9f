"""The loss of a language model.

Shapes: ``B`` sequences, ``T`` positions, ``V`` vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from quarterdeck.errors import InputError


def next_token_loss(
    logits: Tensor, labels: Tensor, vocab_size: int | None = None, num_items_in_batch: int | Tensor | None = None
) -> Tensor:
    """Cross entropy in float32 of ``logits`` ``[B, T, V]`` at each position with the label of the next one.

    Args:
        logits: ``[B, T, V]``, scaled.
        labels: ``[B, T]`` ids, not shifted; -100 is left out.
        vocab_size: ``V``, which the logits say themselves.
        num_items_in_batch: divide the summed loss by this instead of the number of labels here.

    Raises:
        InputError: labels of another shape, a ``vocab_size`` that is not ``V``.
    """
    if vocab_size not in (None, logits.shape[-1]):
        raise InputError(f"vocab_size is {vocab_size}, but the logits have {logits.shape[-1]} words; leave it out")
    if labels.shape != logits.shape[:2]:
        raise InputError(f"labels have shape {list(labels.shape)}, but must be {list(logits.shape[:2])}")
    predicted = logits[:, :-1].float().flatten(0, 1)
    expected = labels[:, 1:].flatten().to(logits.device)
    if num_items_in_batch is None:
        return functional.cross_entropy(predicted, expected)
    return functional.cross_entropy(predicted, expected, reduction="sum") / num_items_in_batch
