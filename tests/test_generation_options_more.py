"""Guidance, watermarks and allowed prefixes as in transformers, and that every name of theirs has its place here."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Pair, make_pair, random_ids
from quarterdeck import GenerationConfig
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.inputs import MODEL_INPUTS
from quarterdeck.generation.options import CALL_ARGUMENTS, OPTIONS
from quarterdeck.generation.watermark_config import WatermarkingConfig

transformers = pytest.importorskip("transformers")

V = 99


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair("sdpa", max_position_embeddings=128)


def check(pair: Pair, *args: Any, **options: Any) -> Tensor:
    """Both give the same tokens and the same scores, and the options matter."""
    dictionary: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 14}
    results = []
    for model in (pair.ours, pair.theirs):
        torch.manual_seed(3)
        results.append(model.generate(*args, **(dictionary | options)))
    ours, theirs = results
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-3)
    return ours.sequences


# ------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.7, 4.0])
@pytest.mark.parametrize(
    "more", [{}, {"do_sample": True, "top_k": 30}, {"use_cache": False}, {"repetition_penalty": 1.3}]
)
def test_guidance(pair: Pair, scale: float, more: dict[str, Any]) -> None:
    ids, other = random_ids(2, 7), random_ids(2, 4, seed=2)
    found = check(pair, ids, guidance_scale=scale, negative_prompt_ids=other, eos_token_id=None, **more)
    torch.manual_seed(3)
    assert found.tolist() != pair.ours.generate(ids, max_new_tokens=14, eos_token_id=None, **more).tolist()


def test_guidance_away_from_the_last_token(pair: Pair) -> None:
    check(pair, random_ids(2, 7), guidance_scale=2.0, eos_token_id=[7, 20, 33, 60])


def test_guidance_away_from_a_padded_prompt(pair: Pair) -> None:
    other, mask = random_ids(2, 6, seed=2), torch.ones(2, 6, dtype=torch.int64)
    mask[0, :3] = 0
    options: dict[str, Any] = {"negative_prompt_ids": other, "negative_prompt_attention_mask": mask}
    found = check(pair, random_ids(2, 7), guidance_scale=2.0, eos_token_id=None, **options)
    alone = pair.ours.generate(
        random_ids(2, 7)[:1],
        guidance_scale=2.0,
        negative_prompt_ids=other[:1, 3:],
        max_new_tokens=14,
        eos_token_id=None,
    )
    assert found[:1].tolist() == alone.tolist()


def test_guidance_of_several_answers(pair: Pair) -> None:
    """Where transformers fails: the other prompt goes with every copy."""
    options: dict[str, Any] = {"guidance_scale": 2.0, "max_new_tokens": 8, "eos_token_id": None, "do_sample": True}
    ids = pair.ours.generate(
        random_ids(1, 7), negative_prompt_ids=random_ids(1, 4), num_return_sequences=3, seed=1, **options
    )
    assert ids.shape == (3, 15)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("no effect without guidance_scale", {"negative_prompt_ids": random_ids(1, 3)}),
        ("without negative_prompt_ids", {"guidance_scale": 2.0, "negative_prompt_attention_mask": torch.ones(1, 3)}),
        (r"must be token ids \[1, tokens\]", {"guidance_scale": 2.0, "negative_prompt_ids": torch.zeros(1, 3)}),
        ("has 2 rows and the prompt 1", {"guidance_scale": 2.0, "negative_prompt_ids": random_ids(2, 3)}),
        ("outside 0 to 98", {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[99]])}),
        ("has 126 tokens, 3 new", {"guidance_scale": 2.0, "negative_prompt_ids": random_ids(1, 126)}),
        ("guidance_scale='much'", {"guidance_scale": "much"}),
        ("prefix_allowed_tokens_fn=3 cannot be called", {"prefix_allowed_tokens_fn": 3}),
        ("allows no token for row 0 after 5 tokens", {"prefix_allowed_tokens_fn": lambda row, ids: []}),
    ],
)
def test_refused(pair: Pair, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        pair.ours.generate(random_ids(1, 5), max_new_tokens=3, **options)


def test_guidance_of_beams_is_refused(pair: Pair) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"guidance_scale=2.0 with num_beams=2 .*Set num_beams=1"):
        pair.ours.generate(random_ids(1, 5), max_new_tokens=3, guidance_scale=2.0, num_beams=2)


# ------------------------------------------------------------------------- allowed prefixes


@pytest.mark.parametrize("more", [{}, {"do_sample": True}, {"num_beams": 3, "num_return_sequences": 2}])
def test_allowed_prefixes(pair: Pair, more: dict[str, Any]) -> None:
    rows: set[int] = set()

    def allowed(row: int, ids: Tensor) -> list[int]:
        rows.add(row)
        return [(int(ids[-1]) * 7 + step + row) % V for step in range(6)]

    found = check(pair, random_ids(2, 5), prefix_allowed_tokens_fn=allowed, eos_token_id=None, **more)
    assert rows == {0, 1}
    for number, row in enumerate(found.tolist()):
        prompt = number // (len(found) // 2)
        for before, token in itertools.pairwise(row[4:]):
            assert token in allowed(prompt, torch.tensor([before]))


# ------------------------------------------------------------------------- watermarks

MARKS: list[dict[str, Any]] = [
    {},
    {"bias": 4.0, "greenlist_ratio": 0.5},
    {"seeding_scheme": "selfhash", "context_width": 2, "bias": 3.0},
    {"hashing_key": 90217, "context_width": 3},
]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("more", [{}, {"do_sample": True, "renormalize_logits": True}])
def test_watermarks(pair: Pair, mark: dict[str, Any], more: dict[str, Any]) -> None:
    check(pair, random_ids(2, 7), watermarking_config=mark, eos_token_id=None, **more)


def test_the_detector_of_transformers_finds_the_mark(pair: Pair) -> None:
    mark = WatermarkingConfig(bias=6.0)
    detector = transformers.WatermarkDetector(
        pair.theirs.config, "cpu", transformers.WatermarkingConfig(**mark.to_dict()), ignore_repeated_ngrams=False
    )
    options: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": None, "do_sample": True, "seed": 5}
    marked = pair.ours.generate(random_ids(1, 7), watermarking_config=mark, **options)
    plain = pair.ours.generate(random_ids(1, 7), **options)
    assert detector(marked[:, 7:]).tolist() == [True]
    assert detector(plain[:, 7:]).tolist() == [False]
    guessed = pair.ours.generate(random_ids(1, 7), watermarking_config=mark, prompt_lookup_num_tokens=3, **options)
    assert guessed.tolist() == marked.tolist()


def test_a_watermark_goes_to_a_file_and_comes_back(tmp_path: Path) -> None:
    config = GenerationConfig(watermarking_config=WatermarkingConfig(bias=3.0))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())["watermarking_config"]
    assert written == transformers.WatermarkingConfig(bias=3.0).to_dict()
    assert GenerationConfig.from_pretrained(tmp_path) == config
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert theirs.watermarking_config.bias == 3.0
    assert GenerationConfig(watermarking_config=theirs.watermarking_config) == config


@pytest.mark.parametrize(
    ("error", "message", "value"),
    [
        (InputError, "greenlist_ratio=1.5 must be a number between", {"greenlist_ratio": 1.5}),
        (InputError, "seeding_scheme='hash' must be 'lefthash' or", {"seeding_scheme": "hash"}),
        (InputError, "context_width=0 must be", {"context_width": 0}),
        (InputError, "hashing_key=0.5 must be", {"hashing_key": 0.5}),
        (InputError, "bias='x' must be", {"bias": "x"}),
        (InputError, "watermarking_config is a int", 3),
        (UnsupportedOptionError, "'keys'.*SynthID", transformers.SynthIDTextWatermarkingConfig(5, [1, 2])),
    ],
)
def test_other_watermarks_are_refused(error: type[Exception], message: str, value: Any) -> None:
    with pytest.raises(error, match=message):
        GenerationConfig(watermarking_config=value)


# ------------------------------------------------------------------------- every name of theirs

METADATA = {"_from_model_config", "transformers_version"}
"""What ``to_dict`` has besides options: where the file came from. Kept in ``GenerationConfig.extra``."""


def their_arguments() -> set[str]:
    """Arguments of their ``generate``, with those that it takes out of its keyword arguments."""
    function = transformers.GenerationMixin.generate
    named = set(inspect.signature(function).parameters) - {"self", "kwargs"}
    return named | set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', inspect.getsource(function)))


def test_every_option_of_theirs_is_implemented_or_refused_with_a_reason() -> None:
    for name in set(transformers.GenerationConfig().to_dict()) - METADATA:
        assert name in OPTIONS, name
        reason = OPTIONS[name].reason
        assert reason is None or len(reason) > 30, name


def test_every_argument_of_their_generate_is_taken_or_refused_with_a_reason(pair: Pair) -> None:
    names = their_arguments()
    assert {"assistant_model", "tokenizer", "assistant_tokenizer", "trust_remote_code"} <= names
    ours = set(inspect.signature(pair.ours.generate).parameters) | set(MODEL_INPUTS)
    for name in sorted(names):
        assert name in ours | set(CALL_ARGUMENTS), name
        if CALL_ARGUMENTS.get(name):
            with pytest.raises(UnsupportedOptionError, match=f"'{name}' is refused: "):
                pair.ours.generate(random_ids(1, 3), max_new_tokens=1, **{name: object()})
        elif name not in ours:
            assert pair.ours.generate(random_ids(1, 3), max_new_tokens=1, **{name: None}).shape == (1, 4)


def test_metadata_of_a_file_is_kept() -> None:
    theirs = transformers.GenerationConfig(top_k=3).to_dict()
    assert set(GenerationConfig.from_dict(theirs).extra) == METADATA
