"""The decode step as a recorded CUDA graph: kernels are started once, by the hundred, without Python in between.

``CompileConfig(backend="cuda_graph")`` asks for it. Nothing is compiled, so that it is ready at once and changes no
number. A recording is a list of kernels with the addresses that they read and write. Three rules follow:

* What changes from step to step (tokens, positions, the place in the cache, the mask) is copied into buffers of the
  recording before it is played, and what comes out is copied away.
* A recording is good for the cache and the weights that it was made with. What would be elsewhere or of another shape
  makes another recording; `Recording.key` has it all.
* Recordings stay with their model, the last `KEPT` of them, and hold the buffers of their caches. A cache that nobody
  has any more leaves its buffers to the next call of its size, which then needs no recording.

Numbers in Python that a module changes between calls are in no key: after such a change, drop ``model``'s recordings
with ``recordings_of(model).clear()``. Hooks would be called while recording only, and are refused.

Shapes: B rows, S places of the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quarterdeck.cache.base import Cache
from quarterdeck.cache.static import StaticCache
from quarterdeck.errors import UnsupportedOptionError
from quarterdeck.generation.compile_config import GRAPH_BACKEND
from quarterdeck.generation.compiled import compiled_step, own_memory, run_step
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import CausalModel, StepProgram
from quarterdeck.outputs import CausalLMOutputWithPast

KEPT = 2
"""Recordings that a model keeps; each holds the buffers of a cache. The one used longest ago goes first."""

_WARM_UP = 3  # runs before recording: libraries make their workspaces, Triton compiles
_ATTRIBUTE = "_recorded_steps"

Run = Callable[[], CausalLMOutputWithPast]


class Graph(Protocol):
    """What records and plays; `CudaGraph` is the real one."""

    def record(self, run: Run) -> CausalLMOutputWithPast:
        """Take down what ``run`` starts; what it returned is filled by `replay`."""
        ...

    def replay(self) -> None:
        """Do it again, with what is in the buffers now."""
        ...


class CudaGraph:
    """``torch.cuda.CUDAGraph``, recorded after some runs that are not, on another stream."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, run: Run) -> CausalLMOutputWithPast:
        """See `Graph`. A step may run several times: it writes the same to the same place of the cache."""
        main = torch.cuda.current_stream()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no annotation here
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        main.wait_stream(side)
        with torch.cuda.graph(self._graph):
            return run()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


@dataclass
class Inputs:
    """The buffers that a recording reads: ``tokens`` [B, 1], ``place`` [1], ``positions`` [B, 1], ``mask`` [B, S]."""

    tokens: Tensor
    place: Tensor
    positions: Tensor | None
    mask: Tensor | None

    @classmethod
    def like(cls, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, room: int) -> Inputs:
        """Buffers for arguments of these shapes, with values that the step can run on."""
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside
            return cls(
                torch.zeros_like(tokens),
                torch.zeros(1, dtype=torch.int64, device=tokens.device),
                None if positions is None else torch.zeros_like(positions),
                None if mask is None else mask.new_ones(mask.shape[0], room),
            )

    def set_mask(self, mask: Tensor | None) -> None:
        """Takes ``mask`` [B, any]; places behind it are real, and hidden by their position until they are written."""
        if mask is not None and self.mask is not None:
            width = min(mask.shape[1], self.mask.shape[1])
            self.mask.fill_(1)
            self.mask[:, :width].copy_(mask[:, :width])

    def set(self, tokens: Tensor, start: int, positions: Tensor | None) -> None:
        """Takes what is new at this step."""
        self.tokens.copy_(tokens)
        self.place.fill_(start)
        if positions is not None and self.positions is not None:
            self.positions.copy_(positions)


@dataclass
class Recording:
    """A recorded step.

    Attributes:
        key: what it is good for.
        graph: what plays it.
        inputs: the buffers that it reads.
        output: what it fills.
        storage: a cache over the buffers that it writes to, which stay as long as the recording does.
        user: the cache of the call that has these buffers, as long as somebody has that.
    """

    key: Hashable
    graph: Graph
    inputs: Inputs
    output: CausalLMOutputWithPast
    storage: StaticCache
    user: weakref.ref[Cache]

    @property
    def address(self) -> int:
        """Where its cache is; recordings of calls of different kinds may have one cache."""
        return self.storage.layers[0].tensors()[0].data_ptr()


