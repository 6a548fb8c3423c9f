"""Rotary position frequencies: the six ``rope_scaling`` types as pure functions of a configuration.

Channel pair ``i`` of a head of width ``D`` turns by ``position * frequency[i]`` with
``frequency[i] = theta ** (-2 i / D)`` (Su et al., 2021, RoFormer, equation 15). The scaled types stretch those
frequencies so that a model reads further than it was trained for.

Shapes: ``D`` head width; every function returns ``[D / 2]`` float32 frequencies, on the CPU even
where models are being built without memory (``torch.device("meta")``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck.errors import ConfigError


class RopeConfig(Protocol):
    """What the functions here read of a model configuration."""

    rope_theta: float
    max_position_embeddings: int

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """Kind and numbers of the scaling; None for none."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        ...


@dataclass(frozen=True)
class Frequencies:
    """Inverse frequencies ``[D / 2]`` and the factor on cos and sin (1.0 but for yarn and longrope)."""

    inverse: Tensor
    scale: float = 1.0


def rope_frequencies(config: RopeConfig, length: int | None = None) -> Frequencies:
    """Frequencies for a sequence that reaches position ``length - 1``; only dynamic and longrope depend on it."""
    scaling = config.rope_scaling or {}
    return _ROPE_TYPES[rope_type(config)].compute(config, scaling, length)


def rope_type(config: RopeConfig) -> str:
    """The name of the scaling type, ``"default"`` where there is none."""
    return str((config.rope_scaling or {}).get("rope_type", "default"))


def depends_on_length(config: RopeConfig) -> bool:
    """Whether the frequencies change with the length of the sequence."""
    return rope_type(config) in {"dynamic", "longrope"}


def length_stretch(config: RopeConfig) -> float:
    """How many times ``max_position_embeddings`` a scaled model reads; 1.0 where that is stretched already."""
    scaling, kind = config.rope_scaling or {}, rope_type(config)
    if kind == "longrope":
        stretched = getattr(config, _ORIGINAL, None) is not None
    else:
        stretched = kind not in {"linear", "dynamic", "yarn"} or (kind == "yarn" and scaling.get(_ORIGINAL) is not None)
    return 1.0 if stretched else float(scaling.get("factor") or 1.0)


def normal_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A copy of a ``rope_scaling`` under today's key ``rope_type``; ``type`` is the older spelling.

    Raises:
        ConfigError: no dictionary, or one that names no type, or two.
    """
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling is {scaling!r}, but must be a dictionary with rope_type, or None")
    fields = dict(scaling)
    legacy = fields.pop("type", None)
    if legacy is not None and fields.setdefault("rope_type", legacy) != legacy:
        raise ConfigError(f"rope_scaling names two types, type={legacy!r} and rope_type={fields['rope_type']!r}")
    if "rope_type" not in fields:
        raise ConfigError(f"rope_scaling is {scaling!r}, but lacks rope_type")
    return fields


def split_parameters(
    parameters: Mapping[str, Any], theta: float, scaling: Mapping[str, Any] | None, default_theta: float
) -> tuple[float, dict[str, Any] | None]:
    """``rope_theta`` and ``rope_scaling`` of ``rope_parameters``, the one dictionary that transformers 5 writes.

    Args:
        parameters: ``{"rope_theta": 8e6, "rope_type": "default", ...}``.
        theta, scaling: what was given under the older names.
        default_theta: the ``theta`` that says nothing.

    Raises:
        ConfigError: no dictionary; the older names say something else; only a part of each head is to be rotated.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_parameters is {parameters!r}, but must be a dictionary with rope_theta and rope_type")
    fields = dict(parameters)
    if (part := fields.pop("partial_rotary_factor", None)) not in (None, 1):
        raise ConfigError(
            f"rope_parameters: partial_rotary_factor is {part!r}, but Cohere models rotate whole heads: 1"
        )
    found_theta = fields.pop("rope_theta", theta)
    named = normal_scaling({"rope_type": "default", **fields} if "type" not in fields else fields)
    found = None if named == {"rope_type": "default"} else named
    older = normal_scaling(scaling)
    if theta not in (default_theta, found_theta) or older not in (None, found):
        raise ConfigError(
            f"rope_parameters={parameters!r} contradicts rope_theta={theta!r}, rope_scaling={scaling!r}: give one"
        )
    return found_theta, found


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim


