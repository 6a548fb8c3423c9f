"""pipeline("text-generation"): what is refused, and with what reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline_support import GREEDY, USER
from quarterdeck import AutoModel, GenerationConfig, Message, QuarterdeckError, pipeline
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.pipelines import TextGenerationPipeline
from quarterdeck.pipelines.factory import as_device

pytest_plugins = ["pipeline_fixtures"]

USER_VALUE = Message("user", USER["content"])
TOOL_VALUE = Message("tool", tool_call_id="1")

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "full and text": (lambda g: g("x", return_full_text=True, return_text=True), "exclude each other"),
    "full and tensors": (lambda g: g("x", return_full_text=True, return_tensors=True), "exclude each other"),
    "text and tensors": (lambda g: g("x", return_text=True, return_tensors=True), "exclude each other"),
    "unknown": (lambda g: g("x", max_new_token=3), "max_new_token.*max_new_tokens"),
    "unknown for all calls": (
        lambda g: pipeline(model="no/such model", max_new_token=3),
        "max_new_token.*max_new_tokens",
    ),
    "unknown altogether": (lambda g: g("x", foo=1), "'foo' is neither an option of the pipeline nor one of model"),
    "misspelt": (lambda g: g("x", return_fulltext=True), "did you mean 'return_full_text'"),
    "documents": (lambda g: g([USER], documents=[]), r"tokenizer_encode_kwargs=\{'documents': ...\}, or ask LLM.chat"),
    "tools": (lambda g: g([USER], tools=[]), r"tokenizer_encode_kwargs=\{'tools': ...\}, or ask LLM.chat"),
    "attention": (lambda g: pipeline(attn_implementation="eager"), r"give model_kwargs=\{'attn_implementation'"),
    "message of a tool": (lambda g: g([USER_VALUE, TOOL_VALUE]), "the role tool, which .* ask LLM.chat"),
    "message with citations": (
        lambda g: g([Message("assistant", "a", tool_plan="b")]),
        "tool_plan, which the",
    ),
    "assistant": (lambda g: pipeline(model="no/such model", assistant_model=3), "assistant_model is 3, but must be"),
    "assistant beside a model": (
        lambda g: pipeline(model=g.model, tokenizer=g.tokenizer, assistant_model=3),
        "assistant_model is 3, but must be",
    ),
    "assistant of a call": (lambda g: g("x", assistant_model=3), "assistant_model"),
    "beams": (lambda g: g("x", num_beams=2, num_return_sequences=3), "num_beams"),
    "stop_sequence": (lambda g: g("x", stop_sequence="a", stop_strings="b"), "one option"),
    "batch_size": (lambda g: g("x", batch_size=0), "batch_size"),
    "number": (lambda g: g(3), "int"),
    "numbers": (lambda g: g([3]), "int"),
    "bytes": (lambda g: g(b"x"), "bytes"),
    "one message": (lambda g: g(USER), "dict"),
    "empty chat": (lambda g: g([[USER], []]), "not empty"),
    "message without content": (lambda g: g([{"role": "user"}]), "'role' and 'content'"),
    "task": (lambda g: pipeline("summarization", g.model), "summarization"),
    "model without tokenizer": (lambda g: pipeline(model=g.model), "tokenizer"),
    "tokenizer without model": (lambda g: pipeline(tokenizer=g.tokenizer), "model"),
    "dtype of a model": (lambda g: pipeline(model=g.model, tokenizer=g.tokenizer, dtype="float16"), "dtype"),
    "framework": (lambda g: pipeline(framework="tf"), "framework"),
    "slow tokenizer": (lambda g: pipeline(use_fast=False), "use_fast"),
    "remote code": (lambda g: pipeline(trust_remote_code=True), "trust_remote_code"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_are_value_errors_with_a_reason(
    ours: TextGenerationPipeline, call: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call(ours)
    assert isinstance(raised.value, QuarterdeckError)


def test_refusals_of_loading(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="device_map"):
        pipeline(model=checkpoint, device="cpu", device_map="cpu")
    with pytest.raises(InputError, match="dtype"):
        pipeline(model=checkpoint, dtype="float16", model_kwargs={"dtype": "float16"})
    for name in ("feature_extractor", "image_processor", "processor"):
        with pytest.raises(UnsupportedOptionError, match=f"^{name} is not in this version; it belongs to other tasks"):
            pipeline(model=checkpoint, **{name: "x"})
    with pytest.raises(UnsupportedOptionError, match=r"^pipeline_class is not in this version; there is one pipeline"):
        pipeline(model=checkpoint, pipeline_class=TextGenerationPipeline)
    nothing = dict.fromkeys(("feature_extractor", "image_processor", "processor", "pipeline_class"))
    assert pipeline(model=checkpoint, device="cpu", **nothing)("Hello", **GREEDY)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what numbers mean without an accelerator")
def test_devices(caplog: pytest.LogCaptureFixture) -> None:
    assert as_device(None) == as_device(-1) == torch.device("cpu")
    assert not caplog.records
    assert as_device(0) == torch.device("cpu")
    assert "no accelerator" in caplog.text
    assert as_device("meta") == torch.device("meta")


def test_a_prefix_is_refused_for_chats(ours: TextGenerationPipeline) -> None:
    with pytest.raises(InputError, match=r"prefix='Penguins. ' goes before texts, and the input is a chat"):
        ours([USER], prefix="Penguins. ", **GREEDY)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_records_cannot_show_is_refused(ours: TextGenerationPipeline, name: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"{name}=True: the records"):
        ours("a", return_dict_in_generate=True, **{name: True}, **GREEDY)
    config = GenerationConfig(return_dict_in_generate=True, **{name: True})
    with pytest.raises(UnsupportedOptionError, match=f"{name}=True: the records"):
        ours("a", generation_config=config)


def test_refusals_give_their_reason(ours: TextGenerationPipeline, checkpoint: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match="num_workers is not in this version; prompts are encoded"):
        ours("a", num_workers=2)
    with pytest.raises(InputError, match=r"return_type=9 is none of 0 \(TENSORS\), 1 \(NEW_TEXT\), 2 \(FULL_TEXT\)"):
        ours("a", return_type=9)
    with pytest.raises(InputError, match="is a dict and must"):
        ours("a", generation_config={"max_new_tokens": 3})
    with pytest.raises(InputError, match=r"^there is no kind of device 'foo': give 'cpu'.{0,40}$"):
        pipeline(model=str(checkpoint), device="foo")
    base: Any = AutoModel.from_pretrained(checkpoint)
    with pytest.raises(InputError, match="model is a CohereModel, which does not generate text: give a Cohere"):
        pipeline(model=base, tokenizer=ours.tokenizer)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"^there is no 'cuda:1' here: give 'cpu'$"):
        as_device("cuda:1")
    for wrong in (7.5, True):
        with pytest.raises(InputError, match=f"device={wrong} is neither a name"):
            as_device(wrong)
