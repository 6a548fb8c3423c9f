"""Every generation option that exists, by name, in one table.

An option without a ``reason`` is implemented. One with a ``reason`` is known (its name is valid in a
``generation_config.json`` and on a `GenerationConfig`) but has an effect that this version does not have:
it may keep its default, and any other value is refused with that reason. A name that is not here is a typo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONSTRAINED = (
    "beams that must contain given words are not in this version, and in transformers they are about to leave; a "
    "logits_processor, or a grammar (response_format of LLM.chat), demands words and shapes"
)
IS_ASSISTANT = "a model drafts for another one where it is passed to generate() as assistant_model"
EARLY_EXIT = (
    "drafts by a model's own first layers need a model that was trained to answer from them, and no Cohere checkpoint "
    "was; prompt_lookup_num_tokens guesses without a second model"
)
TOKENIZERS = (
    "drafts of an assistant with another tokenizer are not in this version; choose an assistant that has the model's "
    "tokenizer, or prompt_lookup_num_tokens, which needs no assistant"
)
HEALING = (
    "a prompt is taken as it was tokenized; end it before a word that may go on, or let prefix_allowed_tokens_fn allow "
    "only tokens that go on with it"
)
ENCODER = "it belongs to encoder-decoder models, and Cohere models have no encoder"
CONTRASTIVE = (
    "contrastive search is not in this version, and transformers 4.56 only downloads and runs code for it; "
    "repetition_penalty or no_repeat_ngram_size keep a text from repeating itself"
)
DOLA = "this method is not in this version, and transformers 4.56 only downloads and runs code for it"
LOW_MEMORY = (
    "beams are run together, and transformers 4.56 refuses it as well; prompts are copied for their beams after they "
    "were run, and prefill_chunk_size lowers what running them takes"
)


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
    Option("num_beams", 1),
    Option("num_beam_groups", 1),
    Option("early_stopping", False),
    Option("diversity_penalty", 0.0),
    Option("length_penalty", 1.0),
    Option("force_words_ids", None, CONSTRAINED),
    Option("constraints", None, CONSTRAINED),
    # the cache
    Option("use_cache", True),
    Option("cache_implementation", None),
    Option("prefill_chunk_size", None),
    Option("cache_config", None),
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
    Option("guidance_scale", None),
    Option("watermarking_config", None),
    Option("token_healing", False, HEALING, (None,)),
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
    Option("is_assistant", False, IS_ASSISTANT, (None,)),
    Option("num_assistant_tokens", 20),
    Option("num_assistant_tokens_schedule", "constant"),
    Option("assistant_confidence_threshold", 0.4),
    Option("prompt_lookup_num_tokens", None),
    Option("max_matching_ngram_size", None),
    Option("assistant_early_exit", None, EARLY_EXIT),
    Option("assistant_lookbehind", 10, TOKENIZERS, (None,)),
    Option("target_lookbehind", 10, TOKENIZERS, (None,)),
    # compilation
    Option("compile_config", None),
    Option("disable_compile", False),
    # methods that left transformers
    Option("low_memory", None, LOW_MEMORY, (False,)),
    Option("penalty_alpha", None, CONTRASTIVE, (0, 0.0)),
    Option("dola_layers", None, DOLA),
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
    "assistant_model": None,
    "assistant_tokenizer": TOKENIZERS,
    "prefix_allowed_tokens_fn": None,
    "negative_prompt_ids": None,
    "negative_prompt_attention_mask": None,
    "custom_generate": "code from a checkpoint is never run",
    "trust_remote_code": "code from a checkpoint is never run",
    "synced_gpus": "generation over several processes is not in this version",
}
"""Arguments of ``generate`` that are no options; with a reason where this version refuses them."""
