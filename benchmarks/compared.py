"""What was compared: versions and builds of the engines, and the processor, so that a reader can tell."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from quarterdeck import __version__

PACKAGES = ("torch", "transformers", "llama_cpp_python", "openvino", "nncf")
FLAGS = (
    "avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512vbmi avx512_bf16 avx512_fp16 amx_tile "
    "amx_int8 amx_bf16 asimd asimddp i8mm sve bf16"
).split()
"""Instructions that products of matrices use, by the names that Linux gives them."""


def compared(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Versions, processor, and what each engine says of itself, by its name (``Engine.facts``)."""
    return {"versions": versions(), "processor": processor(), "engines": engines}


def versions() -> dict[str, str]:
    """Of this package with its commit, and of those of `PACKAGES` that are installed."""
    commit = revision()
    found = {"quarterdeck": __version__ + (f" at {commit}" if commit else ""), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The commit that these files are of, ``-dirty`` if they were changed; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> dict[str, Any]:
    """Its model, how many there are, which of `FLAGS` it has, and what PyTorch makes of it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "processors": sum(line.startswith("processor") for line in lines) or None,
        "flags": [flag for flag in FLAGS if flag in has],
        "torch": torch.backends.cpu.get_cpu_capability(),
    }


def foot(facts: dict[str, Any]) -> list[str]:
    """The same as lines of Markdown."""
    cpu = facts["processor"]
    count = "" if cpu["processors"] is None else f", {cpu['processors']} processors"
    lines = [
        f"- processor: {cpu['model']}{count}; {' '.join(cpu['flags'])}; PyTorch uses {cpu['torch']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}",
    ]
    for name, said in facts["engines"].items():
        lines.append(f"- {name}: " + "; ".join(f"{key} {value}" for key, value in said.items()))
    return lines
