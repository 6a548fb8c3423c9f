"""Kernels in Triton: run in its interpreter, in a process of its own, and compiled for real GPUs, which needs none."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from quarterdeck.errors import InputError
from quarterdeck.fusion import fuse_model

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
SIZE = ("i32", 16)
"""A number that is a multiple of 16, as sizes of real models are: what lets a thread read 16 bytes at a time."""


def test_in_the_interpreter() -> None:
    """Triton decides when it is imported whether it interprets; other tests must not notice."""
    tests = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def compiled(kernel: Any, capability: int, **arguments: Any) -> Any:
    """A kernel for a GPU of ``capability``: strings are types, pointers aligned; others are known when compiling."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = [["tt.divisibility", 16]]
    signature, constants, attributes = {}, {}, {}
    for number, name in enumerate(kernel.arg_names):
        value = arguments.pop(name)
        is_size = value == SIZE
        signature[name] = value[0] if is_size else value if isinstance(value, str) else "constexpr"
        if signature[name] == "constexpr":
            constants[(number,)] = value
        elif is_size or value.startswith("*"):
            attributes[(number,)] = aligned
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return build(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **arguments})


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


FORMS: dict[str, dict[str, Any]] = {
    "int4": {"kind": 0, "middle": 8, "group": 4, "scale": "*fp16", "minimum": None, "per_word": 8},
    "int4 asymmetric": {"kind": 0, "middle": 0, "group": 8, "scale": "*fp16", "minimum": "*fp16", "per_word": 8},
    "int8": {"kind": 1, "middle": 8, "group": 0, "scale": "*fp32", "minimum": None, "per_word": 4},
    "int8 in groups": {"kind": 1, "middle": 8, "group": 8, "scale": "*fp16", "minimum": None, "per_word": 4},
    "fp8": {"kind": 2, "middle": 8, "group": 0, "scale": "*fp32", "minimum": None, "per_word": 4},
}
SHARED: dict[str, Any] = {"x": "*bf16", "words": "*i32", "bias": None, "output": "*bf16", "interpreted": False}


@pytest.mark.parametrize("form", ["int4 asymmetric", "int8"])
def test_one_row_reads_sixteen_bytes_per_thread_and_waits_for_nobody(form: str) -> None:
    from quarterdeck.kernels.triton.products import _one_row

    sizes = {"n": SIZE, "k": SIZE, "w": SIZE, "part": SIZE, "is_last": True, "rows": 16, "block": 64}
    code = compiled(_one_row, 90, **SHARED, **FORMS[form], **sizes).asm["ptx"]
    assert "evict_first.L2::cache_hint.v4.b32" in code
    loop = code[code.index("$L__BB0_") : code.rindex("bra")]
    assert loop.count("bar.sync") < FORMS[form]["per_word"], "activations go to where they are needed without a detour"


@pytest.mark.parametrize(("capability", "batch"), [(80, 64), (90, 8)])
def test_few_rows_go_to_the_matrix_units(capability: int, batch: int) -> None:
    from quarterdeck.kernels.triton.products import _few_rows

    sizes = {"m": "i32", "n": SIZE, "w": SIZE, "part": SIZE, "is_last": False, "rows": 64, "block": 32, "batch": batch}
    stages = 3 if batch <= 16 else 2
    built = compiled(
        _few_rows, capability, **(SHARED | {"output": "*fp32"}), **FORMS["int4 asymmetric"], **sizes, num_stages=stages
    )
    assert "mma" in built.asm["ptx"]
    assert built.metadata.shared <= 99 * 1024, "what the smaller GPUs have"


def test_attention_of_one_token_compiles() -> None:
    from quarterdeck.kernels.triton.attention import _attend_part, _merge

    steps = {f"{kept}_{axis}": SIZE for kept in ("key", "value") for axis in ("row", "head", "step")}
    buffers = {"weighted": "*fp32", "statistics": "*fp32"}
    shape = {"shared": 8, "heads": 16, "width": 128, "columns": 128, "interpreted": False}
    inputs = {"query": "*bf16", "key": "*bf16", "value": "*bf16", "last": "*i64", "padding": "*i1", "scale": "fp32"}
    given = inputs | buffers | steps | shape | {"groups": "i32", "padding_row": "i32", "block": 64}
    built = compiled(_attend_part, 80, **given)
    assert "mma" in built.asm["ptx"]
    assert built.metadata.shared <= 99 * 1024
    assert compiled(_merge, 90, **buffers, **shape, output="*bf16", parts=32).asm["cubin"]


def test_elementwise_and_the_rest_compile() -> None:
    from quarterdeck.kernels.triton import elementwise, products

    flat = {"size": SIZE, "block": 1024, "interpreted": False, "output": "*bf16"}
    assert compiled(elementwise._silu_multiply, 90, gate="*bf16", up="*bf16", **flat).asm["cubin"]
    assert compiled(elementwise._add_parallel, 90, x="*bf16", attended="*bf16", fed="*bf16", **flat).asm["cubin"]
    norm = {"x": "*bf16", "weight": "*bf16", "output": "*bf16", "width": SIZE, "groups": "i32", "eps": "fp32"}
    assert compiled(elementwise._layer_norm, 90, **norm, block=8192, interpreted=False).asm["cubin"]
    tensors = ("query", "key", "cos", "sin", "query_output", "key_output")
    sizes: dict[str, Any] = {"heads": "i32", "groups": "i32", "length": "i32", "rows": "i32"}
    turn = dict.fromkeys(tensors, "*bf16") | sizes | {"pairs": 64, "block": 64, "some": 8, "interpreted": False}
    assert compiled(elementwise._rotate, 90, **turn).asm["cubin"]
    finish = {"parts": "*fp32", "bias": "*bf16", "output": "*bf16", "size": SIZE, "n": SIZE, "count": "i32"}
    assert compiled(products._finish, 90, **finish, block=1024, interpreted=False).asm["cubin"]
    for form in (FORMS["int4 asymmetric"], FORMS["int8 in groups"], FORMS["fp8"]):
        given = {name: value for name, value in form.items() if name != "per_word"}
        given |= {"words": "*i32", "output": "*bf16", "n": SIZE, "k": SIZE, "w": SIZE, "rows": 16, "block": 32}
        assert "st.global.v4" in compiled(products._unpack, 90, **given, interpreted=False).asm["ptx"]


def test_only_models_of_the_architecture_are_fused() -> None:
    from torch import nn

    with pytest.raises(InputError, match="Linear has no CohereDecoderLayer"):
        fuse_model(nn.Linear(2, 2))
