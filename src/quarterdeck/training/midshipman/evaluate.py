"""What a midshipman can do, counted: `python -m quarterdeck.training.midshipman.evaluate [FOLDER] [--gates gpu|cpu]`.

Some hundred requests go to the model in batches, and what it writes through `quarterdeck.chat.answer`, as `LLM.chat`
does it: without grammars, greedily. The table has counts and 95% confidence intervals (Wilson). With --gates the exit
code is 0 if every gate of gates.json is passed, 1 if not, and 2 if there was nothing to evaluate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat.answers.answering import answer
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.template import Prompt
from quarterdeck.training.midshipman.cases import make_groups
from quarterdeck.training.midshipman.example import END_OF_TURN, Example
from quarterdeck.training.midshipman.scoring import METRICS, Outcome
from quarterdeck.training.script import run_script

INDUCTION, GIVEN = "repeats random tokens", 4


class Candidate(Protocol):
    """A model as the evaluation sees it."""

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """What it writes after each prompt, up to the end of its turn."""
        ...

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The `count` ids that follow each of some rows of ids, all of one length."""
        ...


class BatchedModel:
    """A model and its tokenizer; prompts of similar length are answered together.

    Args:
        model, tokenizer: of Quarterdeck.
        batch: how many prompts at a time.
        longest: tokens that an answer may have.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 16, longest: int = 260) -> None:
        self._model, self._tokenizer, self._batch, self._longest = model.eval(), tokenizer, batch, longest
        self._end = tokenizer.convert_tokens_to_ids(END_OF_TURN)

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy texts; a prompt that does not fit the model's context gets none, and so counts as wrong."""
        rows = [prompt.token_ids(self._tokenizer) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        order = [number for number in order if len(rows[number]) < self._model.config.context_length]
        texts = [""] * len(rows)
        for begin in range(0, len(order), self._batch):
            chosen = order[begin : begin + self._batch]
            for number, ids in zip(chosen, self._generate([rows[n] for n in chosen], self._longest), strict=True):
                ids = ids[: ids.index(self._end)] if self._end in ids else ids
                texts[number] = self._tokenizer.decode(ids, skip_special_tokens=False)
        return texts

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Greedy ids; an end of turn ends a row early."""
        return [ids[:count] for ids in self._generate(prompts, count)]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        width = max(map(len, rows))
        count = min(count, self._model.config.context_length - width)
        device = self._model.device
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        made = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=self._end, pad_token_id=0
        )
        return [row[width:] for row in made.tolist()]


class _Unwritten(Exception):  # noqa: N818 - no error: the second text of a request is still to be written
    """A prompt that the model has not answered yet."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__("not written yet")
        self.prompt = prompt


class _Written:
    """A source of raw text for `answer`: what the model has written already."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def __call__(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> Iterable[str]:
        if prompt.text not in self._texts:
            raise _Unwritten(prompt)
        return [self._texts[prompt.text]]


def run_cases(candidate: Candidate, groups: Mapping[str, Sequence[Example]]) -> list[Outcome]:
    """Every case answered; a request that takes two generations gets its second in another round."""
    cases = [(group, example, example.prompt()) for group, examples in groups.items() for example in examples]
    texts: dict[str, str] = {}
    waiting = [prompt for _, _, prompt in cases]
    while waiting:
        fresh = list({prompt.text: prompt for prompt in waiting if prompt.text not in texts}.values())
        texts |= dict(zip((prompt.text for prompt in fresh), candidate.complete(fresh), strict=True))
        waiting = []
        outcomes = []
        for group, example, prompt in cases:
            try:
                outcomes.append(_outcome(group, example, prompt, texts))
            except _Unwritten as one:
                waiting.append(one.prompt)
    return outcomes


def _outcome(group: str, example: Example, prompt: Prompt, texts: Mapping[str, str]) -> Outcome:
    reply = answer(_Written(texts), list(example.messages), **example.options())
    return Outcome(group, example, prompt, texts[prompt.text], reply)


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share; (0, 1) if nothing was counted.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not count:
        return 0.0, 1.0
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    metric: str
    right: int
    count: int
    low: float
    high: float
    gate: float | None = None

    @property
    def share(self) -> float:
        """Right ones in 0..1; nothing counted is nothing right."""
        return self.right / self.count if self.count else 0.0

    @property
    def passes(self) -> bool:
        """There is no gate, or the share reaches it."""
        return self.gate is None or self.share >= self.gate


def gates(name: str | None) -> dict[str, float]:
    """The gates of a size of model ("gpu", "cpu"), or none."""
    if name is None:
        return {}
    path = resources.files("quarterdeck.training.midshipman").joinpath("gates.json")
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))[name]
    return found


def induction(candidate: Candidate, scale: float, seed: int, span: int = 64) -> tuple[int, int]:
    """Right tokens, and all: random spans, 16 times `scale`, are begun a second time, and the model goes on."""
    rng, count = random.Random(f"induction {seed}"), max(1, round(16 * scale))
    spans = [[rng.randrange(8, 8163) for _ in range(span)] for _ in range(count)]
    begun = [[5, *one, *one[:GIVEN]] for one in spans]
    made = candidate.continue_ids(begun, span - GIVEN)
    right = sum(a == b for one, ids in zip(spans, made, strict=True) for a, b in zip(one[GIVEN:], ids, strict=False))
    return right, count * (span - GIVEN)


def evaluate(candidate: Candidate, *, scale: float = 1.0, seed: int = 7, gate: str | None = None) -> list[Row]:
    """The table."""
    return table(run_cases(candidate, make_groups(scale, seed)), induction(candidate, scale, seed), gate)


def table(outcomes: Sequence[Outcome], repeated: tuple[int, int], gate: str | None = None) -> list[Row]:
    """A row for every metric, of what `run_cases` and `induction` have found."""
    asked = gates(gate)
    counts = {INDUCTION: repeated}
    for metric, (names, score) in METRICS.items():
        scores = [score(one) for one in outcomes if one.group in names]
        known = [one for one in scores if one is not None]
        counts[metric] = (sum(known), len(known))
    return [
        Row(metric, right, count, *wilson(right, count), asked.get(metric)) for metric, (right, count) in counts.items()
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The table for a model card."""
    lines = ["| | right | of | % | 95% interval | gate |", "|---|---:|---:|---:|---|---:|"]
    for row in rows:
        gate = "" if row.gate is None else f"{100 * row.gate:.0f} {'passed' if row.passes else 'MISSED'}"
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        lines.append(f"| {row.metric} | {row.right} | {row.count} | {100 * row.share:.1f} | {interval} | {gate} |")
    return "\n".join(lines) + "\n"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="midshipman", help="folder of a model; default: the shipped one")
    parser.add_argument("--gates", choices=("gpu", "cpu"), help="which gates to pass")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer cases: 1 is about 680")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--examples", type=Path, help="write every case and what the model said there (JSON lines)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate a model on disk; the exit code."""
    args = parse_arguments(arguments)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device)
    candidate = BatchedModel(model, AutoTokenizer.from_pretrained(args.model), batch=args.batch)
    began = time.monotonic()
    outcomes = run_cases(candidate, make_groups(args.scale, args.seed))
    if args.examples:
        write_examples(outcomes, args.examples)
    rows = table(outcomes, induction(candidate, args.scale, args.seed), args.gates)
    print(markdown(rows) + f"\n{time.monotonic() - began:.0f} seconds")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(rows), encoding="utf-8")
    return 0 if all(row.passes for row in rows) else 1


def write_examples(outcomes: Iterable[Outcome], path: Path) -> None:
    """What was asked, expected and said, to read where it goes wrong."""
    with path.open("w", encoding="utf-8") as file:
        for one in outcomes:
            asked = one.example.messages[-1].content
            row = {"group": one.group, "asked": asked, "expected": one.example.completion, "said": one.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
