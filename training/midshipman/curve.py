"""The loss curve of a run as a small drawing (SVG), written by hand so that no plotting library is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 320, 52, 42, 30, 16


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out_mean(line: dict[str, Any]) -> float:
    """Mean of the families' held-out losses in one log line."""
    values = list(line["held_out"].values())
    return float(sum(values) / len(values))


def _path(points: list[tuple[float, float]], color: str) -> str:
    steps = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def draw(log: list[dict[str, Any]]) -> str:
    """Training and held-out loss (nats per token) over tokens seen."""
    most = max(line["tokens"] for line in log)
    low, high = 1.0, 9.0

    def place(tokens: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * tokens / most
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(loss, low), high)) / (high - low)
        return x, y

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in range(int(low), int(high) + 1):
        _, y = place(0, loss)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss}</text>'
        )
    for quarter in range(5):
        x, y = place(most * quarter / 4, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{most * quarter / 4e6:.1f}</text>')
    parts.append(_path([place(line["tokens"], line["loss"]) for line in log], "#4a78b5"))
    parts.append(_path([place(line["tokens"], held_out_mean(line)) for line in log if "held_out" in line], "#c8501e"))
    parts.append(
        f'<text x="{LEFT}" y="18">midshipman: loss in nats per token over millions of tokens; '
        '<tspan fill="#4a78b5">training mixture</tspan>, '
        '<tspan fill="#c8501e">mean of the held-out families</tspan></text></svg>'
    )
    return "\n".join(parts) + "\n"
