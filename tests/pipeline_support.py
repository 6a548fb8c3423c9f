"""Options and messages that the tests of the pipeline share."""

GREEDY = {"do_sample": False, "max_new_tokens": 8}
USER = {"role": "user", "content": "Where do penguins live?"}
SYSTEM = {"role": "system", "content": "Answer briefly."}
ASSISTANT = {"role": "assistant", "content": "In the South"}
