"""The decode step as a compiled program.

The prompt runs as ever: its length is different every time. What is compiled is the step of one token per row over a
cache of fixed size, and all that changes from step to step is in tensors: tokens, positions, the place in the cache.
One program then serves all steps of all calls in which the rows, the room of the cache and the kind of inputs are the
same; `padded_room` makes the room of many lengths one.

Programs are kept with the model they are of, the last `KEPT` of them. Each is compiled from a function of its own:
the compiler counts what it made of one function, and gives up at eight.

What can be compiled is a model whose steps are tensor operations from end to end. It cannot be where

* keys and values are in a cache that is not of fixed size, or not where the model is;
* rotary frequencies depend on the length (``rope_type`` dynamic and longrope), which the host must read;
* parts of the model are elsewhere (``device_map`` over several places), since its hooks move tensors;
* a module says ``is_compileable = False``, as those do that call native code the compiler cannot see into.

Shapes: B rows, S places of the cache, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from quarterdeck.cache.base import Cache
from quarterdeck.errors import UnsupportedOptionError
from quarterdeck.generation.compile_config import CompileConfig
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import CausalModel
from quarterdeck.outputs import CausalLMOutputWithPast
from quarterdeck.rope import depends_on_length

KEPT = 8
"""Programs that a model keeps; the one made first goes first."""

_ROOM = 256
_ATTRIBUTE = "_compiled_steps"

Program = Callable[..., CausalLMOutputWithPast]


class CompiledSteps:
    """The programs of one model. A copy of the model, or a saved one, has none: they are made again when needed."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Program] = {}

    def get(self, key: Hashable, config: CompileConfig) -> Program:
        """The program of that key, compiled when it is first called."""
        if key not in self._programs:
            while len(self._programs) >= KEPT:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = _fresh_program(config)
        return self._programs[key]

    def __len__(self) -> int:
        return len(self._programs)

    def __reduce__(self) -> tuple[type[CompiledSteps], tuple[()]]:
        return CompiledSteps, ()


def steps_of(model: CausalModel) -> CompiledSteps:
    """The programs that are kept with a model."""
    kept = vars(model).setdefault(_ATTRIBUTE, CompiledSteps())
    assert isinstance(kept, CompiledSteps)
    return kept


def run_step(
    model: CausalModel,
    tokens: Tensor,
    cache: Cache,
    place: Tensor,
    positions: Tensor | None,
    mask: Tensor | None,
    options: dict[str, Any],
) -> CausalLMOutputWithPast:
    """One token per row [B, 1] at ``place`` [1]; ``mask`` is [B, S]."""
    output: CausalLMOutputWithPast = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        cache_position=place,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
        **options,
    )
    return output


def _fresh_program(config: CompileConfig) -> Program:
    """`run_step` compiled, from a copy of its code: what the compiler knows of other copies does not count."""
    copied = FunctionType(run_step.__code__.replace(co_name="run_step"), run_step.__globals__, "run_step")
    program: Program = torch.compile(copied, **config.arguments())
    return program