def _unscaled(theta: float, dim: int) -> Tensor:
    return 1.0 / theta ** _exponents(dim)


def _default(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    return Frequencies(_unscaled(config.rope_theta, config.head_dim))


def _linear(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    """Position interpolation (Chen et al., 2023): all angles divided by ``factor``."""
    return Frequencies(_unscaled(config.rope_theta, config.head_dim) / scaling["factor"])


def _dynamic(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    """NTK-aware scaling whose base grows with the length beyond ``max_position_embeddings``."""
    dim, trained, factor = config.head_dim, config.max_position_embeddings, scaling["factor"]
    if length is None or length <= trained:
        return Frequencies(_unscaled(config.rope_theta, dim))
    # float32, as the reference computes it: the base of a long sequence differs in its last bits otherwise
    ratio = torch.tensor(factor * length / trained, dtype=torch.float32, device="cpu") - (factor - 1)
    theta = float(config.rope_theta * float(ratio) ** (dim / (dim - 2)))
    return Frequencies(_unscaled(theta, dim))


def _yarn(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    """YaRN (Peng et al., 2023, sections 3.2 and 3.4): interpolate slow channels, keep fast ones, ramp between."""
    dim, theta, factor = config.head_dim, config.rope_theta, scaling["factor"]
    trained = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    low, high = _yarn_ramp(scaling, dim, theta, trained)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    inverse = _unscaled(theta, dim)
    interpolated = 1.0 / (factor * theta ** _exponents(dim))
    return Frequencies(interpolated * (1 - kept) + inverse * kept, _yarn_scale(scaling, factor))


def _yarn_ramp(scaling: Mapping[str, Any], dim: int, theta: float, trained: int) -> tuple[float, float]:
    """Channels between which the ramp runs: those that turn ``beta_fast`` and ``beta_slow`` times in training."""

    def channel(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = channel(scaling.get("beta_fast") or 32)
    high = channel(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_scale(scaling: Mapping[str, Any], factor: float) -> float:
    def magnitude(mscale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude()


def _longrope(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    """LongRoPE (Ding et al., 2024): one searched factor per channel, a second set beyond the trained length."""
    trained, factor = longrope_lengths(config, scaling)
    scale = scaling.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))
    stretch = scaling["long_factor"] if length is not None and length > trained else scaling["short_factor"]
    factors = torch.tensor(stretch, dtype=torch.float32, device="cpu")
    return Frequencies(1.0 / (factors * config.rope_theta ** _exponents(config.head_dim)), float(scale))


def longrope_lengths(config: RopeConfig, scaling: Mapping[str, Any]) -> tuple[int, float]:
    """Trained length and stretch factor; a top-level ``original_max_position_embeddings`` decides both."""
    original = getattr(config, "original_max_position_embeddings", None)
    if original is not None:
        return int(original), config.max_position_embeddings / original
    return config.max_position_embeddings, float(scaling.get("factor") or 1.0)


def _llama3(config: RopeConfig, scaling: Mapping[str, Any], length: int | None) -> Frequencies:
    """Llama 3.1's rule: long waves divided by ``factor``, short ones kept, a smooth passage between them."""
    inverse = _unscaled(config.rope_theta, config.head_dim)
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / inverse
    smooth = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
    return Frequencies((1 - smooth) * inverse / factor + smooth * inverse)


@dataclass(frozen=True)
class _RopeType:
    compute: Callable[[RopeConfig, Mapping[str, Any], int | None], Frequencies]
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


_ORIGINAL = "original_max_position_embeddings"
_ROPE_TYPES: Mapping[str, _RopeType] = {
    "default": _RopeType(_default),
    "linear": _RopeType(_linear, frozenset({"factor"})),
    "dynamic": _RopeType(_dynamic, frozenset({"factor"}), frozenset({_ORIGINAL})),
    "yarn": _RopeType(
        _yarn,
        frozenset({"factor"}),
        frozenset({"attention_factor", "beta_fast", "beta_slow", _ORIGINAL, "mscale", "mscale_all_dim", "truncate"}),
    ),
    "longrope": _RopeType(
        _longrope, frozenset({"short_factor", "long_factor"}), frozenset({"attention_factor", "factor"})
    ),
    "llama3": _RopeType(_llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL})),
}


def validate_rope(config: RopeConfig) -> None:
    """Check ``config.rope_scaling``; raises ConfigError that names the key, its value and what it may be."""
    scaling = config.rope_scaling
    if scaling is None:
        return
    kind = rope_type(config)
    if kind not in _ROPE_TYPES:
        raise ConfigError(f"rope_scaling: rope_type is {kind!r}, but must be one of {', '.join(_ROPE_TYPES)}")
    rule = _ROPE_TYPES[kind]
    given = {key for key, value in scaling.items() if value is not None} - {"rope_type"}
    if missing := rule.required - given:
        raise ConfigError(f"rope_scaling of type {kind!r} lacks {', '.join(sorted(missing))}")
    if unknown := given - rule.required - rule.optional:
        allowed = ", ".join(sorted(rule.required | rule.optional)) or "nothing but rope_type"
        raise ConfigError(
            f"rope_scaling of type {kind!r} does not know {', '.join(sorted(unknown))}; it takes {allowed}"
        )
    _validate_numbers(scaling)
    _validate_relations(config, kind, scaling)


_AT_LEAST: Mapping[str, float] = {"factor": 1.0, _ORIGINAL: 1}
_POSITIVE = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
)


def is_number(value: object) -> bool:
    """Whether this is a finite number, and no truth value."""
    limit = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def _validate_numbers(scaling: Mapping[str, Any]) -> None:
    for key, value in scaling.items():
        if value is None:
            continue
        if key in _AT_LEAST and not (is_number(value) and value >= _AT_LEAST[key]):
            raise ConfigError(f"rope_scaling: {key} is {value!r}, but must be a number of at least {_AT_LEAST[key]:g}")
        if key in _POSITIVE and not (is_number(value) and value > 0):
            raise ConfigError(f"rope_scaling: {key} is {value!r}, but must be a number over 0")
        if key == "truncate" and not isinstance(value, bool):
            raise ConfigError(f"rope_scaling: truncate is {value!r}, but must be true or false")


def _validate_relations(config: RopeConfig, kind: str, scaling: Mapping[str, Any]) -> None:
    if kind == "longrope":
        _validate_longrope(config, scaling)
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    if kind == "yarn" and fast < slow:
        raise ConfigError(f"rope_scaling: beta_fast is {fast!r}, but must not be below beta_slow, {slow!r}")
    if kind == "yarn" and config.rope_theta <= 1:
        raise ConfigError(f"rope_scaling of type 'yarn' needs a rope_theta over 1, not {config.rope_theta!r}")
    if kind == "dynamic" and config.head_dim == 2:
        raise ConfigError("rope_scaling of type 'dynamic' needs heads wider than head_dim=2")
    if kind == "llama3" and not scaling["high_freq_factor"] > scaling["low_freq_factor"]:
        raise ConfigError(
            f"rope_scaling: high_freq_factor is {scaling['high_freq_factor']!r}, but must be over "
            f"low_freq_factor, {scaling['low_freq_factor']!r}"
        )
    original = scaling.get(_ORIGINAL)
    if kind == "dynamic" and original not in (None, config.max_position_embeddings):
        raise ConfigError(
            f"rope_scaling of type 'dynamic' grows from max_position_embeddings ({config.max_position_embeddings}); "
            f"{_ORIGINAL}={original!r} would have no effect: leave it out"
        )


def _validate_longrope(config: RopeConfig, scaling: Mapping[str, Any]) -> None:
    for key in ("short_factor", "long_factor"):
        value, count = scaling[key], config.head_dim // 2
        numbers = isinstance(value, list | tuple) and all(is_number(item) and item > 0 for item in value)
        if not numbers or len(value) != count:
            raise ConfigError(
                f"rope_scaling: {key} must be a list of {count} numbers over 0, one per channel pair, not {value!r}"
            )
    original = getattr(config, _ORIGINAL, None)
    if original is not None and not (is_number(original) and original >= 1):
        raise ConfigError(f"{_ORIGINAL} is {original!r}, but must be a number of at least 1")
    if scaling.get("factor") is None and scaling.get("attention_factor") is None and original is None:
        raise ConfigError("rope_scaling of type 'longrope' needs factor or attention_factor")
    trained, factor = longrope_lengths(config, scaling)
    if trained < 2 and factor > 1 and scaling.get("attention_factor") is None:
        raise ConfigError(
            f"rope_scaling of type 'longrope' with factor {factor:g} needs a trained length of at least 2 positions, "
            f"not {trained}; check max_position_embeddings, or give attention_factor"
        )
