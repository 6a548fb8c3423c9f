"""Rotary frequencies: the six types equal transformers', and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parity import ROPES, TINY, transformers
from quarterdeck import CohereConfig
from quarterdeck.errors import ConfigError
from quarterdeck.rope import depends_on_length, rope_frequencies, rope_type

FUNCTIONS = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS


def assert_equals_transformers(fields: dict[str, Any], length: int | None) -> None:
    config = CohereConfig(**fields)
    peer = transformers.CohereConfig(**fields)
    ours = rope_frequencies(config, length)
    # a model gives the length as a tensor, once it is beyond the trained one
    given_ = length if length is None or length <= config.max_position_embeddings else torch.tensor(length)
    expected, scale = FUNCTIONS[rope_type(config)](peer, torch.device("cpu"), seq_len=given_)
    assert ours.inverse.dtype == torch.float32
    assert ours.inverse.shape == (config.head_dim // 2,)
    assert torch.allclose(ours.inverse, expected, rtol=1e-6, atol=0)
    assert math.isclose(ours.scale, scale, rel_tol=1e-12)


@pytest.mark.parametrize("case", ROPES)
@pytest.mark.parametrize("length", [None, 1, 8, 9, 64, 65, 5000])
def test_frequencies_equal_transformers(case: str, length: int | None) -> None:
    assert_equals_transformers(TINY | ROPES[case], length)


_factor = st.floats(1.0, 64.0)
_per_channel = st.lists(st.floats(0.5, 60.0), min_size=8, max_size=8)
scalings = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": _factor}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": _factor}),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": _factor},
        optional={
            "attention_factor": st.floats(0.1, 3.0),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 8.0),
            "mscale": st.floats(0.1, 2.0),
            "mscale_all_dim": st.floats(0.1, 2.0),
            "original_max_position_embeddings": st.integers(32, 8192),
            "truncate": st.booleans(),
        },
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("longrope"),
            "factor": _factor,
            "short_factor": _per_channel,
            "long_factor": _per_channel,
        },
        optional={"attention_factor": st.floats(0.1, 3.0)},
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": _factor,
            "low_freq_factor": st.floats(0.5, 2.0),
            "high_freq_factor": st.floats(2.1, 8.0),
            "original_max_position_embeddings": st.integers(32, 8192),
        }
    ),
)


@given(
    scaling=scalings,
    theta=st.floats(100.0, 1e8),
    trained=st.integers(32, 8192),
    length=st.none() | st.integers(1, 200_000),
)
@example(scaling={"rope_type": "dynamic", "factor": 16.101013745771063}, theta=27266043.0, trained=32, length=None)
@settings(max_examples=200, deadline=None)
def test_any_values_equal_transformers(scaling: dict[str, Any], theta: float, trained: int, length: int | None) -> None:
    place = {"head_dim": 16, "rope_theta": theta, "max_position_embeddings": trained}
    assert_equals_transformers(TINY | place | {"rope_scaling": scaling}, length)


def test_default_is_the_definition() -> None:
    config = CohereConfig(**TINY)
    expected = [10_000.0 ** (-2 * i / 8) for i in range(4)]
    assert rope_frequencies(config).inverse.tolist() == pytest.approx(expected, rel=1e-7)
    assert rope_frequencies(config).scale == 1.0


def test_which_types_depend_on_the_length() -> None:
    for fields in ROPES.values():
        config = CohereConfig(**(TINY | fields))
        differs = not torch.equal(rope_frequencies(config, 1).inverse, rope_frequencies(config, 100_000).inverse)
        assert depends_on_length(config) == differs


def test_old_key_of_the_type() -> None:
    old = CohereConfig(**TINY, rope_scaling={"type": "linear", "factor": 2.0})
    assert old.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert old == CohereConfig(**TINY, rope_scaling={"rope_type": "linear", "factor": 2.0})
    both = CohereConfig(**TINY, rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2.0})
    assert both == old


@pytest.mark.parametrize("case", ROPES)
def test_the_callers_dictionary_is_not_changed(case: str) -> None:
    scaling = {**ROPES[case]["rope_scaling"]}
    CohereConfig(**(TINY | ROPES[case] | {"rope_scaling": scaling}))
    assert scaling == ROPES[case]["rope_scaling"]


_YARN = {"rope_type": "yarn", "factor": 4.0}
_LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
_LLAMA = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
REFUSED: dict[str, tuple[Any, str]] = {
    "no_dictionary": (4.0, r"rope_scaling is 4.0, but must be a dictionary"),
    "no_type": ({"factor": 2.0}, r"rope_scaling is \{'factor': 2.0\}, but lacks rope_type"),
    "two_types": (
        {"type": "yarn", "rope_type": "linear", "factor": 2.0},
        r"rope_scaling names two types, type='yarn' and rope_type='linear'",
    ),
    "unknown_type": ({"rope_type": "su"}, r"'su', but must be one of default, linear, dynamic, yarn, longrope, llama3"),
    "linear_lacks": ({"rope_type": "linear"}, r"'linear' lacks factor"),
    "dynamic_lacks": ({"rope_type": "dynamic", "factor": None}, r"'dynamic' lacks factor"),
    "yarn_lacks": ({"rope_type": "yarn"}, r"'yarn' lacks factor"),
    "longrope_lacks": ({"rope_type": "longrope", "factor": 2.0}, r"'longrope' lacks long_factor, short_factor"),
    "llama3_lacks": (
        {"rope_type": "llama3", "factor": 8.0},
        r"'llama3' lacks high_freq_factor, low_freq_factor, original_max_position_embeddings",
    ),
    "default_takes_nothing": ({"rope_type": "default", "factor": 2.0}, r"does not know factor; it takes nothing but"),
    "unknown_key": (_YARN | {"beta": 3.0}, r"'yarn' does not know beta; it takes attention_factor, beta_fast"),
    "factor_below_one": ({"rope_type": "linear", "factor": 0.5}, r"factor is 0.5, but must be .* at least 1"),
    "factor_text": ({"rope_type": "linear", "factor": "2"}, r"factor is '2', but must be a number"),
    "factor_bool": ({"rope_type": "linear", "factor": True}, r"factor is True, but must be a number"),
    "factor_nan": ({"rope_type": "linear", "factor": math.nan}, r"factor is nan, but must be a number"),
    "factor_infinite": ({"rope_type": "linear", "factor": math.inf}, r"factor is inf, but must be a number"),
    "original": (
        _LLAMA | {"original_max_position_embeddings": 0},
        r"original_max_position_embeddings is 0, .*at least 1",
    ),
    "attention_factor": (_YARN | {"attention_factor": -1.0}, r"attention_factor is -1.0, but must be a number over 0"),
    "mscale": (_YARN | {"mscale": 0}, r"mscale is 0, but must be a number over 0"),
    "betas": (_YARN | {"beta_fast": 1.0, "beta_slow": 2.0}, r"beta_fast is 1.0, .*below beta_slow, 2.0"),
    "truncate": (_YARN | {"truncate": "no"}, r"truncate is 'no', but must be true or false"),
    "high_below_low": (_LLAMA | {"high_freq_factor": 1.0}, r"high_freq_factor is 1.0, but must be over .*1.0"),
    "high_text": (_LLAMA | {"high_freq_factor": "4"}, r"high_freq_factor is '4', but must be a number"),
    "factors_count": (
        _LONG | {"short_factor": [1.0] * 3},
        r"short_factor .*4 numbers over 0.*not \[1.0, 1.0, 1.0\]",
    ),
    "factors_zero": (_LONG | {"long_factor": [0.0] * 4}, r"long_factor .*list of 4 numbers over 0"),
    "factors_number": (_LONG | {"long_factor": 2.0}, r"long_factor .*list of 4 numbers over 0"),
    "longrope_scale": (_LONG | {"factor": None}, r"'longrope' needs factor or attention_factor"),
    "dynamic_original": (
        {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
        r"max_position_embeddings \(64\); original_max_position_embeddings=16 would have no effect",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    scaling, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        CohereConfig(**TINY, rope_scaling=scaling)


def test_original_length_beside_longrope() -> None:
    with pytest.raises(ConfigError, match=r"original_max_position_embeddings is 0, but must be .*at least 1"):
        CohereConfig(**TINY, rope_scaling=_LONG, original_max_position_embeddings=0)


def test_dynamic_needs_more_than_one_pair() -> None:
    fields = TINY | {"head_dim": 2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(ConfigError, match=r"'dynamic' needs heads wider than head_dim=2"):
        CohereConfig(**fields)


def test_yarn_needs_a_base_over_one() -> None:
    with pytest.raises(ConfigError, match=r"'yarn' needs a rope_theta over 1, not 1.0"):
        CohereConfig(**TINY, rope_theta=1.0, rope_scaling=_YARN)
    assert CohereConfig(**TINY, rope_theta=1.0).rope_theta == 1.0


def test_longrope_needs_a_trained_length() -> None:
    one = TINY | {"max_position_embeddings": 1}
    with pytest.raises(ConfigError, match=r"trained length of at least 2 positions, not 1; check max_position_emb"):
        CohereConfig(**one, rope_scaling=_LONG)
    with pytest.raises(ConfigError, match=r"trained length of at least 2 positions, not 1;"):
        CohereConfig(**TINY, rope_scaling=_LONG, original_max_position_embeddings=1)
    assert rope_frequencies(CohereConfig(**one, rope_scaling=_LONG | {"attention_factor": 1.5})).scale == 1.5