class CompiledStep:
    """Runs the steps of one call.

    Args:
        model: whose steps they are.
        config: how to compile.
    """

    def __init__(self, model: CausalModel, config: CompileConfig) -> None:
        self._model = model
        self._config = config
        self._given: Tensor | None = None
        self._mask: Tensor | None = None
        self._fixed: Cache | None = None

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache,
        start: int,
        positions: Tensor | None,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Run one token per row.

        Args:
            tokens: [B, 1].
            cache: of fixed size.
            start: place of the tokens in the cache.
            positions: [B, 1] where they differ from ``start``.
            mask: [B, at most S], 1 for real tokens, if there are others.
            options: further arguments of the model.
        """
        room = cache.get_max_length()
        assert room is not None
        mask = self._whole(mask, room)
        program = steps_of(self._model).get(self._key(cache, positions, mask, options), self._config)
        self._fix_addresses(cache)
        place = torch.full((1,), start, device=tokens.device)
        if tokens.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch has no annotation here
        output = program(self._model, tokens, cache, place, positions, mask, options)
        return own_memory(output) if self._config.uses_cuda_graphs and tokens.device.type == "cuda" else output

    def _whole(self, mask: Tensor | None, room: int) -> Tensor | None:
        """The mask over all of the cache, made once: what is not written yet is hidden by its position."""
        if mask is None:
            return None
        if self._given is not mask or self._mask is None:
            self._given = mask
            self._mask = nn.functional.pad(mask[:, :room], (0, max(room - mask.shape[1], 0)), value=1)
        return self._mask

    def _fix_addresses(self, cache: Cache) -> None:
        """Let CUDA graphs write to the cache where it is; another cache is recorded again, not compiled again."""
        if self._fixed is not cache:
            self._fixed = cache
            for kept in (kept for layer in cache.layers for kept in layer.tensors()):
                torch._dynamo.mark_static_address(kept, guard=False)

    def _key(self, cache: Cache, positions: Tensor | None, mask: Tensor | None, options: dict[str, Any]) -> Hashable:
        model, arguments = self._model, self._config.arguments()
        arguments["options"] = repr(arguments["options"])
        inputs = cache.rows, cache.get_max_length(), positions is None, mask is None, *sorted(options.items())
        return inputs, model.device, model.dtype, model.config.attn_implementation, *arguments.values()


def own_memory(output: CausalLMOutputWithPast) -> CausalLMOutputWithPast:
    """The same in memory of its own."""
    assert output.logits is not None
    return replace(
        output,
        logits=output.logits.clone(),
        attentions=None if output.attentions is None else tuple(one.clone() for one in output.attentions),
        hidden_states=None if output.hidden_states is None else tuple(one.clone() for one in output.hidden_states),
    )


def padded_room(room: int) -> int:
    """The room of a cache for compiled steps: the next multiple of 256, of an eighth to a sixteenth of long ones.

    >>> [padded_room(room) for room in (1, 256, 257, 5000, 100_000)]
    [256, 256, 512, 5120, 106496]
    """
    multiple = max(_ROOM, 1 << max(room.bit_length() - 4, 0))
    return -(-room // multiple) * multiple


def compiled_step(
    config: GenerationConfig, model: CausalModel, given: Cache | None, *, one_token: bool
) -> CompiledStep | None:
    """What runs the decode steps of a call; None if the model does it itself.

    It is decided before the cache is made, which then gets the room that it takes.

    Args:
        config: the options of the call.
        model: the model, which is only looked at if everything else allows compiling.
        given: the caller's cache; with None there will be one as the options say.
        one_token: whether steps are one token of every row, and rows stay where they are: no beams, no candidates.

    Raises:
        UnsupportedOptionError: a ``compile_config`` is given and the steps cannot be compiled.
    """
    asked = config.compile_config
    if config.disable_compile or (asked is None and model.device.type != "cuda"):
        return None
    obstacle = _obstacle_of_call(config, given, one_token) or obstacle_of(model)
    if obstacle is None:
        return CompiledStep(model, asked or CompileConfig())
    if asked is None:
        return None
    raise UnsupportedOptionError(
        f"compile_config is given, and this call cannot be compiled: {obstacle}. Leave compile_config out, or set "
        "disable_compile=True"
    )


def _obstacle_of_call(config: GenerationConfig, given: Cache | None, one_token: bool) -> str | None:
    """Why steps of this kind cannot be compiled; None if they can."""
    if not one_token:
        return "beams and candidates take steps of another kind"
    is_made_static = bool(config.use_cache) and config.cache_implementation == "static"
    if given.is_compileable if given is not None else is_made_static:
        return None
    return "its cache is not of fixed size (set cache_implementation='static')"


def obstacle_of(model: CausalModel) -> str | None:
    """Why steps of the model cannot be compiled; None if they can."""
    if depends_on_length(model.config):
        return "rotary frequencies depend on the length of the text"
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or "disk" in places:
        return f"parts of the model are on different devices ({', '.join(sorted(places))})"
    modules = model.modules() if isinstance(model, nn.Module) else ()
    native = next((module for module in modules if not getattr(module, "is_compileable", True)), None)
    return None if native is None else f"it has a {type(native).__name__}, which calls code outside PyTorch"
