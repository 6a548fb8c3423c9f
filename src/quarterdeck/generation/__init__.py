"""Generating text: options, what is done to the logits, when to stop, and the loop itself."""
