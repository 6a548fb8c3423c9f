"""Products with packed weights and attention over a cache, as pure functions on tensors.

Each function stands beside a reference of a few lines of PyTorch that defines it. On a CPU for which the package's
native library was built (:mod:`quarterdeck.kernels.native`), the function runs there; otherwise it is its reference.
"""
