"""Smaller weights, from outside: functions over a built model that replace its linears and embeddings by name.

`config` and `bnb_config` say how; `modules` are what takes the places of linears and embeddings; `loading` is the
receiver that quantizes a checkpoint while it is read, tensor by tensor. Nothing here imports the model.
"""
