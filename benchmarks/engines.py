"""The engines that are compared, behind one interface: read a prompt, then take steps.

Each has the same weights in the same format, and starts from nothing at each `prefill`.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.kernels import native

_COMPILERS = re.compile(rb"GCC: \([^)\0]*\) [\d.]+|clang version [\w.~+-]+")


class Engine(Protocol):
    """One library with a model loaded."""

    name: str
    weight_bytes: int
    facts: dict[str, Any]
    """What it is and how it was asked to run, for `compared`."""

    def prefill(self, ids: list[int]) -> int:
        """Reads a prompt from the start; the likeliest next token."""
        ...

    def step(self, token: int) -> int:
        """Reads one more token; the likeliest next one."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


class Quarterdeck:
    """This package; prompts in the pieces that ``generate`` reads them in."""

    def __init__(self, model: CohereForCausalLM, chunk: int = 1024) -> None:
        self.name, self.weight_bytes = "quarterdeck", model.get_memory_footprint()
        self.facts = {
            "kernels": native.describe(),
            "compiled by": ", ".join(compilers(Path(native.__file__).with_name("_native.so"))) or "unknown",
            "flags": "as setup.py gives them to each level",
            "prompts": f"{chunk} tokens at a time",
        }
        self._model, self._chunk, self._cache = model, chunk, None

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> int:
        self._cache, rest = None, torch.tensor([ids])
        for piece in rest.split(self._chunk, dim=1):
            output = self._model(piece, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = output.past_key_values
        return likeliest(output.logits)

    @torch.inference_mode()
    def step(self, token: int) -> int:
        return likeliest(self._model(torch.tensor([[token]]), past_key_values=self._cache, logits_to_keep=1).logits)

    def close(self) -> None:
        del self._model, self._cache


class Transformers:
    """transformers with the very tensors of one of our models."""

    def __init__(self, model: CohereForCausalLM) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        config = transformers.CohereConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"})
        with torch.device("meta"):
            self._model = transformers.CohereForCausalLM(config)
        self._model.load_state_dict(model.state_dict(), strict=False, assign=True)
        self._model.tie_weights()
        rotary = type(self._model.model.rotary_emb)(config)
        self._model.model.rotary_emb = rotary
        self._model.eval()
        self.name, self.weight_bytes, self._cache = "transformers", model.get_memory_footprint(), None
        self.facts = {"attention": config._attn_implementation or "sdpa"}

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> int:
        output = self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return likeliest(output.logits)

    @torch.inference_mode()
    def step(self, token: int) -> int:
        output = self._model(torch.tensor([[token]]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return likeliest(output.logits)

    def close(self) -> None:
        del self._model, self._cache


class LlamaCpp:
    """llama.cpp through the C interface in llama-cpp-python, with its default batch of 512 tokens at once.

    Args:
        path: the GGUF file.
        context: tokens that it makes room for.
        threads: how many it uses.
        repack: lets it put weights into its own orders of blocks, among them those for AMX.
    """

    def __init__(self, path: Path, context: int, threads: int, *, repack: bool) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = repack
        load = getattr(llama_cpp, "llama_model_load_from_file", None) or llama_cpp.llama_load_model_from_file
        self._model = load(str(path).encode(), options)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_threads, settings.n_threads_batch = context, 2048, threads, threads
        make = getattr(llama_cpp, "llama_init_from_model", None) or llama_cpp.llama_new_context_with_model
        self._context = make(self._model, settings)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp could not load {path.name}")
        vocabulary = getattr(llama_cpp, "llama_model_get_vocab", lambda model: model)(self._model)
        count = getattr(llama_cpp, "llama_vocab_n_tokens", None) or llama_cpp.llama_n_vocab
        self._words = count(vocabulary)
        self.name, self.weight_bytes = "llama.cpp", int(llama_cpp.llama_model_size(self._model))
        self.facts = {
            "weights": "repacked" if repack else "not repacked",
            "batch": f"{settings.n_batch}, {settings.n_ubatch} at a time",
            "system": " ".join(llama_cpp.llama_print_system_info().decode().split()),
        }

    def prefill(self, ids: list[int]) -> int:
        if hasattr(self._lib, "llama_memory_clear"):
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        else:
            self._lib.llama_kv_self_clear(self._context)
        return self._decode(ids)

    def step(self, token: int) -> int:
        return self._decode([token])

    def _decode(self, ids: list[int]) -> int:
        tokens = (self._lib.llama_token * len(ids))(*ids)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError("llama.cpp could not run")
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return int(
            torch.frombuffer(
                ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._words)).contents, dtype=torch.float32
            ).argmax()
        )

    def close(self) -> None:
        self._lib.llama_free(self._context)
        free = getattr(self._lib, "llama_model_free", None) or self._lib.llama_free_model
        free(self._model)


class OpenVino:
    """OpenVINO's CPU plugin with its default precision hints, stateful, weights compressed by nncf."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = core.compile_model(path, "CPU", options)
        self._request = self._compiled.create_infer_request()
        asked = ("INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT", "KV_CACHE_PRECISION", "NUM_STREAMS")
        said = {name: self._compiled.get_property(name) for name in asked}
        names = {key: getattr(value, "to_string", value.__str__)() for key, value in said.items()}
        self.facts = {"build": openvino.get_version()} | names
        self.name, self.weight_bytes = "openvino", path.with_suffix(".bin").stat().st_size

    def prefill(self, ids: list[int]) -> int:
        self._request.reset_state()
        return self._infer(ids)

    def step(self, token: int) -> int:
        return self._infer([token])

    def _infer(self, ids: list[int]) -> int:
        found = self._request.infer([torch.tensor([ids]).numpy()], share_inputs=True, share_outputs=True)
        return int(next(iter(found.values())).argmax())

    def close(self) -> None:
        del self._request, self._compiled


def compilers(library: Path) -> list[str]:
    """What a shared library says that it was compiled by; nothing if it does not say."""
    if not library.is_file():
        return []
    return sorted({found.decode() for found in _COMPILERS.findall(library.read_bytes())})


def likeliest(logits: Tensor) -> int:
    return int(logits[0, -1].argmax())


def make_weights(config: CohereConfig, dtype: torch.dtype) -> CohereForCausalLM:
    """A model with random weights, each a shifted copy of one pool of normal numbers: made at the speed of memory."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in CohereForCausalLM(config).named_parameters()}
    pool = (torch.randn(2**22 + 7, generator=torch.Generator().manual_seed(0)) / config.hidden_size**0.5).to(dtype)
    state = {}
    for number, (name, shape) in enumerate(shapes.items()):
        made = torch.empty(shape, dtype=dtype)
        if "norm" in name:
            made.fill_(1.0)
        else:
            flat = made.view(-1)
            for start in range(0, flat.numel(), pool.numel()):
                part = flat[start : start + pool.numel()]
                part.copy_(pool.roll(number * 1009 + start % 8191)[: part.numel()])
        state[name] = made
    return CohereForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
