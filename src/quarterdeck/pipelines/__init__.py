"""``pipeline("text-generation")``: text or conversations in, text out, in one call."""

from quarterdeck.pipelines.factory import pipeline
from quarterdeck.pipelines.text_generation import TextGenerationPipeline

__all__ = ["TextGenerationPipeline", "pipeline"]
