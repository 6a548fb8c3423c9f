"""How a decode step is compiled: the arguments of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from quarterdeck.errors import InputError, UnsupportedOptionError

DEFAULT_BACKEND = "inductor"
DEFAULT_MODE = "reduce-overhead"
GRAPH_BACKEND = "cuda_graph"
"""No compiler: the step is recorded as it is (:mod:`quarterdeck.generation.graphs`)."""


@dataclass(frozen=True)
class CompileConfig:
    """Arguments of ``torch.compile`` for the decode step of `generate`.

    >>> model.generate(ids, cache_implementation="static", compile_config=CompileConfig(fullgraph=True))

    On CUDA a step over a static cache is compiled anyway; this says how. Elsewhere it is compiled if this is given.

    Attributes:
        fullgraph: fail where the step is not one program. Ours is, unless modules were put in that are not.
        dynamic: compile for all sizes at once; None lets the compiler decide, False makes a program for each.
        backend: name of the compiler, or a function of a graph and its inputs; ``"cuda_graph"`` compiles nothing and
            records the step on CUDA as it is.
        mode: a trade-off of the ``"inductor"`` backend, with CUDA graphs by default. Other backends have no modes and
            are given none.
        options: settings of the backend. They take the place of a mode.

    Raises:
        InputError: a value that cannot be right, or a mode that would have no effect.
    """

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str | Callable[..., Any] = DEFAULT_BACKEND
    mode: str | None = DEFAULT_MODE
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.fullgraph, bool) or self.dynamic not in (None, True, False):
            raise InputError(f"fullgraph={self.fullgraph!r}, dynamic={self.dynamic!r}: they are True or False")
        if not isinstance(self.backend, str) and not callable(self.backend):
            raise InputError(f"backend={self.backend!r}: it must be the name of one, or a function")
        if self.options is not None and not isinstance(self.options, Mapping):
            raise InputError(f"options={self.options!r}: they must be a dictionary, or None")
        if self.mode not in (None, DEFAULT_MODE) and (self.backend != DEFAULT_BACKEND or self.options):
            raise InputError(
                f"mode={self.mode!r} has no effect with backend={self.backend!r} and options={self.options!r}: leave "
                "it out, or use the inductor backend without options"
            )

        if self.backend == GRAPH_BACKEND and (self.fullgraph or self.dynamic is not None or self.options):
            raise InputError(
                f"fullgraph={self.fullgraph!r}, dynamic={self.dynamic!r}, options={self.options!r} are for a compiler, "
                f"and backend={GRAPH_BACKEND!r} is none: leave them out"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> CompileConfig:
        """Itself: it does not change, and a backend that was copied would be another one."""
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``torch.compile``."""
        has_mode = self.backend == DEFAULT_BACKEND and not self.options
        return {
            "fullgraph": self.fullgraph,
            "dynamic": self.dynamic,
            "backend": self.backend,
            "mode": self.mode if has_mode else None,
            "options": dict(self.options) if self.options else None,
        }

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether results stand in memory that the next step writes to."""
        return self.arguments()["mode"] in (DEFAULT_MODE, "max-autotune") or bool(self.options)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as a ``generation_config.json`` holds them.

        Raises:
            InputError: ``backend`` is a function, which no file can hold.
        """
        if not isinstance(self.backend, str):
            raise InputError(f"compile_config.backend={self.backend!r} is a function: a file can hold a name only")
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompileConfig:
        """The other way.

        Raises:
            UnsupportedOptionError: a name that is no field.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise UnsupportedOptionError(f"compile_config has {unknown[0]!r}; its fields are {', '.join(names)}")
        return cls(**values)
