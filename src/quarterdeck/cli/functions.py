"""Python functions named on a command line: ``module:function[,function]``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from quarterdeck.errors import InputError

_SPELLED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<names>[^\W\d]\w*(,[^\W\d]\w*)*)")


@dataclass(frozen=True)
class FunctionNames:
    """Functions of a module, by name."""

    module: str
    names: tuple[str, ...]


def function_names(text: str) -> FunctionNames:
    """The names in ``module:function[,function]``, for argparse."""
    match = _SPELLED.fullmatch(text)
    if match is None:
        hint = " (the module's name, without .py)" if ".py" in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form module:function[,function]{hint}")
    return FunctionNames(match["module"], tuple(match["names"].split(",")))


def load_functions(wanted: FunctionNames) -> list[Callable[..., Any]]:
    """The functions, from a module that can be imported from the current folder or is installed.

    Importing a module runs it, so only name modules that you trust.

    Raises:
        InputError: there is no such module or function, or the module fails.
    """
    module = _module(wanted.module)
    missing = [name for name in wanted.names if not callable(getattr(module, name, None))]
    if missing:
        own = inspect.getmembers(module, lambda value: inspect.isfunction(value) and value.__module__ == wanted.module)
        there = [name for name, _ in own if not name.startswith("_")]
        raise InputError(
            f"the module {wanted.module} has no function {', '.join(missing)}; it has {', '.join(there) or 'none'}"
        )
    return [getattr(module, name) for name in wanted.names]


def _module(name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does: a module of one's own lies in the current folder
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module of the user's may fail in any way
        raise InputError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error
