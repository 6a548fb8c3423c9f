"""From the text of a model to an answer: requests, events, stop strings, responses."""
