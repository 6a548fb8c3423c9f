"""The floors that `quarterdeck.tokenizer` stands on, bottom to top, one file each.

    vocabulary      ids and tokens
    special_tokens  tokens that have a name
    encoder         text to ids
    decoder         ids to text
    chat            conversations to prompts
    surround        what is put around texts
    (tokenizer)     CohereTokenizerFast: construction and files

Beside them: ``encoding`` (what encoding returns), ``options`` (what can be asked of it), ``padding``, ``truncation``,
``tensors``, ``incremental`` (decoding a stream), ``jinja`` (running templates), ``backend``, ``files``, ``training``.
"""
