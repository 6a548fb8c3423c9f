"""The curves of a run: log.jsonl to CSV and to a small drawing (SVG), written by hand so that no library is needed."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quarterdeck.errors import CheckpointCorruptError, InputError

Point = tuple[float, float]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 300, 46, 42, 30, 46
_COLORS = ("#4a78b5", "#c8501e", "#3f8f4f", "#8a5aa8", "#b08a1e", "#2a8c9c", "#b0446c", "#6b6b6b")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl; a last line that a killed process has half written is left out.

    Raises:
        CheckpointCorruptError: another line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    log: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            log.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                said = f"line {number} of {len(lines)} in {path} is no JSON ({error}); only the last one may be cut off"
                raise CheckpointCorruptError(f"{said}: remove that line") from error
    return log


def mean(values: dict[str, float]) -> float:
    """Of the families."""
    return sum(values.values()) / len(values)


def to_csv(log: Sequence[dict[str, Any]]) -> str:
    """One row per logged step: its numbers, and loss and accuracy of every held-out family where it has them."""
    families = sorted({name for line in log for name in line.get("held_out", {})})
    numbers = ("step", "documents", "tokens", "supervised", "elapsed", "progress", "loss")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*numbers, *(f"{kind} {name}" for kind in ("loss", "accuracy") for name in families)])
    for line in log:
        scores = [line.get(kind, {}).get(name, "") for kind in ("held_out", "accuracy") for name in families]
        writer.writerow([*(line.get(key, "") for key in numbers), *scores])
    return out.getvalue()


def draw(log: Sequence[dict[str, Any]]) -> str:
    """Loss (left axis, logarithmic) and accuracy of held-out families (right axis) over millions of tokens.

    Raises:
        InputError: the log has no lines.
    """
    if not log:
        raise InputError("a log of 0 lines has no curves; train until the first line is logged")
    most = max(line["tokens"] for line in log) or 1
    losses = [(line["tokens"] / most, line["loss"]) for line in log]
    tested = [line for line in log if "held_out" in line]
    held_out = [(line["tokens"] / most, mean(line["held_out"])) for line in tested]
    accuracy = [(line["tokens"] / most, mean(line["accuracy"])) for line in tested]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_axes(most),
        _path([_place(x, _of_loss(y)) for x, y in losses], _COLORS[0]),
        _path([_place(x, _of_loss(y)) for x, y in held_out], _COLORS[1]),
        _path([_place(x, y) for x, y in accuracy], _COLORS[2]),
        f'<text x="{_LEFT}" y="18">over millions of tokens: <tspan fill="{_COLORS[0]}">training loss</tspan>, '
        f'<tspan fill="{_COLORS[1]}">held-out loss</tspan> (nats, left), '
        f'<tspan fill="{_COLORS[2]}">held-out tokens right</tspan> (right)</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def _of_loss(loss: float) -> float:
    """Height in 0..1 of a loss between 0.01 and 10."""
    return (math.log10(min(max(loss, 0.01), 10.0)) + 2.0) / 3.0


def _place(x: float, y: float) -> Point:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y


def _axes(most: float) -> list[str]:
    parts = []
    for loss in (0.01, 0.1, 1.0, 10.0):
        _, y = _place(0, _of_loss(loss))
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:g}</text>'
        )
    for quarter in range(5):
        x, y = _place(quarter / 4, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{most * quarter / 4e6:.1f}</text>')
        right, height = _place(1, quarter / 4)
        parts.append(f'<text x="{right + 6:.1f}" y="{height + 4:.1f}">{25 * quarter} %</text>')
    return parts


def _path(points: Sequence[Point], color: str) -> str:
    steps = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def write_curves(folder: Path) -> None:
    """curves.csv and curves.svg beside a run's log.jsonl."""
    log = read_log(folder / "log.jsonl")
    (folder / "curves.csv").write_text(to_csv(log), encoding="utf-8")
    (folder / "curves.svg").write_text(draw(log), encoding="utf-8")
