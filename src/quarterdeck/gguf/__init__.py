"""GGUF files: the container, and what its metadata say of a model and its tokenizer.

`container` reads and writes the file format, `names` has what tensors are called, `metadata` and `vocabulary` translate
between the keys of architecture ``command-r`` and this package's configuration and tokenizer. Values of tensors are
`quarterdeck.weights.gguf`'s; nothing here imports torch.
"""
