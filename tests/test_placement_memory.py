"""What is on the disk is not in memory, while loading and while running; measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quarterdeck.config import CohereConfig
from quarterdeck.model import CohereForCausalLM

MB = 10**6
SLACK = 24 * MB  # for what Python, torch and the allocator take on the way
FIELDS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "eos_token_id": 7,
}
LAYER = 4 * (4 * 512**2 + 3 * 512 * 2048 + 512)  # bytes in float32: 17 MB
WEIGHTS = 8 * LAYER + 4 * (1000 * 512 + 512)  # 136 MB
DISK = {"": "cpu", **{f"model.layers.{i}": "disk" for i in range(1, 8)}}

SCRIPT = """
import gc, json, sys, torch
from quarterdeck.model import CohereForCausalLM

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024

folder = sys.argv[1]
torch.set_num_threads(1)
ids = torch.arange(1, 9)[None]

def load(name, **options):
    return CohereForCausalLM.from_pretrained(folder + name, **options)

def measure(options):
    gc.collect()  # hooks and modules know each other
    before = anonymous()
    model = load("/bfloat16", dtype="float32", **options)
    marks = [anonymous() - before]
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda *_: marks.append(anonymous() - before))
    with torch.no_grad():
        model(ids)
    after = anonymous() - before
    return {"loaded": marks[0], "running": max(marks), "after": after, "size": model.get_memory_footprint()}

with torch.no_grad():  # what is imported and set up at the first use
    load("/tiny", device_map={"": "cpu", "model.layers.0": "disk"})(ids)
print(json.dumps([measure(options) for options in json.loads(sys.argv[2])]))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through Linux's /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    CohereForCausalLM(CohereConfig(**FIELDS)).to(torch.bfloat16).save_pretrained(folder / "bfloat16")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "eos_token_id": 7, "vocab_size": 100}
    CohereForCausalLM(CohereConfig(num_attention_heads=2, **small)).save_pretrained(folder / "tiny")
    return folder


def test_what_is_on_the_disk_takes_no_memory(folder: Path, tmp_path: Path) -> None:
    """Anonymous memory above the start, in bytes: after loading, at most while running, and after that."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    runs: list[dict[str, Any]] = [{"device_map": DISK}, {"device_map": DISK, "offload_folder": str(tmp_path)}, {}]
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *divided, whole = json.loads(done.stdout)
    assert [taken["size"] for taken in (*divided, whole)] == [WEIGHTS] * 3
    assert whole["loaded"] > WEIGHTS - MB
    kept = WEIGHTS - 7 * LAYER
    for taken in divided:
        assert taken["loaded"] < kept + SLACK
        assert taken["running"] < kept + LAYER + SLACK < WEIGHTS // 2
        assert taken["after"] < kept + SLACK
