"""A plan against what a process really takes at its peak, anonymous memory and pages of files together.

Each case is a process of its own: what is freed stays with the process's heap, and would hide what the next one takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quarterdeck import CohereConfig, CohereForCausalLM, plan_memory
from quarterdeck.quantization.choose import as_quantization
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.surgery import replace_modules

FIELDS: dict[str, Any] = {
    "vocab_size": 160000,  # weights that take memory and no time
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "eos_token_id": 7,
}
PROMPT, NEW = 2304, 3

SCRIPT = """
import gc, json, sys
import torch
from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.quantization.choose import as_quantization
from quarterdeck.quantization.surgery import replace_modules

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024

def weights(config, quantization, dtype):
    with torch.device("meta"):
        model = CohereForCausalLM(config).to(dtype)
    if quantization is not None:
        replace_modules(model, as_quantization(quantization))
        model.tie_weights()
    tied = model.tied_weights()
    return {n: torch.empty(t.shape, dtype=t.dtype).fill_(0) for n, t in model.state_dict().items() if n not in tied}

def load(fields, quantization, dtype, folder):
    if folder:
        return CohereForCausalLM.from_pretrained(folder, dtype="auto")
    more = {"quantization_config": as_quantization(quantization).to_dict()} if quantization else {}
    config = CohereConfig(**fields, **more)
    state = weights(CohereConfig(**fields), quantization, dtype)
    return CohereForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype)

def run(model, prompt, new, cache):
    options = {"cache_implementation": "quantized", "cache_config": {"nbits": cache}} if cache else {}
    ids = torch.randint(8, 90, (1, prompt))
    for _ in model.generate_steps(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, **options):
        pass

case = json.loads(sys.argv[1])
torch.set_num_threads(2)
dtype = getattr(torch, case["dtype"])
tiny = {**case["fields"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
run(load(tiny, case["quantization"], dtype, None), 20, 3, case["cache"])  # what is imported and set up at the first use
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the highest mark starts anew
before = status("VmRSS")
model = load(case["fields"], case["quantization"], dtype, case["folder"])
run(model, case["prompt"], case["new"], case["cache"])
print(status("VmHWM") - before)
"""
CASES = [
    ("float32", None, "dynamic"),
    ("bfloat16", None, "dynamic"),
    ("float32", "int8", "int8"),
    ("bfloat16", "int4", "int4"),
]

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through Linux's /proc")


def peak(dtype: str, quantization: str | None, cache: str, folder: Path | None = None) -> int:
    case = {
        "fields": FIELDS,
        "dtype": dtype,
        "quantization": quantization,
        "cache": {"dynamic": 0, "int8": 8, "int4": 4}[cache],
        "prompt": PROMPT,
        "new": NEW,
        "folder": None if folder is None else str(folder),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(case)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(("dtype", "quantization", "cache"), CASES)
def test_plan_is_within_a_tenth_of_the_peak(dtype: str, quantization: str | None, cache: str) -> None:
    config = CohereConfig(**FIELDS)
    plan = plan_memory(
        config, context=PROMPT + NEW, dtype=dtype, quantization=quantization, kv_cache=cache, device="cpu"
    )
    measured = peak(dtype, quantization, cache)
    assert plan.total == pytest.approx(measured, rel=0.1), (measured / 1e6, plan)


def test_pages_of_files_count_when_they_were_touched(tmp_path: Path) -> None:
    config = CohereConfig(**FIELDS, dtype="bfloat16", quantization_config=QuantizationConfig("int8").to_dict())
    with torch.device("meta"):
        model = CohereForCausalLM(CohereConfig(**FIELDS)).to(torch.bfloat16)
    chosen = as_quantization("int8")
    assert isinstance(chosen, QuantizationConfig)
    replace_modules(model, chosen)
    model.tie_weights()
    tied = model.tied_weights()
    tensors = {name: torch.ones(t.shape, dtype=t.dtype) for name, t in model.state_dict().items() if name not in tied}
    save_file(tensors, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    plan = plan_memory(tmp_path, context=PROMPT + NEW, device="cpu")
    assert plan.mapped == plan.weights
    measured = peak("bfloat16", None, "dynamic", tmp_path)
    assert plan.total == pytest.approx(measured, rel=0.1), (measured / 1e6, plan)
