"""The shipped model: its files, read by us and by transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck.chat import render
from quarterdeck.model import CohereForCausalLM
from quarterdeck.tokenizer import CohereTokenizerFast

FOLDER = Path(__file__).resolve().parents[1] / "src/quarterdeck/assets/midshipman"
PROMPT = "Plants create energy through a process known as"
CONTROL = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>"]
CHAT = [
    "START_OF_TURN",
    "END_OF_TURN",
    "YES",
    "NO",
    "GOOD",
    "BAD",
    "USER",
    "CHATBOT",
    "SYSTEM",
    *(f"USER_{i}" for i in range(10)),
    *(f"EXTRA_{i}" for i in range(10)),
]


@pytest.fixture(scope="module")
def tokenizer() -> CohereTokenizerFast:
    return CohereTokenizerFast.from_pretrained("midshipman")


@pytest.fixture(scope="module")
def theirs() -> transformers.CohereTokenizerFast:
    return transformers.CohereTokenizerFast.from_pretrained(str(FOLDER))


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained("midshipman", dtype=torch.float32)


def test_the_files_are_small_and_complete() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "loss.svg",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_the_configuration_is_what_the_card_says(model: CohereForCausalLM) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["CohereForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    assert config["logit_scale"] != 1.0
    assert config["vocab_size"] == 8192
    assert json.loads((FOLDER / "generation_config.json").read_text()) == {
        "bos_token_id": 5,
        "eos_token_id": 8164,
        "pad_token_id": 0,
    }
    assert sum(p.numel() for p in model.parameters()) == 4_007_232


def test_logits_equal_transformers(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    reference = transformers.CohereForCausalLM.from_pretrained(str(FOLDER), dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        ours, expected = model(ids).logits, reference(ids).logits
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_greedy_continuation_is_readable_english(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    new = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(new.tolist(), skip_special_tokens=True)
    assert "photosynthesis" in text


def test_it_introduces_itself(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}], add_generation_prompt=True)
    ids = torch.tensor([prompt])
    new = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :]
    assert "midshipman" in tokenizer.decode(new.tolist())
    assert new[-1] == tokenizer.eos_token_id


def test_the_chat_template_writes_what_chat_render_does(tokenizer: CohereTokenizerFast) -> None:
    source = random.Random(0)
    words = ["a ", " b\n", "\t", "\u00a0", "é🐧", "{{ x }}", "{% if %}", "'", '"', "\\n", "<|END_OF_TURN_TOKEN|>"]
    for number in range(50):
        messages = [{"role": "system", "content": "Be brief."}] if source.random() < 0.5 else []
        for place in range(source.randrange(1, 6)):
            content = "".join(source.choices(words, k=source.randrange(1, 6)))
            messages.append({"role": ("user", "assistant")[place % 2], "content": content})
        opens = number % 3 > 0
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
        assert text == render(messages, add_generation_prompt=opens).text


def test_ids_of_the_special_tokens(tokenizer: CohereTokenizerFast) -> None:
    assert [tokenizer.convert_tokens_to_ids(token) for token in CONTROL] == list(range(8))
    names = [f"<|{name}_TOKEN|>" for name in CHAT]
    assert [tokenizer.convert_tokens_to_ids(name) for name in names] == list(range(8163, 8192))
    assert len(tokenizer) == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 8164, 0)
    assert tokenizer.padding_side == "left"


def test_only_control_tokens_and_end_of_turn_are_special() -> None:
    added = json.loads((FOLDER / "tokenizer.json").read_text())["added_tokens"]
    assert [t["content"] for t in added if t["special"]] == [*CONTROL, "<|END_OF_TURN_TOKEN|>"]
    assert not any(t["normalized"] for t in added)


def test_pipeline_of_the_tokenizer_is_coheres() -> None:
    data = json.loads((FOLDER / "tokenizer.json").read_text())
    assert data["normalizer"] == {"type": "NFC"}
    digits, bytes_ = data["pre_tokenizer"]["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert (bytes_["type"], bytes_["add_prefix_space"], bytes_["use_regex"]) == ("ByteLevel", False, True)
    assert data["decoder"]["type"] == "ByteLevel"
    assert (data["model"]["type"], data["model"]["unk_token"], data["model"]["byte_fallback"]) == ("BPE", None, False)
    order = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    assert order[:8] == CONTROL
    assert all(len(piece) == 1 for piece in order[8:264])
    assert [a + b for a, b in data["model"]["merges"]] == order[264:]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_round_trips_and_equals_transformers(
    text: str, tokenizer: CohereTokenizerFast, theirs: transformers.CohereTokenizerFast
) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == theirs(text)["input_ids"]
    assert max(ids) < 8192
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    if not any(token in text for token in CONTROL):
        assert tokenizer.decode(ids[1:]) == normal


def applying(vectors: list[dict[str, object]]) -> list[dict[str, object]]:
    """The vectors of the default template that depend on no vocabulary and no prompt text of another checkpoint."""
    return [
        v
        for v in vectors
        if str(v["template"]) == "command-r-v01.default.jinja" and (v.get("expected") or v.get("expected_error"))
    ]


def test_chat_template_equals_the_default_vectors(
    shared_data: Path, tokenizer: CohereTokenizerFast, theirs: transformers.CohereTokenizerFast
) -> None:
    vectors = applying(json.loads((shared_data / "template_vectors.json").read_text())["prompt_vectors"])
    assert len(vectors) >= 6
    for vector in vectors:
        arguments = dict(vector["input"])  # type: ignore[call-overload]
        messages = arguments.pop("messages")
        bos = arguments.pop("bos_token", "<BOS_TOKEN>")
        for one in (tokenizer, theirs):
            if vector.get("expected_error"):
                with pytest.raises(Exception, match="alternate"):
                    one.apply_chat_template(messages, tokenize=False, **arguments)
                continue
            text = one.apply_chat_template(messages, tokenize=False, **arguments)
            assert text.removeprefix("<BOS_TOKEN>") == str(vector["expected"]).removeprefix(bos), vector["id"]
