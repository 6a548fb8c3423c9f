"""How long loading a tokenizer takes: ours, the `tokenizers` library alone, and transformers.

    python benchmarks/tokenizer_load.py FOLDER [--repeats 7]

FOLDER holds tokenizer.json (or give the file itself). The three take turns, so that what else the machine does meets
all of them; the median of each is printed. Importing is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from quarterdeck.tokenizer import CohereTokenizerFast


def loaders(folder: Path, tokenizer_file: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name; transformers only if it is installed."""
    found: dict[str, Callable[[], object]] = {
        "tokenizers alone": lambda: Tokenizer.from_file(str(tokenizer_file)),
        "quarterdeck": lambda: CohereTokenizerFast.from_pretrained(folder),
    }
    try:
        from transformers import CohereTokenizerFast as PeerTokenizer
    except ImportError:
        print("transformers is not installed: comparing without it")
    else:
        found["transformers"] = lambda: PeerTokenizer.from_pretrained(folder)
    return found


def measure(found: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each load, the loaders taking turns; the first turn only warms up."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(repeats + 1):
        for name, load in found.items():
            start = time.perf_counter()
            tokenizer = load()
            elapsed = time.perf_counter() - start
            del tokenizer
            if turn:
                times[name].append(elapsed)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of a tokenizer, or its tokenizer.json")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    folder = options.path if options.path.is_dir() else options.path.parent
    times = measure(loaders(folder, folder / "tokenizer.json"), options.repeats)
    alone = statistics.median(times["tokenizers alone"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{name:18} median {median:6.3f} s   min {min(seconds):6.3f} s   {median / alone:5.2f} x tokenizers alone"
        )


if __name__ == "__main__":
    main()
