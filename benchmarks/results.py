"""The results of `compare_engines`: a table in Markdown with ratios and targets, and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compared import foot

TARGETS = {
    ("int8", "decode", "llama.cpp"): 1.3,
    ("int4", "decode", "llama.cpp"): 1.3,
    ("int8", "decode", "openvino"): 1.3,
    ("int8", "prefill", "llama.cpp"): 3.0,
    ("int8", "prefill", "openvino"): 2.5,
    ("int4", "prefill", "llama.cpp"): 2.5,
    ("float32", "prefill", "transformers"): 1.2,
    ("float32", "decode", "transformers"): 1.2,
    ("bf16", "prefill", "transformers"): 1.2,
    ("bf16", "decode", "transformers"): 1.2,
}
"""How many times as fast as the other engine Quarterdeck is to be; all lengths of prompts alike."""

READING = 0.85
"""The share of the machine's read bandwidth that decoding is to reach."""

ENGINES = ("quarterdeck", "llama.cpp", "openvino", "transformers")
COLOURS = {"quarterdeck": "#00796b", "llama.cpp": "#90a4ae", "openvino": "#b0bec5", "transformers": "#cfd8dc"}


def markdown(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table: tokens per second of each engine, and Quarterdeck's as a multiple of the others' with its target."""
    limits = facts["limits"]
    lines = [
        f"{facts['shape']}; {limits['threads']} threads, {limits['read_gb_per_second']:.1f} GB/s read, "
        f"{limits['float32_gflops']:.0f} GFLOP/s float32. Tokens per second, medians; in brackets how many times as "
        "fast Quarterdeck is, and the target.",
        "",
        "| format | what | " + " | ".join(ENGINES) + " | GB/s |",
        "|---|---|" + "---:|" * (len(ENGINES) + 1),
    ]
    for (kind, what), speeds in grouped(rows).items():
        own = speeds.get("quarterdeck")
        cells = [cell(kind, what, engine, speeds.get(engine), own) for engine in ENGINES]
        lines.append(f"| {kind} | {what} | {' | '.join(cells)} | {reading(own, limits['read_gb_per_second'])} |")
    if facts["missing"]:
        lines += ["", f"Not installed: {', '.join(facts['missing'])}."]
    lines += ["", "What was compared:", "", *foot(facts["compared"])]
    return "\n".join(lines) + "\n"


def grouped(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Format and what was measured, to engine, to figures."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for one in rows:
        found.setdefault((one["format"], one["what"]), {})[one["engine"]] = one
    return found


def cell(kind: str, what: str, engine: str, one: dict[str, Any] | None, own: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    speed = one["tokens_per_second"]
    if engine == "quarterdeck" or own is None:
        return f"{speed:.1f}"
    ratio, target = own["tokens_per_second"] / speed, TARGETS.get((kind, what.split()[0], engine))
    if target is None:
        return f"{speed:.1f} ({ratio:.2f}x)"
    return f"{speed:.1f} ({ratio:.2f}x of {target}x{'' if ratio >= target else ', MISSED'})"


def reading(own: dict[str, Any] | None, limit: float) -> str:
    if own is None or "gb_per_second" not in own:
        return ""
    share = own["gb_per_second"] / limit
    return f"{own['gb_per_second']:.1f} ({share:.0%} of reading{'' if share >= READING else ', MISSED'})"


def svg(rows: list[dict[str, Any]]) -> str:
    """Bars: each group as shares of its fastest engine, with tokens per second beside them."""
    height, left, width = 18, 170, 420
    parts, y = [], 30
    for (kind, what), speeds in grouped(rows).items():
        most = max(one["tokens_per_second"] for one in speeds.values())
        parts.append(f'<text x="8" y="{y + 13}" font-weight="600">{kind}, {what}</text>')
        for engine in (engine for engine in ENGINES if engine in speeds):
            speed = speeds[engine]["tokens_per_second"]
            bar = max(width * speed / most, 1)
            parts.append(f'<rect x="{left}" y="{y}" width="{bar:.1f}" height="{height - 4}" fill="{COLOURS[engine]}"/>')
            parts.append(f'<text x="{left + bar + 6:.1f}" y="{y + 11}">{engine} {speed:.1f}</text>')
            y += height
        y += 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {y}" font-family="sans-serif" font-size="11" '
        f'fill="#263238"><rect width="780" height="{y}" fill="#ffffff"/>'
        '<text x="8" y="18" font-size="13">Tokens per second</text>'
    )
    return head + "".join(parts) + "</svg>\n"
