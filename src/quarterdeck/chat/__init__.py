"""Chat: conversations, documents and tools to prompts, and a model's text to answers. Never imports torch."""
