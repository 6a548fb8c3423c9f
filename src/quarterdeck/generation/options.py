"""Every generation option that exists, by name, in one table.

An option without a ``reason`` is implemented. One with a ``reason`` is known (its name is valid in a
``generation_config.json`` and on a `GenerationConfig`) but has an effect that this version does not have:
it may keep its default, and any other value is refused with that reason. A name that is not here is a typo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BEAMS = "beam search is not in this version"
ASSISTED = "assisted decoding is not in this version"
ENCODER = "it belongs to encoder-decoder models, and Cohere models have no encoder"
REMOVED = "the decoding method behind it is not in this version"


@dataclass(frozen=True)
class Option:
    """One option: its name, its default, and why another value is refused (None: it is implemented)."""

    name: str
    default: Any
    reason: str | None = None
    harmless: tuple[Any, ...] = ()
    """Further values, besides the default, that ask for what happens anyway."""

    def refuses(self, value: Any) -> bool:
        """Whether ``value`` asks for something that this version does not have."""
        return self.reason is not None and value != self.default and value not in self.harmless


_TABLE = (
    # how long
    Option("max_length", 20),
    Option("max_new_tokens", None),
    Option("min_length", 0),
    Option("min_new_tokens", None),
    Option("max_time", None),
    Option("stop_strings", None),
    # which method
    Option("do_sample", False),
    Option("num_return_sequences", 1),
    Option("num_beams", 1, BEAMS, (None,)),
    Option("num_beam_groups", 1, BEAMS, (None,)),
    Option("early_stopping", False, BEAMS, (None,)),
    Option("diversity_penalty", 0.0, BEAMS, (None,)),
    Option("length_penalty", 1.0, BEAMS, (None,)),
    Option("force_words_ids", None, BEAMS),
    Option("constraints", None, BEAMS),
    # the cache
    Option("use_cache", True),
    Option("cache_implementation", None),
    Option("prefill_chunk_size", None),
    Option("cache_config", None, "the caches of this version (dynamic, static) have nothing to configure", ({},)),
    Option("return_legacy_cache", None, "caches are objects here, never tuples of tuples", (False,)),
    # the logits
    Option("temperature", 1.0),
    Option("top_k", 50),
    Option("top_p", 1.0),
    Option("min_p", None),
    Option("typical_p", 1.0),
    Option("epsilon_cutoff", 0.0),
    Option("eta_cutoff", 0.0),
    Option("repetition_penalty", 1.0),
    Option("no_repeat_ngram_size", 0),
    Option("bad_words_ids", None),
    Option("sequence_bias", None),
    Option("logit_bias", None),
    Option("suppress_tokens", None),
    Option("begin_suppress_tokens", None),
    Option("forced_bos_token_id", None),
    Option("forced_eos_token_id", None),
    Option("exponential_decay_length_penalty", None),
    Option("renormalize_logits", False),
    Option("remove_invalid_values", False),
    Option("guidance_scale", None, "classifier-free guidance is not in this version", (1, 1.0)),
    Option("watermarking_config", None, "watermarking is not in this version"),
    Option("token_healing", False, "token healing is not in this version", (None,)),
    Option("encoder_repetition_penalty", 1.0, ENCODER, (None,)),
    Option("encoder_no_repeat_ngram_size", 0, ENCODER, (None,)),
    Option("decoder_start_token_id", None, ENCODER),
    # what comes back
    Option("return_dict_in_generate", False),
    Option("output_scores", False),
    Option("output_logits", None),
    Option("output_attentions", False),
    Option("output_hidden_states", False),
    # special tokens
    Option("pad_token_id", None),
    Option("bos_token_id", None),
    Option("eos_token_id", None),
    # assisted decoding
    Option("is_assistant", False, ASSISTED),
    Option("num_assistant_tokens", 20, ASSISTED),
    Option("num_assistant_tokens_schedule", "constant", ASSISTED),
    Option("assistant_confidence_threshold", 0.4, ASSISTED),
    Option("prompt_lookup_num_tokens", None, ASSISTED),
    Option("max_matching_ngram_size", None, ASSISTED),
    Option("assistant_early_exit", None, ASSISTED),
    Option("assistant_lookbehind", 10, ASSISTED),
    Option("target_lookbehind", 10, ASSISTED),
    # compilation
    Option("compile_config", None, "nothing is compiled in this version"),
    Option("disable_compile", False, "nothing is compiled in this version", (True, None)),
    # methods that left transformers
    Option("low_memory", None, REMOVED, (False,)),
    Option("penalty_alpha", None, REMOVED, (0, 0.0)),
    Option("dola_layers", None, REMOVED),
)

OPTIONS: dict[str, Option] = {option.name: option for option in _TABLE}
"""Every known option by name."""

IMPLEMENTED: tuple[str, ...] = tuple(option.name for option in _TABLE if option.reason is None)
"""Names of the options that have their full effect."""

CALL_ARGUMENTS: dict[str, str | None] = {
    "inputs": None,
    "logits_processor": None,
    "stopping_criteria": None,
    "streamer": None,
    "tokenizer": None,
    "seed": None,
    "generator": None,
    "use_model_defaults": None,
    "assistant_model": ASSISTED,
    "assistant_tokenizer": ASSISTED,
    "prefix_allowed_tokens_fn": "write a logits processor instead: a function (input_ids, scores) -> scores",
    "negative_prompt_ids": "classifier-free guidance is not in this version",
    "negative_prompt_attention_mask": "classifier-free guidance is not in this version",
    "custom_generate": "code from a checkpoint is never run",
    "trust_remote_code": "code from a checkpoint is never run",
    "synced_gpus": "generation over several processes is not in this version",
}
"""Arguments of ``generate`` that are no options; with a reason where this version refuses them."""
