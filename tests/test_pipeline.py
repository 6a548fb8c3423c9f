"""pipeline("text-generation"): equal to the peer's on the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline_support import ASSISTANT, GREEDY, SYSTEM, USER
from quarterdeck import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereForCausalLM,
    GenerationConfig,
    Message,
    pipeline,
)
from quarterdeck.errors import InputError
from quarterdeck.pipelines import TextGenerationPipeline

pytest_plugins = ["pipeline_fixtures"]

INPUTS: dict[str, Any] = {
    "text": "The tallest penguins",
    "texts": ["The tallest penguins", "Hello , world", "1 2"],
    "chat": [SYSTEM, USER],
    "chats": [[USER], [SYSTEM, {"role": "user", "content": "Hi"}]],
    "chat to continue": [USER, ASSISTANT],
    "chats, one to continue": [[USER, ASSISTANT], [USER]],
    "empty": "",
    "text with spaces to clean": "Hello , world ! Don 't",
}
FLAGS: dict[str, dict[str, Any]] = {
    "default": {},
    "new text": {"return_full_text": False},
    "tensors": {"return_tensors": True},
    "return_text": {"return_text": True},
    "not cleaned": {"clean_up_tokenization_spaces": False},
    "special tokens": {"skip_special_tokens": False},
    "special tokens, new text": {"skip_special_tokens": False, "return_full_text": False},
    "batches": {"batch_size": 2},
    "batches of tensors": {"batch_size": 2, "return_tensors": True},
    "prefix": {"prefix": "Penguins are birds. "},
    "without BOS": {"add_special_tokens": False},
    "eos": {"eos_token_id": 300, "pad_token_id": 0},
}


class Questions(torch.utils.data.Dataset[str]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> str:
        return ("Hello", "The tallest", "1 2 3")[index]


@pytest.mark.parametrize("flag", FLAGS.keys())
@pytest.mark.parametrize("name", INPUTS.keys())
def test_greedy_results_equal_the_peers(ours: TextGenerationPipeline, peer: Any, name: str, flag: str) -> None:
    inputs, flags = INPUTS[name], FLAGS[flag]
    if flag == "prefix" and "chat" in name:
        return  # refused here, see test_a_prefix_is_refused_for_chats, and ignored there
    assert ours(inputs, **GREEDY, **flags) == peer(inputs, **GREEDY, **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"continue_final_message": True},
        {"continue_final_message": False},
        {
            "tokenizer_encode_kwargs": {
                "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
            }
        },
    ],
    ids=str,
)
def test_chat_options_equal_the_peers(ours: TextGenerationPipeline, peer: Any, flags: dict[str, Any]) -> None:
    assert ours([USER], **GREEDY, **flags) == peer([USER], **GREEDY, **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"truncation": True, "max_length": 6},
        {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 6}},
        {"padding": "max_length", "tokenizer_encode_kwargs": {"max_length": 40}},
    ],
    ids=str,
)
def test_tokenizer_options_equal_the_peers(ours: TextGenerationPipeline, peer: Any, flags: dict[str, Any]) -> None:
    text = "Emperor penguins are the tallest, growing up to 122 cm in height"
    assert ours(text, **GREEDY, **flags) == peer(text, **GREEDY, **flags)


@pytest.mark.parametrize("inputs", ["The tallest", [USER], ["The tallest"], ["The tallest", "Hi"], [[USER]]], ids=str)
def test_several_sequences_with_the_same_seed_equal_the_peers(
    ours: TextGenerationPipeline, peer: Any, inputs: Any
) -> None:
    results = []
    for generate in (ours, peer):
        torch.manual_seed(3)
        results.append(generate(inputs, max_new_tokens=6, num_return_sequences=3))
    assert results[0] == results[1]
    records = results[0] if isinstance(results[0][0], dict) else results[0][0]
    assert len({str(record["generated_text"]) for record in records}) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_generators_and_datasets_draw_as_the_peers(ours: TextGenerationPipeline, peer: Any, size: int) -> None:
    for make in (lambda: (text for text in ("The tallest", "Hello")), Questions):
        results = []
        for generate in (ours, peer):
            torch.manual_seed(4)
            results.append(list(generate(make(), max_new_tokens=5, do_sample=True, batch_size=size)))
        assert results[0] == results[1]


def test_a_seed_leaves_the_generator_of_torch_alone(ours: TextGenerationPipeline, checkpoint: Path) -> None:
    of_all_calls = pipeline(model=checkpoint, device="cpu", seed=5)
    before = torch.random.get_rng_state()
    first = ours(["Hello"], max_new_tokens=5, seed=5)
    assert of_all_calls(["Hello"], max_new_tokens=5) == first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_values_of_messages_are_a_chat(ours: TextGenerationPipeline) -> None:
    values = [Message("system", SYSTEM["content"]), Message("user", USER["content"])]
    assert ours(values, **GREEDY) == ours([SYSTEM, USER], **GREEDY)
    assert ours([values], **GREEDY) == ours([[SYSTEM, USER]], **GREEDY)


def test_lengths_are_counted_without_the_prefix(checkpoint: Path, ours: TextGenerationPipeline) -> None:
    """As the peer counts them; every answer would end at once, were it not for ``min_length``."""
    transformers = pytest.importorskip("transformers", reason="the peer to compare with")
    theirs = transformers.pipeline("text-generation", model=str(checkpoint), device="cpu")
    greedy = {"do_sample": False, "return_tensors": True, "prefix": "Penguins are birds. "}
    first = ours("Hello", max_new_tokens=1, **greedy)[0]["generated_token_ids"][-1]
    short, whole = (len(ours.tokenizer(text)["input_ids"]) for text in ("Hello", greedy["prefix"] + "Hello"))
    for new in (3, 6):
        options = {**greedy, "max_new_tokens": 9, "min_length": short + new, "eos_token_id": first}
        (record,) = ours("Hello", **options)
        assert [record] == theirs("Hello", **options)
        assert whole + new <= len(record["generated_token_ids"]) <= whole + 9


def test_several_sequences_of_several_prompts_are_lists_of_lists(ours: TextGenerationPipeline) -> None:
    for size in (1, 2):
        results = ours(["The tallest", "Hello"], max_new_tokens=6, num_return_sequences=3, batch_size=size)
        assert [[record["generated_text"][:3] for record in records] for records in results] == [
            ["The"] * 3,
            ["Hel"] * 3,
        ]


def test_constructor_options_are_defaults_of_calls(checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer to compare with")
    options = {"do_sample": False, "max_new_tokens": 5, "return_full_text": False, "batch_size": 2, "device": "cpu"}
    ours = pipeline("text-generation", model=checkpoint, **options)
    peer = transformers.pipeline("text-generation", model=str(checkpoint), **options)
    for call in ({}, {"return_full_text": True}, {"max_new_tokens": 3}, {"return_tensors": True}):
        assert ours(["Hello", "The tallest"], **call) == peer(["Hello", "The tallest"], **call)


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 7, "temperature": 0.2, "do_sample": False}, {"max_length": 30}, {"max_new_tokens": 9}]
)
def test_starting_settings_equal_the_peers(checkpoint: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer to compare with")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.generation_config.update(**settings)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    ours = pipeline("text-generation", model=tmp_path, device="cpu").generation_config
    theirs = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu").generation_config
    for name in ("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "pad_token_id", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_generation_config_of_the_callers_own_replaces_the_defaults(ours: TextGenerationPipeline, peer: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer to compare with")
    given = ours("The tallest", generation_config=GenerationConfig(max_new_tokens=3), return_tensors=True)
    assert given == peer(
        "The tallest", generation_config=transformers.GenerationConfig(max_new_tokens=3), return_tensors=True
    )
    total = ours(
        "The tallest", max_length=12, prefix="Penguins. ", generation_config=GenerationConfig(), return_tensors=True
    )
    assert len(total[0]["generated_token_ids"]) == 12 + len(
        ours.tokenizer("Penguins. ", add_special_tokens=False)["input_ids"]
    )


def test_the_documentation_s_call(checkpoint: Path) -> None:
    generate = pipeline(task="text-generation", model=str(checkpoint), dtype=torch.float16, device="cpu")
    assert generate.dtype == torch.float16
    torch.manual_seed(0)
    (record,) = generate("Plants create energy through a process known as", max_new_tokens=4)
    assert record["generated_text"].startswith("Plants create energy through a process known as")


def test_default_length_stops_at_the_end_of_the_context(parts: tuple[CohereForCausalLM, Any]) -> None:
    model, tokenizer = parts
    model.config.max_position_embeddings = 24
    model.generation_config.eos_token_id = None
    generate = pipeline(model=model, tokenizer=tokenizer, do_sample=False, return_tensors=True)
    (record,) = generate("Hello")
    assert len(record["generated_token_ids"]) == 24
    with pytest.raises(InputError, match="context"):
        generate("Hello", max_new_tokens=24)


def test_holes_keep_the_end_of_the_prompt(parts: tuple[CohereForCausalLM, Any], peer: Any) -> None:
    model, tokenizer = parts
    tokenizer.model_max_length = 12
    generate = pipeline(model=model, tokenizer=tokenizer)
    text = "Emperor penguins are the tallest, growing up to 122 cm in height"
    result = generate(text, handle_long_generation="hole", return_tensors=True, **GREEDY)
    ids = tokenizer(text)["input_ids"]
    assert result[0]["generated_token_ids"][:4] == ids[-4:]
    with pytest.raises(InputError, match="room"):
        generate(text, handle_long_generation="hole", do_sample=False, max_new_tokens=12)
    with pytest.raises(InputError, match="handle_long_generation is 'cut'"):
        generate(text, handle_long_generation="cut")


def test_generators_are_answered_one_by_one(ours: TextGenerationPipeline) -> None:
    taken = []

    def prompts() -> Any:
        for text in ("Hello", "The tallest", "never"):
            taken.append(text)
            yield text

    answers = ours(prompts(), **GREEDY)
    assert next(answers) == ours("Hello", **GREEDY)
    assert taken == ["Hello"]
    assert next(answers) == ours("The tallest", **GREEDY)


def test_a_dataset_is_answered_one_by_one_and_in_batches(ours: TextGenerationPipeline) -> None:
    expected = ours(["Hello", "The tallest", "1 2 3"], **GREEDY)
    assert list(ours(Questions(), batch_size=2, **GREEDY)) == expected
    assert list(ours((text for text in ("Hello", "The tallest", "1 2 3")), **GREEDY)) == expected


def test_an_assistant_drafts_and_changes_nothing(checkpoint: Path, ours: TextGenerationPipeline) -> None:
    expected = ours("The tallest penguins", **GREEDY)
    assert ours("The tallest penguins", assistant_model=ours.model, **GREEDY) == expected
    by_name = pipeline(model=checkpoint, device=-1, dtype="float32", assistant_model=checkpoint)
    assert by_name("The tallest penguins", **GREEDY) == expected
    around = pipeline(model=ours.model, tokenizer=ours.tokenizer, assistant_model=checkpoint)
    assert around("The tallest penguins", **GREEDY) == expected


def test_a_stop_sequence_ends_the_answer(ours: TextGenerationPipeline, peer: Any) -> None:
    whole = ours("The tallest penguins", do_sample=False, max_new_tokens=12, return_full_text=False)
    text = whole[0]["generated_text"]
    stop = text[3:6]
    (record,) = ours(
        "The tallest penguins", do_sample=False, max_new_tokens=12, return_full_text=False, stop_sequence=stop
    )
    assert text.startswith(record["generated_text"])
    assert stop in record["generated_text"]
    assert len(record["generated_text"]) < len(text)


def test_a_stop_sequence_of_one_token_stops_where_the_peer_stops(ours: TextGenerationPipeline, peer: Any) -> None:
    options = {"do_sample": False, "max_new_tokens": 12, "return_tensors": True}
    prompt = "The tallest penguins"
    ids = ours(prompt, **options)[0]["generated_token_ids"]
    new = ids[len(ours.tokenizer(prompt)["input_ids"]) :]
    own = [ours.tokenizer.decode([token]) for token in new]
    stop = next(text for token, text in zip(new, own, strict=True) if ours.tokenizer.encode(text)[1:] == [token])
    assert ours(prompt, stop_sequence=stop, **options) == peer(prompt, stop_sequence=stop, **options)


def test_batches_equal_single_calls(ours: TextGenerationPipeline) -> None:
    texts = ["Hello", "Emperor penguins are the tallest, growing", "", "1 2 3"]
    assert ours(texts, batch_size=4, **GREEDY) == [ours(text, **GREEDY) for text in texts]


def test_batches_pad_on_the_left_whatever_the_tokenizer_says(
    parts: tuple[CohereForCausalLM, Any], ours: TextGenerationPipeline
) -> None:
    model, tokenizer = parts
    tokenizer.padding_side = "right"
    texts = ["Hello", "Emperor penguins are the tallest, growing"]
    assert pipeline(model=model, tokenizer=tokenizer)(texts, batch_size=2, **GREEDY) == ours(texts, **GREEDY)


def test_batches_need_a_pad_token(parts: tuple[CohereForCausalLM, Any]) -> None:
    model, tokenizer = parts
    tokenizer.pad_token = None
    generate = pipeline(model=model, tokenizer=tokenizer, batch_size=2)
    with pytest.raises(InputError, match="pad_token"):
        generate(["Hello", "The tallest penguins"], **GREEDY)


def test_stop_strings_need_no_tokenizer_from_the_caller(ours: TextGenerationPipeline) -> None:
    (whole,) = ours("Hello", do_sample=False, max_new_tokens=30, return_full_text=False)
    stop = whole["generated_text"][4:7]
    (record,) = ours("Hello", do_sample=False, max_new_tokens=30, return_full_text=False, stop_strings=[stop])
    assert stop in record["generated_text"]
    assert len(record["generated_text"]) < len(whole["generated_text"])


def test_scores_come_with_the_records(ours: TextGenerationPipeline, peer: Any) -> None:
    flags = {"return_dict_in_generate": True, "output_scores": True, "return_full_text": False}
    (record,) = ours("Hello", **GREEDY, **flags)
    assert torch.tensor(record["scores"]).shape == (8, ours.model.config.vocab_size)
    (expected,) = peer("Hello", **GREEDY, **flags)
    assert torch.allclose(torch.tensor(record["scores"]), torch.tensor(expected["scores"]), atol=1e-4)


def test_a_model_and_a_tokenizer_of_the_callers_own(
    parts: tuple[CohereForCausalLM, Any], ours: TextGenerationPipeline
) -> None:
    model, tokenizer = parts
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generate("Hello", **GREEDY) == ours("Hello", **GREEDY)
    assert generate("Hello", **GREEDY) == TextGenerationPipeline(model, tokenizer)("Hello", **GREEDY)
    assert generate.model is model
    assert generate.device == torch.device("cpu")
    assert generate.task == "text-generation"


def test_arguments_of_loading_reach_the_model(checkpoint: Path) -> None:
    generate = pipeline(
        "text-generation",
        model=checkpoint,
        model_kwargs={"attn_implementation": "eager", "torch_dtype": "bfloat16", "local_files_only": True},
        device_map={"": "cpu"},
        tokenizer=checkpoint,
    )
    assert generate.model.config.attn_implementation == "eager"
    assert generate.torch_dtype == torch.bfloat16
    assert pipeline(model=checkpoint, torch_dtype=torch.bfloat16, device=-1).dtype == torch.bfloat16


def test_a_saved_pipeline_comes_back(ours: TextGenerationPipeline, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    assert pipeline(model=tmp_path, device=-1)("Hello", **GREEDY) == ours("Hello", **GREEDY)


def test_calls_do_not_change_each_other(ours: TextGenerationPipeline) -> None:
    before = ours.generation_config.to_dict()
    first = ours("Hello", **GREEDY)
    ours("Hello", do_sample=True, temperature=2.0, max_new_tokens=3, return_full_text=False, prefix="x")
    assert ours("Hello", **GREEDY) == first
    assert ours.generation_config.to_dict() == before


def test_empty_lists_are_empty(ours: TextGenerationPipeline) -> None:
    assert ours([]) == []


def test_truncation_given_for_all_calls_cuts_as_in_a_call(checkpoint: Path) -> None:
    greedy = {**GREEDY, "return_tensors": True}
    text = "The tallest penguins live in the South"
    of_calls = pipeline(model=str(checkpoint), truncation=True, max_length=4)
    in_call = pipeline(model=str(checkpoint))(text, truncation=True, max_length=4, **greedy)
    assert of_calls(text, **greedy) == in_call
    assert len(in_call[0]["generated_token_ids"]) == 4 + GREEDY["max_new_tokens"]
