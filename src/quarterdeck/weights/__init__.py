"""Weights on disk: finding the files of a checkpoint, reading, loading into a model, saving.

Only safetensors is read and written. Formats built on pickle can run code when they are opened, so none is.
"""