class RecordedSteps:
    """The recordings of one model. A copy of the model, or a saved one, has none.

    Args:
        make_graph: makes what records.
        device_type: where that can be done.
    """

    def __init__(self, make_graph: Callable[[], Graph] = CudaGraph, device_type: str = "cuda") -> None:
        self.make_graph, self.device_type = make_graph, device_type
        self._kept: list[Recording] = []

    def find(self, key: Hashable) -> Recording | None:
        """The recording of that key, which is then the one used last."""
        found = next((kept for kept in self._kept if kept.key == key), None)
        if found is not None:
            self._kept.remove(found)
            self._kept.append(found)
        return found

    def add(self, recording: Recording) -> None:
        """Keeps one more, and lets the one go that was used longest ago."""
        self._kept = [*self._kept[max(len(self._kept) - KEPT + 1, 0) :], recording]

    def make_room(self) -> None:
        """Lets one go if there is no place for another, before memory for that is taken."""
        if len(self._kept) >= KEPT:
            del self._kept[0]

    def idle(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> StaticCache | None:
        """A cache for ``(rows, places)`` whose buffers nobody has any more."""
        in_use = {kept.address for kept in self._kept if kept.user() is not None}
        for kept in reversed(self._kept):
            keys = kept.storage.layers[0].tensors()[0]
            fits = (keys.shape[0], keys.shape[2]) == shape and (keys.dtype, keys.device) == (dtype, device)
            if fits and kept.address not in in_use:
                return kept.storage
        return None

    def clear(self) -> None:
        """Forgets all, and the memory of their caches."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[RecordedSteps], tuple[Callable[[], Graph], str]]:
        return RecordedSteps, (self.make_graph, self.device_type)


def recordings_of(model: CausalModel) -> RecordedSteps:
    """The recordings that are kept with a model."""
    kept = vars(model).setdefault(_ATTRIBUTE, RecordedSteps())
    assert isinstance(kept, RecordedSteps)
    return kept


class RecordedStep:
    """Runs the steps of one call; see `~quarterdeck.generation.core.StepProgram`.

    Args:
        model: whose steps they are.
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._weights = _addresses(model)
        self._recording: Recording | None = None
        self._mask: Tensor | None = None

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache,
        start: int,
        positions: Tensor | None,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Run one token per row; the arguments are those of `CompiledStep`."""
        assert isinstance(cache, StaticCache)
        key = self._key(cache, positions, mask, options)
        recording = self._recording
        if recording is None or recording.key != key:
            recording = recordings_of(self._model).find(key)
            if recording is None:
                inputs = Inputs.like(tokens, positions, mask, cache.max_cache_len)
                inputs.set(tokens, start, positions)
                inputs.set_mask(mask)
                recording = self._record(key, inputs, cache, options)
            recording.user = weakref.ref(cache)
            self._recording, self._mask = recording, None
        if self._mask is not mask:
            recording.inputs.set_mask(mask)
            self._mask = mask
        recording.inputs.set(tokens, start, positions)
        recording.graph.replay()
        cache.note_written()
        return replace(own_memory(recording.output), past_key_values=cache)

    def reuse_buffers(self, cache: StaticCache, rows: int) -> None:
        """Gives ``cache``, a new one for ``rows``, buffers that nobody uses and that a recording knows."""
        model = self._model
        idle = recordings_of(model).idle((rows, cache.max_cache_len), model.dtype, model.device)
        if idle is not None:
            cache.share(idle)
            cache.reset()

    def _record(self, key: Hashable, inputs: Inputs, cache: StaticCache, options: dict[str, Any]) -> Recording:
        kept = recordings_of(self._model)
        kept.make_room()
        graph, storage = kept.make_graph(), StaticCache(self._model.config, cache.max_cache_len)
        storage.share(cache)
        given = (self._model, inputs.tokens, storage, inputs.place, inputs.positions, inputs.mask, options)
        output = graph.record(lambda: run_step(*given))
        recording = Recording(key, graph, inputs, output, storage, weakref.ref(cache))
        kept.add(recording)
        return recording

    def _key(self, cache: Cache, positions: Tensor | None, mask: Tensor | None, options: dict[str, Any]) -> Hashable:
        config = self._model.config
        places = tuple(kept.data_ptr() for layer in cache.layers for kept in layer.tensors())
        inputs = cache.rows, cache.get_max_length(), positions is None, mask is None, *sorted(options.items())
        return inputs, places, self._weights, config.attn_implementation, config.logit_scale


def step_program(
    config: GenerationConfig, model: CausalModel, given: Cache | None, *, one_token: bool
) -> StepProgram | None:
    """What runs the decode steps of a call, compiled or recorded; None if the model does it itself.

    Arguments and errors are those of `compiled_step`; what cannot be compiled cannot be recorded either.
    """
    program = compiled_step(config, model, given, one_token=one_token)
    asked = config.compile_config
    if program is None or asked is None or asked.backend != GRAPH_BACKEND:
        return program
    obstacle = _obstacle(model)
    if obstacle is not None:
        raise UnsupportedOptionError(
            f"compile_config asks for backend={GRAPH_BACKEND!r}, and this call cannot be recorded: {obstacle}"
        )
    return RecordedStep(model)


def reuse_buffers(program: StepProgram | None, cache: Cache | None, rows: int) -> None:
    """Gives a new cache for ``rows`` the buffers of a recording whose own cache is gone, if steps are recorded."""
    if isinstance(program, RecordedStep) and isinstance(cache, StaticCache):
        program.reuse_buffers(cache, rows)


def _obstacle(model: CausalModel) -> str | None:
    """Why steps that could be compiled cannot be recorded; None if they can."""
    wanted = recordings_of(model).device_type
    if model.device.type != wanted:
        return f"the model is on {model.device}, and graphs are recorded on {wanted}: leave compile_config out"
    modules = model.modules() if isinstance(model, nn.Module) else ()
    listened = next((module for module in modules if module._forward_hooks or module._forward_pre_hooks), None)
    if listened is not None:
        return f"a {type(listened).__name__} has hooks, which would not be called: use backend='inductor'"
    return None


def _addresses(model: CausalModel) -> Hashable:
    """Where all modules and tensors of a model are."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    tensors = (kept for one in modules for kept in (*one._parameters.values(), *one._buffers.values()))
    return tuple(map(id, modules)), tuple(kept.data_ptr() for kept in tensors if kept is not None)
