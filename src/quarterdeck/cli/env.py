"""``quarterdeck env``: what it runs on, for reports of problems."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quarterdeck._version import __version__
from quarterdeck.cli.arguments import Commands, add_command


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "env", "show versions and hardware, for reports of problems", execute)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    facts = _software() | _hardware()
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    return 0


def _software() -> dict[str, str]:
    return {
        "quarterdeck version": __version__,
        "Python version": platform.python_version(),
        "Platform": platform.platform(),
        "PyTorch version": _version("torch"),
        "tokenizers version": _version("tokenizers"),
        "safetensors version": _version("safetensors"),
        "huggingface_hub version": _version("huggingface_hub"),
    }


def _hardware() -> dict[str, str]:
    import torch  # here, since --help need not wait for it

    from quarterdeck.kernels import native  # here, since it imports torch

    return {
        "CPU": _cpu_model(),
        "CPU cores": str(os.cpu_count() or "unknown"),
        "CPU threads used by PyTorch": str(torch.get_num_threads()),
        "CPU instruction sets used by PyTorch": torch.backends.cpu.get_cpu_capability(),
        "Accelerator": ", ".join(_accelerators()) or "none",
        "Native kernels": native.describe(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    """The processor's name; Linux has it in a file only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _accelerators() -> Iterable[str]:
    import torch  # here, since --help need not wait for it

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return
    for index in range(torch.accelerator.device_count()):
        name = f" ({torch.cuda.get_device_name(index)})" if accelerator.type == "cuda" else ""
        yield f"{accelerator.type}:{index}{name}"
