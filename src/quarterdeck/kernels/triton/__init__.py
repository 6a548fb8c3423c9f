"""Kernels in Triton for GPUs, each beside its reference in PyTorch.

Nothing here is imported on a machine without Triton: who has a tensor asks :func:`usable` first, and imports the
module with the kernel inside the function that calls it. Triton's interpreter (``TRITON_INTERPRET=1`` before Triton is
imported) runs the same kernels on a CPU, slowly; that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

from torch import Tensor


def usable(tensor: Tensor) -> bool:
    """Whether kernels of this folder can run on ``tensor``: on CUDA with Triton, or in Triton's interpreter."""
    return (tensor.is_cuda or is_interpreted()) and _is_installed()


@functools.cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton was told to interpret kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"
