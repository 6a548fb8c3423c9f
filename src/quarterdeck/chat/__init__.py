"""Chat: conversations, documents and tools to prompts, and a model's text to answers. Never imports torch."""

from quarterdeck.chat.messages import Citation, Document, Message, Source, Tool, ToolCall, Usage
from quarterdeck.chat.template import Prompt, render

__all__ = ["Citation", "Document", "Message", "Prompt", "Source", "Tool", "ToolCall", "Usage", "render"]
