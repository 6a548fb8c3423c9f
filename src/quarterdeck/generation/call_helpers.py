"""Arguments of `generate` that are no options: an assistant, a function that allows tokens, another prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.assemble import MadeForCall
from quarterdeck.generation.assistance import Assistant
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import CausalModel
from quarterdeck.generation.guidance import UnbatchedClassifierFreeGuidanceLogitsProcessor, checked_negative_prompt
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.processors import PrefixConstrainedLogitsProcessor, ProcessorFunction
from quarterdeck.generation.watermark import WatermarkLogitsProcessor


@dataclass(frozen=True)
class CallHelpers:
    """Those of one call; the fields have the names of the arguments."""

    assistant_model: Assistant | None = None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Iterable[int]] | None = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> CallHelpers:
        """Those that are among ``options``, which they leave."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__ if name in options})

    def processors(self, config: GenerationConfig, model: CausalModel, prompt: Prompt, max_length: int) -> MadeForCall:
        """The logits processors that these arguments, or options about the model, ask for.

        Args:
            config: the options.
            model: the model that generates.
            prompt: with a row for each that is generated.
            max_length: tokens that a row can reach, prompt included.

        Raises:
            InputError: arguments that do not fit the prompt or each other.
            UnsupportedOptionError: guidance of beams.
        """
        mark = config.watermarking_config
        vocabulary = model.config.vocab_size
        return MadeForCall(
            guidance=self._guidance(config, model, prompt, max_length),
            allowed=self._allowed(max(1, (config.num_beams or 1) // (config.num_beam_groups or 1))),
            watermark=None if mark is None else WatermarkLogitsProcessor(mark, vocabulary, prompt.ids.device),
        )

    def _allowed(self, beams: int) -> ProcessorFunction | None:
        """``beams`` are the rows of each prompt that processors see at once: those of a group."""
        function = self.prefix_allowed_tokens_fn
        if function is None:
            return None
        if not callable(function):
            raise InputError(
                f"prefix_allowed_tokens_fn={function!r} cannot be called: give a function (row, ids) -> token ids"
            )
        return PrefixConstrainedLogitsProcessor(function, beams)

    def _guidance(
        self, config: GenerationConfig, model: CausalModel, prompt: Prompt, max_length: int
    ) -> ProcessorFunction | None:
        scale = config.guidance_scale
        if scale in (None, 1):
            if self.negative_prompt_ids is not None:
                raise InputError("negative_prompt_ids has no effect without guidance_scale: set it above 1")
            return None
        if (config.num_beams or 1) > 1:
            raise UnsupportedOptionError(
                f"guidance_scale={scale} with num_beams={config.num_beams} is refused: the other prompt's rows would "
                "not follow the beams. Set num_beams=1."
            )
        copies = config.num_return_sequences or 1
        ids, mask = checked_negative_prompt(
            self.negative_prompt_ids,
            self.negative_prompt_attention_mask,
            prompt.rows // copies,
            model.config.vocab_size,
        )
        context, new = model.config.context_length, max_length - prompt.ids.shape[1]
        if ids is not None and ids.shape[1] + new > context:
            raise InputError(
                f"negative_prompt_ids has {ids.shape[1]} tokens, {new} new ones are asked for, and the model's context "
                f"is {context}: shorten it, or lower max_new_tokens"
            )
        ids, mask = (None if part is None else part.repeat_interleave(copies, dim=0) for part in (ids, mask))
        return UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model, ids, mask, bool(config.use_cache))
