"""What can be asked of encoding, and what it amounts to: the many spellings of padding and truncation made one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast, get_args

from quarterdeck.errors import TokenizerError, UnsupportedOptionError
from quarterdeck.tokenization.tensors import check_tensor_type

Padding = Literal["longest", "max_length", "do_not_pad"]
Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
Side = Literal["left", "right"]

NO_LIMIT = int(1e30)
"""The ``model_max_length`` that means "not known", as written in public checkpoints."""

_KNOWN_LIMIT = int(1e20)

_log = logging.getLogger(__name__)


class EncodeKeywords(TypedDict, total=False):
    """The keyword arguments of encoding that are rarely given by position; see `EncodeOptions`."""

    padding: bool | str
    truncation: bool | str | None
    max_length: int | None
    stride: int
    is_split_into_words: bool
    pad_to_multiple_of: int | None
    padding_side: str | None
    return_tensors: str | None
    return_token_type_ids: bool | None
    return_attention_mask: bool | None
    return_overflowing_tokens: bool
    return_special_tokens_mask: bool
    return_offsets_mapping: bool
    return_length: bool
    split_special_tokens: bool | None
    verbose: bool


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How texts are encoded.

    Attributes:
        add_special_tokens: put the beginning (and end) of sequence token around each text.
        padding: True or ``"longest"``: to the longest row; ``"max_length"``: to ``max_length`` (the model's limit
            if not given); False or ``"do_not_pad"``.
        truncation: True or ``"longest_first"``: take tokens from the longer text of a pair; ``"only_first"``,
            ``"only_second"``; False or ``"do_not_truncate"``. None: ``"longest_first"`` if ``max_length`` is given
            and padding is off, otherwise none.
        max_length: in tokens, special ones counted.
        stride: how many tokens an overflowing row repeats from the one before.
        is_split_into_words: each text is a list of words; the tokenizer must have ``add_prefix_space=True``.
        pad_to_multiple_of: padded rows get longer until their length is a multiple of this.
        padding_side: ``"left"`` or ``"right"``; None: the tokenizer's.
        return_tensors: ``"pt"``, ``"np"``, or None for lists.
        return_token_type_ids: add ``token_type_ids`` (0 for the first text, 1 for the second).
        return_attention_mask: add ``attention_mask`` (1 for tokens, 0 for padding). None: if the model uses it.
        return_overflowing_tokens: what truncation cut off follows in further rows; ``overflow_to_sample_mapping``
            says whose they are.
        return_special_tokens_mask: add ``special_tokens_mask`` (1 for what was put around the texts).
        return_offsets_mapping: add ``offset_mapping``, (start, end) in characters of the text for each token.
        return_length: add ``length``, in tokens.
        split_special_tokens: treat the spelling of a special token in a text as ordinary text. None: the
            tokenizer's setting.
        verbose: log when an argument has no effect or a text is longer than the model can read.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    split_special_tokens: bool | None = None
    verbose: bool = True

    def __post_init__(self) -> None:
        check_tensor_type(self.return_tensors)
        check_side("padding_side", self.padding_side)
        for name in ("max_length", "stride", "pad_to_multiple_of"):
            number = getattr(self, name)
            if number is not None and (not hasattr(number, "__index__") or number < 0):
                raise TokenizerError(f"{name}={number!r} is not a number of tokens; give an integer of 0 or more")

    @classmethod
    def of(cls, add_special_tokens: bool, keywords: Mapping[str, Any]) -> EncodeOptions:
        """Options from the arguments of a call.

        Raises:
            UnsupportedOptionError: one is not known; the message lists those that are.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(keywords) - set(known))
        if unknown:
            raise UnsupportedOptionError(f"encoding has no option {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(add_special_tokens=add_special_tokens, **keywords)


@dataclass(frozen=True)
class Lengths:
    """What padding and truncation amount to.

    Attributes:
        padding, truncation: one name each.
        max_length: in tokens; None if neither uses it.
    """

    padding: Padding
    truncation: Truncation
    max_length: int | None


def resolve_lengths(options: EncodeOptions, model_max_length: int) -> Lengths:
    """Makes one of the many ways to ask for padding and truncation.

    Without ``max_length`` the model's limit is used; if that is not known either, there is nothing to pad or cut to,
    and the option has no effect (said in the log if ``verbose``).

    Raises:
        UnsupportedOptionError: a strategy that does not exist.
        TokenizerError: cutting to a length that is no multiple of what is padded to.
    """
    padding, truncation = _padding(options), _truncation(options)
    max_length = options.max_length
    if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
        if model_max_length <= _KNOWN_LIMIT:
            max_length = model_max_length
        else:
            _say(
                options,
                "neither max_length nor the model's limit is known: padding='max_length' and truncation do nothing",
            )
            padding = "do_not_pad" if padding == "max_length" else padding
            truncation = "do_not_truncate"
    both = truncation != "do_not_truncate" and padding != "do_not_pad"
    multiple = options.pad_to_multiple_of
    if both and multiple and max_length is not None and max_length % multiple:
        raise TokenizerError(
            f"truncation to max_length={max_length} and padding to a multiple of pad_to_multiple_of={multiple} "
            "contradict each other; make one a multiple of the other"
        )
    return Lengths(padding, truncation, max_length)


def _padding(options: EncodeOptions) -> Padding:
    asked: Any = getattr(options.padding, "value", options.padding)
    if asked is True and options.max_length is not None and not options.truncation:
        _say(
            options,
            "max_length does nothing with padding=True and no truncation; use padding='max_length' to pad to it",
        )
    names: dict[Any, str] = {True: "longest", False: "do_not_pad"}
    named = names.get(asked, asked)
    if named not in get_args(Padding):
        raise UnsupportedOptionError(f"padding={asked!r} is not one of True, False, {', '.join(get_args(Padding))}")
    if named == "do_not_pad" and options.pad_to_multiple_of:
        _say(options, "pad_to_multiple_of does nothing without padding=True")
    return cast("Padding", named)


def _truncation(options: EncodeOptions) -> Truncation:
    asked: Any = getattr(options.truncation, "value", options.truncation)
    if asked is None and options.max_length is not None and options.padding is False:
        _say(options, "max_length without truncation=... cuts the longest text first; say truncation=True to mean it")
        return "longest_first"
    names: dict[Any, str] = {True: "longest_first", False: "do_not_truncate", None: "do_not_truncate"}
    named = names.get(asked, asked)
    if named not in get_args(Truncation):
        raise UnsupportedOptionError(
            f"truncation={asked!r} is not one of True, False, {', '.join(get_args(Truncation))}"
        )
    return cast("Truncation", named)


def check_room(max_length: int, stride: int, around: int) -> None:
    """Refuses truncation to a length that has no room for a text, or none for a new token after a repeated one.

    Args:
        max_length, stride: see `EncodeOptions`.
        around: how many special tokens come with a text.

    Raises:
        TokenizerError: too small, with the smallest that will do.
    """
    if max_length < around:
        raise TokenizerError(
            f"max_length={max_length} has no room for the {around} special tokens; give {around} or more"
        )
    room = max_length - around
    if stride and stride >= room:
        smaller = f", or a stride below {room}" if room > 0 else ""
        raise TokenizerError(
            f"stride={stride} repeats all of the {room} tokens that max_length={max_length} leaves for a text; give "
            f"a max_length of {around + stride + 1} or more{smaller}"
        )


def check_pair_room(lengths: tuple[int, int], cut: Lengths, around: int, stride: int) -> None:
    """Refuses to cut a pair where the library would end in a panic: a text that keeps no more than is repeated.

    Args:
        lengths: tokens of the two texts, uncut.
        cut: how they will be cut.
        around: special tokens of a pair.
        stride: see `EncodeOptions`.

    Raises:
        TokenizerError: naming the text, and the smallest ``max_length`` that will surely do.
    """
    room = (cut.max_length or 0) - around
    excess = sum(lengths) - room
    if excess <= 0:
        return
    if cut.truncation == "longest_first":
        shorter, longer = min(lengths), max(min(lengths), room - min(lengths))
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
        kept = (longer, shorter) if lengths[0] > lengths[1] else (shorter, longer)
    else:
        first = cut.truncation == "only_first"
        kept = (lengths[0] - excess, lengths[1]) if first else (lengths[0], lengths[1] - excess)
    for number in (0, 1):
        if 0 < kept[number] <= stride and kept[number] < lengths[number]:
            raise TokenizerError(
                f"stride={stride} repeats all of the {kept[number]} tokens that max_length={cut.max_length} leaves "
                f"for text {number + 1} of a pair; give a stride below {kept[number]}, or a larger max_length "
                f"({cut.max_length} + {2 * (stride + 1 - kept[number])} will do)"
            )


def check_limit(name: str, limit: int | None) -> None:
    """Refuses what is neither a number of tokens nor None.

    Raises:
        TokenizerError: something else.
    """
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and limit >= 1):
        raise TokenizerError(f"{name}={limit!r} is not a number of tokens; give an integer of 1 or more, or None")


def check_side(name: str, side: str | None) -> None:
    """Refuses what is neither left, right nor None.

    Raises:
        TokenizerError: something else.
    """
    if side not in (None, "left", "right"):
        raise TokenizerError(f"{name}={side!r} is neither 'left' nor 'right'")


def _say(options: EncodeOptions, message: str) -> None:
    if options.verbose:
        _log.warning(message)
