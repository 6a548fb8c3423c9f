"""Quarterdeck: Cohere's Command-R family on your own hardware.

Names are imported when they are first used, so that ``import quarterdeck`` loads neither torch nor tokenizers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quarterdeck._version import __version__
from quarterdeck.errors import QuarterdeckError

if TYPE_CHECKING:
    from quarterdeck.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from quarterdeck.cache import Cache, DynamicCache, OffloadedCache, QuantizedCache, StaticCache
    from quarterdeck.chat.agent import Agent
    from quarterdeck.chat.answers.response import ChatResponse
    from quarterdeck.chat.answers.sampling import SamplingParams
    from quarterdeck.chat.messages import Citation, Document, Message, Tool, ToolCall
    from quarterdeck.config import CohereConfig
    from quarterdeck.generation.compile_config import CompileConfig
    from quarterdeck.generation.config import GenerationConfig
    from quarterdeck.generation.constrained import GrammarLogitsProcessor
    from quarterdeck.generation.processors import LogitsProcessor, LogitsProcessorList
    from quarterdeck.generation.stopping import StoppingCriteria, StoppingCriteriaList
    from quarterdeck.generation.streamers import TextIteratorStreamer, TextStreamer
    from quarterdeck.generation.watermark_config import WatermarkingConfig
    from quarterdeck.llm import LLM
    from quarterdeck.memory.plan import MemoryPlan, plan_memory
    from quarterdeck.model import CohereForCausalLM, CohereModel
    from quarterdeck.pipelines import pipeline
    from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
    from quarterdeck.quantization.config import QuantizationConfig
    from quarterdeck.tokenizer import BatchEncoding, CohereTokenizer, CohereTokenizerFast
    from quarterdeck.visualize import AttentionMaskVisualizer, AttentionView

__all__ = [
    "LLM",
    "Agent",
    "AttentionMaskVisualizer",
    "AttentionView",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BatchEncoding",
    "BitsAndBytesConfig",
    "Cache",
    "ChatResponse",
    "Citation",
    "CohereConfig",
    "CohereForCausalLM",
    "CohereModel",
    "CohereTokenizer",
    "CohereTokenizerFast",
    "CompileConfig",
    "Document",
    "DynamicCache",
    "GenerationConfig",
    "GrammarLogitsProcessor",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MemoryPlan",
    "Message",
    "OffloadedCache",
    "QuantizationConfig",
    "QuantizedCache",
    "QuarterdeckError",
    "SamplingParams",
    "StaticCache",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
    "Tool",
    "ToolCall",
    "WatermarkingConfig",
    "__version__",
    "pipeline",
    "plan_memory",
]

_HOMES = {
    "Agent": "chat.agent",
    "AttentionMaskVisualizer": "visualize",
    "AttentionView": "visualize",
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoTokenizer": "auto",
    "BatchEncoding": "tokenizer",
    "BitsAndBytesConfig": "quantization.bnb_config",
    "Cache": "cache",
    "ChatResponse": "chat.answers.response",
    "Citation": "chat.messages",
    "CohereConfig": "config",
    "CohereForCausalLM": "model",
    "CohereModel": "model",
    "CohereTokenizer": "tokenizer",
    "CohereTokenizerFast": "tokenizer",
    "Document": "chat.messages",
    "CompileConfig": "generation.compile_config",
    "DynamicCache": "cache",
    "GenerationConfig": "generation.config",
    "GrammarLogitsProcessor": "generation.constrained",
    "LLM": "llm",
    "LogitsProcessor": "generation.processors",
    "LogitsProcessorList": "generation.processors",
    "MemoryPlan": "memory.plan",
    "Message": "chat.messages",
    "OffloadedCache": "cache",
    "QuantizationConfig": "quantization.config",
    "QuantizedCache": "cache",
    "SamplingParams": "chat.answers.sampling",
    "StaticCache": "cache",
    "StoppingCriteria": "generation.stopping",
    "StoppingCriteriaList": "generation.stopping",
    "TextIteratorStreamer": "generation.streamers",
    "TextStreamer": "generation.streamers",
    "Tool": "chat.messages",
    "ToolCall": "chat.messages",
    "WatermarkingConfig": "generation.watermark_config",
    "pipeline": "pipelines",
    "plan_memory": "memory.plan",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quarterdeck' has no attribute {name!r}")
    value = getattr(import_module(f"quarterdeck.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
