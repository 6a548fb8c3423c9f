"""How far training has come and which learning rate that means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quarterdeck.errors import InputError


@dataclass(frozen=True)
class Budget:
    """The end of training: after `steps` steps or `minutes` minutes of training time, exactly one of them given.

    Raises:
        InputError: none or both are given, or the one that is given is not above 0.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(f"a budget is either steps or minutes; got steps={self.steps}, minutes={self.minutes}")
        name, value = ("steps", self.steps) if self.steps is not None else ("minutes", self.minutes)
        if value is None or not value > 0:
            raise InputError(f"a budget of {name}={value} trains nothing; give {name} above 0")

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end; `elapsed` is the training time in seconds over all sessions."""
        if self.minutes is not None:
            return min(1.0, elapsed / (60.0 * self.minutes))
        assert self.steps is not None
        return min(1.0, step / self.steps)


def learning_rate_factor(step: int, progress: float, *, warmup: int, hold: float, final: float) -> float:
    """Linear warm-up over `warmup` steps, then 1 until progress `hold`, then a half cosine down to `final`."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    if progress <= hold:
        return rise
    fall = (progress - hold) / (1.0 - hold)
    return rise * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * fall)))
