"""The picture that transformers prints, character for character.

    ##########...
    ##      Attention visualization for cohere:MODEL CohereModel      ##
    ##########...
     ■: i == j (diagonal)   ■: token_type_ids
                   Attention Matrix

    'Pl'      :  0 ■ ⬚ ⬚    |

Three habits of it are kept. A text of ``n`` tokens is shown without its BOS token, while the mask is that of all
``n + 1``, cut to its first ``n`` rows and columns. The numbers of columns are empty lines. The box is as wide as the
class is called there, wherever it lives here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_GREEN, _YELLOW, _BOLD, _RESET = "\033[92m", "\033[93m", "\033[1m", "\033[0m"
_SEEN, _HIDDEN = "■", "⬚"
_IMAGE = "<img>"
_CLASS_PATH = "<class 'transformers.models.{0}.modeling_{0}.{1}'>"


def classic_text(model_type: str, name: str, class_name: str, words: Sequence[str], allowed: Tensor) -> str:
    """All that is printed for one text.

    Args:
        model_type: as in the configuration.
        name: what the user calls the model.
        class_name: the class of the model without a head.
        words: ``n`` tokens as the tokenizer spells them.
        allowed: ``[m, m]`` with ``m >= n``, True where the query sees the key.
    """
    length = len(f"Attention visualization for {model_type} | {_CLASS_PATH.format(model_type, class_name)}") + 4
    border = "##" * length
    title = f"  Attention visualization for {_BOLD}{model_type}:{name}{_RESET} {class_name}"
    head = ["", border, f"##{title.center(len(border))}    ##", border]
    return "\n".join([*head, *_matrix(words, allowed), border])


def _matrix(words: Sequence[str], allowed: Tensor) -> list[str]:
    n = len(words)
    width = max(len(repr(word)) for word in words)
    seen = _with_images(words, allowed[:n, :n].int())
    legend = f" {_GREEN}{_SEEN}{_RESET}: i == j (diagonal)   {_YELLOW}{_SEEN}{_RESET}: token_type_ids"
    first = [f"{_YELLOW}{_SEEN}{_RESET}" if value else _HIDDEN for value in seen[0]]
    heading = " " * (width + 5) + "Attention Matrix".ljust(len(" ".join(first)) // 2)
    lines = [legend, heading, *[""] * len(str(n))]
    for i, word in enumerate(words):
        label = repr(word).ljust(width)
        shown = f"{_YELLOW}{label}{_RESET}" if _IMAGE in word else label
        cells = " ".join(_cell(words, i, j, bool(seen[i][j])) for j in range(n))
        lines.append(f"{shown}: {str(i).rjust(2)} {cells}    |    ")
    return lines


def _cell(words: Sequence[str], i: int, j: int, seen: bool) -> str:
    if seen and _IMAGE in words[i] and _IMAGE in words[j]:
        return f"{_YELLOW}{_SEEN}{_RESET}"
    if i == j:
        return f"{_GREEN}{_SEEN}{_RESET}"
    return _SEEN if seen else _HIDDEN


def _with_images(words: Sequence[str], seen: Tensor) -> list[list[int]]:
    """Neighbouring image tokens see each other, as a token of that spelling would be shown in any model."""
    n, begin = len(words), 0
    for i, word in enumerate(words):
        if word == _IMAGE and not begin:
            begin = i
        is_last = i == n - 1
        if begin and (word != _IMAGE or is_last):
            end = n if is_last else i
            seen[begin:end, begin:end] = 1
            begin = 0
    rows: list[list[int]] = seen.tolist()
    return rows
