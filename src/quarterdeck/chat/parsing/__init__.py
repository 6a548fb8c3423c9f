"""The state machines behind `quarterdeck.chat.parser`."""
