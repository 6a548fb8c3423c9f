"""Where batches come from: this process, or several others that work ahead.

A maker is a function of the step and of how far training has come. Nothing else decides what a batch holds: so a
source has no state to save, and any number of workers gives the same batches.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from quarterdeck.training.packing import PackedRows

MakeRows = Callable[[int, float], PackedRows]
"""(step, progress in 0..1) to a batch."""


class Batches(Protocol):
    """A source of batches, asked for one step after another."""

    def batch(self, step: int, progress_of: Callable[[int], float]) -> PackedRows:
        """The batch of a step; ``progress_of`` says how far training will have come at a step."""
        ...

    def close(self) -> None:
        """Nobody will ask again."""
        ...


class LocalBatches:
    """Made when they are asked for."""

    def __init__(self, make: MakeRows) -> None:
        self._make = make

    def batch(self, step: int, progress_of: Callable[[int], float]) -> PackedRows:
        """The batch of a step."""
        return self._make(step, progress_of(step))

    def close(self) -> None:
        """Nothing to do."""


class WorkerBatches:
    """Made by other processes, ahead of time.

    Args:
        build: makes the maker, once in each worker; has to be picklable.
        workers: how many.
        ahead: how many batches each worker is asked for in advance.
    """

    def __init__(self, build: Callable[[], MakeRows], workers: int, ahead: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(build, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._depth = workers * ahead
        self._asked: deque[int] = deque()

    def batch(self, step: int, progress_of: Callable[[int], float]) -> PackedRows:
        """The batch of a step; those of the next steps are asked for.

        Raises:
            EOFError: the worker has died; it has said why on its standard error.
        """
        first = self._asked[-1] + 1 if self._asked else step
        for number in range(first, step + self._depth):
            self._pipes[number % len(self._pipes)].send((number, progress_of(number)))
            self._asked.append(number)
        if self._asked.popleft() != step:
            raise AssertionError(f"steps are asked for one after another, and {step} is out of order")
        made: PackedRows = self._pipes[step % len(self._pipes)].recv()
        return made

    def close(self) -> None:
        """End the workers."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


def _work(build: Callable[[], MakeRows], pipe: Connection) -> None:
    make = build()
    while True:
        try:
            step, progress = pipe.recv()
        except (EOFError, ConnectionResetError):  # closed by the trainer, before or while a batch lies in the pipe
            return
        pipe.send(make(step, progress))
