"""Short runs with different settings, side by side: which learning rate, logit scale and shape to take.

    python -m training.midshipman.sweep --data DATA --seconds 40 --device cuda
    python -m training.midshipman.sweep --data DATA --seconds 600 --grid matrix-lr=0.01,0.04

One setting is changed at a time, beginning with the defaults of `train`. The table is sorted by held-out loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from quarterdeck.training.checkpoint import delete
from quarterdeck.training.curves import read_log
from quarterdeck.training.script import run_script
from training.midshipman import train

GRID = ("matrix-lr=0.01,0.04", "other-lr=0.0015,0.006", "logit-scale=0.25,1.0", "num-hidden-layers=4,10")


def settings(grid: Sequence[str]) -> Iterator[dict[str, str]]:
    """The defaults, then every value of every line of the grid alone."""
    yield {}
    for line in grid:
        name, _, values = line.partition("=")
        for value in values.split(","):
            yield {name: value}


def run_one(changes: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """The last log line of a short run; an earlier run of these settings is deleted."""
    name = "_".join(f"{key}-{value}" for key, value in changes.items()) or "defaults"
    folder = args.out / name
    command = ["--run", str(folder), "--data", str(args.data), "--minutes", str(args.seconds / 60.0)]
    command += ["--device", args.device, "--save-every", "1e9", "--evaluate-every", "1000000"]
    command += [part for key, value in changes.items() for part in (f"--{key}", value)]
    command += args.extra.split()
    (folder / "log.jsonl").unlink(missing_ok=True)
    delete(folder / "checkpoint")
    train.main(command)
    return {"name": name, **read_log(folder / "log.jsonl")[-1]}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, the best first."""
    rows = [(sum(r["held_out"].values()) / len(r["held_out"]), r) for r in results]
    lines = [
        "| settings | held-out loss | tokens right | training loss | steps | tokens |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for loss, r in sorted(rows, key=lambda row: row[0]):
        right = sum(r["accuracy"].values()) / len(r["accuracy"])
        lines.append(f"| {r['name']} | {loss:.4f} | {100 * right:.1f} % | {r['loss']} | {r['step']} | {r['tokens']} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line.

    Raises:
        InputError: --data is not what `prepare` makes.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("training/runs/sweep"))
    parser.add_argument("--seconds", type=float, default=40.0, help="training time of each run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grid", action="append", help="name=value,value; may be given several times")
    parser.add_argument("--extra", default="", help="more arguments for train, as one string")
    args = parser.parse_args(arguments)
    train.require_data(args.data)
    results = []
    for changes in settings(args.grid or GRID):
        results.append(run_one(changes, args))
        if args.device == "cuda":
            torch.cuda.empty_cache()
        (args.out / "sweep.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
