"""Chat: conversations, documents and tools to prompts, and a model's text to answers. Never imports torch."""

from quarterdeck.chat.agent import Agent, AgentResult
from quarterdeck.chat.answers.answering import Generate, TextStream, answer, stream_answer
from quarterdeck.chat.answers.response import ChatResponse, TokenLogprob
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.documents.checking import check_citations, supported
from quarterdeck.chat.documents.reading import read_documents_from
from quarterdeck.chat.messages import Citation, Document, Message, Source, Tool, ToolCall, Usage
from quarterdeck.chat.template import Prompt, render

__all__ = [
    "Agent",
    "AgentResult",
    "ChatResponse",
    "Citation",
    "Document",
    "Generate",
    "Message",
    "Prompt",
    "SamplingParams",
    "Source",
    "TextStream",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Usage",
    "answer",
    "check_citations",
    "read_documents_from",
    "render",
    "stream_answer",
    "supported",
]
