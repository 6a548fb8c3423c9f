"""Loading takes the memory of the model and of one tensor, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from quarterdeck.config import CohereConfig
from quarterdeck.model import CohereForCausalLM

MB = 10**6
SLACK = 32 * MB  # for what Python, torch and the allocator take on the way
FIELDS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "eos_token_id": 7,
}
LARGEST = 4 * 1024 * 4096  # bytes of the largest tensor in float32
WEIGHTS = 4 * (3 * (4 * 1024**2 + 3 * 1024 * 4096 + 1024) + 1000 * 1024 + 1024)  # bytes of all in float32: 205 MB

SCRIPT = """
import json, sys
from quarterdeck.model import CohereForCausalLM

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024

def measure(folder, options):
    CohereForCausalLM.from_pretrained(sys.argv[1] + "/tiny", **options)  # what is imported and set up at the first use
    open("/proc/self/clear_refs", "w").write("5")  # the highest mark starts anew
    before = status("VmRSS")
    model = CohereForCausalLM.from_pretrained(sys.argv[1] + "/" + folder, **options)
    return {"peak": status("VmHWM") - before, "bytes": model.get_memory_footprint()}

print(json.dumps({key: measure(*key.split()[:1], options) for key, options in json.loads(sys.argv[2]).items()}))
"""
RUNS: dict[str, dict[str, str]] = {
    "float32": {},
    "shards": {},
    "float32 to bfloat16": {"dtype": "bfloat16"},
    "shards to bfloat16": {"dtype": "bfloat16"},
    "bfloat16 to float32": {},
}

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through Linux's /proc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 205 MB, 103 MB and next to nothing."""
    folder = tmp_path_factory.mktemp("memory")
    model = CohereForCausalLM(CohereConfig(**FIELDS))
    model.save_pretrained(folder / "float32")
    model.save_pretrained(folder / "shards", max_shard_size="50MB")
    model.to(torch.bfloat16).save_pretrained(folder / "bfloat16")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "eos_token_id": 7, "vocab_size": 100}
    CohereForCausalLM(CohereConfig(num_attention_heads=2, **small)).save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def measured(folders: Path) -> dict[str, dict[str, int]]:
    """For each run the highest mark above the start, and the size of the model, in bytes."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what a run frees is given back at once
    command = [sys.executable, "-c", SCRIPT, str(folders), json.dumps(RUNS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, int]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("run", ["float32", "shards"])
def test_what_needs_no_conversion_is_not_even_read(measured: dict[str, dict[str, int]], run: str) -> None:
    assert measured[run]["bytes"] == WEIGHTS
    assert measured[run]["peak"] < SLACK


@pytest.mark.parametrize("run", ["float32 to bfloat16", "shards to bfloat16"])
def test_narrowing_holds_the_narrow_weights_and_one_wide_tensor(measured: dict[str, dict[str, int]], run: str) -> None:
    assert measured[run]["bytes"] == WEIGHTS // 2
    assert WEIGHTS // 2 < measured[run]["peak"] < WEIGHTS // 2 + LARGEST + SLACK


def test_widening_holds_the_wide_weights_and_one_narrow_tensor(measured: dict[str, dict[str, int]]) -> None:
    assert measured["bfloat16 to float32"]["bytes"] == WEIGHTS
    assert WEIGHTS < measured["bfloat16 to float32"]["peak"] < WEIGHTS + LARGEST // 2 + SLACK


def test_weights_are_pages_of_the_file(folders: Path) -> None:
    """The model's memory is the file's: no page of it is private before it is written to."""
    model = CohereForCausalLM.from_pretrained(folders / "float32")
    with safe_open(folders / "float32" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in maps if line.endswith("/float32/model.safetensors")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in mapped]
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges), name
