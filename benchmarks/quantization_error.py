"""Perplexity of the embedded model in every quantized format, on text that neither it nor the calibration has seen.

    python benchmarks/quantization_error.py [--documents 60] [--calibration 60] [--layers]

"own" is text of the families that the model was trained on (explanations, stories, chats), drawn anew by the training
scripts with a seed that was not used for training; "foreign" is prose of this repository's pages, of which the model
has seen nothing and knows nothing. Calibration is own text of a third seed. Perplexity is that of the next token, over
documents of at most 256 tokens, each by itself; the divergence (Kullback-Leibler, from the float32 model's prediction)
shows differences that a text known by heart hides. ``--layers`` shows the error of each module.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereForCausalLM, QuantizationConfig
from quarterdeck.quantization.calibration import quantization_steps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.midshipman.prepare import own_texts  # noqa: E402 (of the repository, not of the package)

LONGEST = 256  # tokens: what the model was trained on
CALIBRATION_SEED, TEST_SEED = 1002, 1003
WAYS = {
    "int8": QuantizationConfig(format="int8"),
    "int8, gptq": QuantizationConfig(format="int8", method="gptq"),
    "int4": QuantizationConfig(),
    "int4, gptq": QuantizationConfig(method="gptq"),
    "int4 asymmetric": QuantizationConfig(symmetric=False),
    "int4 asymmetric, gptq": QuantizationConfig(symmetric=False, method="gptq"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Perplexity of the embedded model in every quantized format.")
    parser.add_argument("--documents", type=int, default=60, help="documents of each kind to measure on")
    parser.add_argument("--calibration", type=int, default=60, help="documents of each family to calibrate with")
    parser.add_argument("--layers", action="store_true", help="show the error of each module")
    return parser.parse_args()


def own_documents(count: int, seed: int) -> list[str]:
    """``count`` documents of each family, in turn."""
    families = own_texts(count, count, count, seed)
    return [text for texts in zip(*families.values(), strict=True) for text in texts]


def foreign_documents(count: int) -> list[str]:
    """Paragraphs of this repository's pages, without code, tables and markup."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for paragraph in text.split("\n\n"):
            if not re.match(r"\s*[|#<>\-*0-9]", paragraph) and len(paragraph) > 200:
                found.append(re.sub(r"[`*]|\]\([^)]*\)|\[", "", " ".join(paragraph.split())))
    return found[:count]


def encoded(documents: list[str]) -> list[Tensor]:
    """Token ids ``[1, T]`` of each, cut to the length that the model knows."""
    tokenizer = AutoTokenizer.from_pretrained("midshipman")
    return [tokenizer(text, return_tensors="pt")["input_ids"][:, :LONGEST] for text in documents]


@torch.no_grad()
def compared(model: CohereForCausalLM, exact: CohereForCausalLM, documents: list[Tensor]) -> tuple[float, float]:
    """Perplexity of the next token, and the mean divergence of its distribution from the exact model's, in nats."""
    loss, divergence, count = 0.0, 0.0, 0
    for ids in documents:
        found, expected = (one(ids).logits[0, :-1].log_softmax(-1) for one in (model, exact))
        loss -= float(found.gather(-1, ids[0, 1:, None]).sum())
        divergence += float((expected.exp() * (expected - found)).sum())
        count += ids.shape[1] - 1
    return math.exp(loss / count), divergence / count


def models(calibration: list[Tensor], *, layers: bool) -> Iterator[tuple[str, CohereForCausalLM]]:
    """Name and model of every way."""
    for way, config in {"float32": None, **WAYS}.items():
        model = AutoModelForCausalLM.from_pretrained("midshipman", dtype=torch.float32)
        if config is not None:
            for error in quantization_steps(model, config, calibration):
                if layers:
                    output = "" if error.output_error is None else f"{error.output_error:8.4f}"
                    print(f"  {error.name:42s} {error.weight_error:8.4f} {output}")
        yield way, model


def main() -> None:
    args = arguments()
    own, foreign = encoded(own_documents(args.documents, TEST_SEED)), encoded(foreign_documents(args.documents))
    tokens = [sum(ids.shape[1] - 1 for ids in documents) for documents in (own, foreign)]
    print(f"own: {len(own)} documents, {tokens[0]} tokens; foreign: {len(foreign)} documents, {tokens[1]} tokens\n")
    print("| weights | MB | perplexity, own | divergence, own | perplexity, foreign | divergence, foreign |")
    print("|---|---|---|---|---|---|")
    exact = AutoModelForCausalLM.from_pretrained("midshipman", dtype=torch.float32)
    for way, model in models(encoded(own_documents(args.calibration, CALIBRATION_SEED)), layers=args.layers):
        (near, near_part), (far, far_part) = (compared(model, exact, documents) for documents in (own, foreign))
        size = model.get_memory_footprint() / 1e6
        print(f"| {way} | {size:.1f} | {near:.3f} | {near_part:.4f} | {far:.0f} | {far_part:.3f} |", flush=True)


if __name__ == "__main__":
    main()
