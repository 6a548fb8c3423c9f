"""The cache of a call of `generate`."""

from __future__ import annotations

from inspect import signature
from typing import Any

from quarterdeck.cache.base import Cache
from quarterdeck.cache.dynamic import DynamicCache, OffloadedCache
from quarterdeck.cache.quantized import QuantizedCache
from quarterdeck.cache.static import StaticCache
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.compiled import padded_room
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import CausalModel, Plan
from quarterdeck.rope import depends_on_length

PROMPT_CHUNK = 1024
"""Positions of a prompt per run where nobody says; longer runs are not faster on the CPU, and take more memory."""


def make_cache(
    config: GenerationConfig, model: CausalModel, given: Cache | None, *, room: int, is_compiled: bool = False
) -> Cache | None:
    """The cache to use: the one given, a new one of the kind asked for, or None.

    Args:
        config: the options.
        model: whose keys and values it will hold.
        given: the caller's, if any.
        room: positions that will be fed.
        is_compiled: whether steps are; a new cache of fixed size then has the `padded_room` of many lengths.

    Raises:
        InputError: a cache is given and refused at the same time, or it is too small; a ``cache_config`` for a cache
            that has nothing to configure.
        UnsupportedOptionError: a ``cache_config`` that the cache does not know.
    """
    if given is None:
        return _new_cache(config, model, room, is_compiled) if config.use_cache else None
    if not config.use_cache:
        raise InputError("past_key_values is given with use_cache=False: drop one")
    if config.cache_implementation is not None:
        raise InputError(
            f"past_key_values is given with cache_implementation={config.cache_implementation!r}: drop one"
        )
    limit = given.get_max_length()
    if limit is not None and limit < room:
        raise InputError(
            f"past_key_values has room for {limit} positions and this call needs {room}: make a larger one, or "
            "lower max_new_tokens"
        )
    return given


def _new_cache(config: GenerationConfig, model: CausalModel, room: int, is_compiled: bool) -> Cache:
    """A cache of the kind asked for; its buffers are made by the first keys, where and of the type that those are."""
    kind = config.cache_implementation
    if config.cache_config and kind != "quantized":
        raise InputError(
            f"cache_config={config.cache_config!r} is for cache_implementation='quantized', and that is {kind!r}: set "
            "it, or leave cache_config out"
        )
    if kind == "quantized":
        return _quantized_cache(dict(config.cache_config or {}))
    if kind == "static":
        return StaticCache(model.config, padded_room(room) if is_compiled else room)
    if kind == "offloaded_static":
        return StaticCache(model.config, room, offloading=True)
    return OffloadedCache() if kind == "offloaded" else DynamicCache()


def _quantized_cache(arguments: dict[str, Any]) -> QuantizedCache:
    known = signature(QuantizedCache).parameters
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UnsupportedOptionError(
            f"cache_config has {unknown[0]!r}, which is no argument of QuantizedCache: those are {', '.join(known)}"
        )
    return QuantizedCache(**arguments)


def prompt_chunk(model: CausalModel, cache: Cache | None, plan: Plan) -> int | None:
    """Positions of the prompt per run of the model, where ``prefill_chunk_size`` does not say.

    Activations take memory in proportion: of c4ai-command-r-v01's feed-forward block alone 264 KiB per position in
    float32. On the CPU runs are therefore `PROMPT_CHUNK` long, and memory does not grow with the prompt but for the
    cache. One run it stays where that would change what comes back (states, attentions or logits of all positions),
    where rotary frequencies depend on how much has been read, and on other devices, whose fused kernels want it whole.
    Into a quantized cache prompts are read in parts too, although later ones then see what is rounded of earlier
    ones, as new tokens do: such caches are for texts so long that activations of the whole would not fit.
    """
    if plan.chunk is not None or cache is None or model.device.type != "cpu":
        return plan.chunk
    is_whole = plan.attentions or plan.hidden_states or plan.logits_to_keep != 1 or depends_on_length(model.config)
    return None if is_whole else PROMPT_CHUNK
