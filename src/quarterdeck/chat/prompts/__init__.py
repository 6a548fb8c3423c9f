"""From a conversation to the text and token ids of a prompt."""
