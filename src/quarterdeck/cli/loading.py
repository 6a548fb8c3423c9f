"""Options that say which version of a model is loaded, in which form, and where."""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

from quarterdeck.cli.arguments import UsageError, device
from quarterdeck.errors import InputError

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which version of the model, in which form, where."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--revision", "--model_revision", metavar="R", help="branch, tag or commit of a model on the hub"
    )
    group.add_argument(
        "--dtype",
        "--torch_dtype",
        choices=_DTYPES,
        help="type of the weights (default: auto, the checkpoint's)",
    )
    group.add_argument(
        "--device",
        type=device,
        metavar="D",
        help="where to run: cpu, cuda, cuda:1 ...; a number means that accelerator, -1 the CPU "
        "(default, and auto: the first accelerator, else the CPU)",
    )
    group.add_argument(
        "--device_map",
        "--device-map",
        metavar="M",
        help="how to divide the model: auto, balanced, balanced_low_0, sequential, one device, or a JSON object of "
        "parts and their places",
    )
    group.add_argument(
        "--attn_implementation",
        "--attn-implementation",
        metavar="A",
        help="attention backend: sdpa (default), eager, flash_attention_2 or flex_attention",
    )
    group.add_argument("--trust_remote_code", action="store_true", help=argparse.SUPPRESS)
    _add_quantization(parser.add_argument_group("quantization"))


def _add_quantization(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quantization",
        choices=("int8", "int4"),
        help="hold the weights in 8 bits, or in 4.5, by Quarterdeck's own kernels",
    )
    group.add_argument("--load_in_8bit", action="store_true", help="hold them in 8 bits by bitsandbytes")
    group.add_argument("--load_in_4bit", action="store_true", help="hold them in 4 bits by bitsandbytes")
    group.add_argument(
        "--bnb_4bit_quant_type", choices=("nf4", "fp4"), help="what bitsandbytes' 4 bits stand for (default: nf4)"
    )
    group.add_argument(
        "--use_bnb_nested_quant", action="store_true", help="quantize the scales of bitsandbytes' 4 bits too"
    )


def loading_options_given(arguments: argparse.Namespace) -> list[str]:
    """Those of the options above that a command line has."""
    names = (
        "revision dtype device device_map attn_implementation trust_remote_code quantization load_in_8bit load_in_4bit "
        "bnb_4bit_quant_type use_bnb_nested_quant"
    ).split()
    return [f"--{name}" for name in names if getattr(arguments, name) not in (None, False)]


def check_loading(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: they do not.
    """
    if arguments.trust_remote_code:
        raise UsageError("--trust_remote_code is refused: code from a checkpoint is never run here; leave it out")
    if arguments.device is not None and arguments.device_map is not None:
        raise UsageError("--device and --device_map both say where the model goes: give one of them")
    kinds = ("quantization", "load_in_8bit", "load_in_4bit")
    ways = [f"--{name}" for name in kinds if getattr(arguments, name) not in (None, False)]
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} each quantize the weights: give one of them")
    if not arguments.load_in_4bit:
        for name in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} is about --load_in_4bit, which is not given")
    _device_map(arguments.device_map)


def load_options(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` for the model called ``name``. This imports torch."""
    from quarterdeck.pipelines.factory import as_device

    options: dict[str, Any] = {
        "revision": arguments.revision,
        "dtype": arguments.dtype or "auto",
        "attn_implementation": arguments.attn_implementation,
        "quantization_config": arguments.quantization,
        "device_map": _device_map(arguments.device_map),
    }
    if arguments.config is not None:
        options["config"] = arguments.config
    if options["device_map"] is None:
        options["device_map"] = as_device(None if arguments.device == "auto" else arguments.device)
    if arguments.load_in_8bit or arguments.load_in_4bit:
        options["quantization_config"] = _of_bitsandbytes(name, arguments)
    return options


def _of_bitsandbytes(name: str, arguments: argparse.Namespace) -> Any:
    """4-bit products are computed in the type of the other weights, so that nothing is converted back and forth."""
    from quarterdeck.auto import AutoConfig
    from quarterdeck.quantization.bnb_config import BitsAndBytesConfig

    if not arguments.verbose:  # at every product the library says that it converts, which is what was asked for
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = arguments.dtype
    if dtype in (None, "auto"):
        dtype = AutoConfig.from_pretrained(arguments.config or name, revision=arguments.revision).dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type or "nf4",
        bnb_4bit_use_double_quant=arguments.use_bnb_nested_quant,
    )


def _device_map(given: str | None) -> Any:
    if given is None or not given.lstrip().startswith("{"):
        return None if given is None else device(given)
    try:
        return json.loads(given)
    except ValueError as error:
        raise InputError(f"--device_map {given} is not valid JSON: {error}") from error
