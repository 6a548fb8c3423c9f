"""How generated text is marked: the values behind ``watermarking_config``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from quarterdeck.errors import InputError, UnsupportedOptionError

SCHEMES = ("lefthash", "selfhash")


@dataclass(frozen=True)
class WatermarkingConfig:
    """How text is marked; who looks for the mark needs the same values.

    >>> model.generate(ids, watermarking_config=WatermarkingConfig(bias=2.5, hashing_key=90217))

    Attributes:
        greenlist_ratio: part of the vocabulary that is green, above 0 and below 1.
        bias: what is added to the scores of green tokens.
        hashing_key: the secret.
        seeding_scheme: ``"lefthash"`` (the token before decides what is green) or ``"selfhash"`` (the token itself
            too: harder to learn from many texts, and slower).
        context_width: tokens that decide, with ``"selfhash"``; with ``"lefthash"`` it is always one.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15_485_863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: int = 1

    def __post_init__(self) -> None:
        is_ratio = isinstance(self.greenlist_ratio, (int, float)) and 0 < self.greenlist_ratio < 1
        self._check("greenlist_ratio", is_ratio, "a number between 0 and 1, both excluded")
        is_bias = isinstance(self.bias, (int, float)) and math.isfinite(self.bias)
        self._check("bias", is_bias, "a finite number")
        self._check("hashing_key", isinstance(self.hashing_key, int), "an integer")
        self._check("seeding_scheme", self.seeding_scheme in SCHEMES, "'lefthash' or 'selfhash'")
        is_count = isinstance(self.context_width, int) and self.context_width >= 1
        self._check("context_width", is_count, "an integer of 1 or more")

    def _check(self, name: str, holds: bool, words: str) -> None:
        if not holds:
            raise InputError(f"watermarking_config: {name}={getattr(self, name)!r} must be {words}")

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        return asdict(self)


def read_watermarking_config(value: object) -> WatermarkingConfig | None:
    """The option's value as one of ours: given so, as a dictionary, or as another library's object of the same fields.

    Raises:
        UnsupportedOptionError: fields of another kind of watermark.
        InputError: a value that cannot be right.
    """
    if value is None or isinstance(value, WatermarkingConfig):
        return value
    options = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(options, Mapping):
        raise InputError(f"watermarking_config is a {type(value).__name__}: give a WatermarkingConfig or a dictionary")
    known = {field.name for field in fields(WatermarkingConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UnsupportedOptionError(
            f"watermarking_config has {', '.join(map(repr, unknown))}: the only watermark in this version is that of "
            f"WatermarkingConfig, with {', '.join(sorted(known))} (SynthID-Text is not). Leave it out."
        )
    return WatermarkingConfig(**options)
