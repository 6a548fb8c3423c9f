"""Streamers: what they show adds up to the decoded output, whole characters only; errors reach the consumer."""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from quarterdeck.model import CohereForCausalLM
from quarterdeck.tokenizer import CohereTokenizerFast

SPECIAL = ["<PAD>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"]


@pytest.fixture(scope="module")
def tokenizer() -> CohereTokenizerFast:
    """Every byte is a token, so that most characters outside ASCII are several tokens."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return CohereTokenizerFast(tokenizer_object=backend, pad_token="<PAD>", bos_token="<BOS_TOKEN>")


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return CohereForCausalLM(config).eval()


class Collector(TextStreamer):
    """Keeps what would be printed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []
        self.ends = 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self.ends += stream_end


def ids_of(tokenizer: CohereTokenizerFast, text: str) -> Tensor:
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_pieces_add_up_to_the_decoded_output(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, skip_prompt: bool, skip_special_tokens: bool
) -> None:
    streamer = Collector(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=skip_special_tokens)
    prompt = torch.cat((torch.tensor([[1]]), ids_of(tokenizer, "ré€sumé")), dim=1)
    for seed in range(3):  # the same streamer serves several generations
        streamer.pieces.clear()
        output = model.generate(prompt, streamer=streamer, do_sample=True, seed=seed, max_new_tokens=60, top_k=0)
        start = prompt.shape[1] if skip_prompt else 0
        expected = tokenizer.decode(output[0, start:], skip_special_tokens=skip_special_tokens)
        assert "".join(streamer.pieces) == expected
        assert streamer.ends == seed + 1
    assert ("<BOS_TOKEN>" in expected) == (not skip_prompt and not skip_special_tokens)


def test_no_half_characters(tokenizer: CohereTokenizerFast) -> None:
    streamer = Collector(tokenizer, skip_prompt=True)
    streamer.put(torch.tensor([[1, 5]]))
    for token in ids_of(tokenizer, "a€漢🙂b")[0]:
        streamer.put(token[None])
    streamer.end()
    assert streamer.pieces == ["a", "€", "漢", "🙂", "b", ""]


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: CohereTokenizerFast) -> None:
    streamer = Collector(tokenizer)
    streamer.put(ids_of(tokenizer, "a€")[:, :-1])
    assert streamer.pieces == ["a"]
    streamer.end()
    assert streamer.pieces == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_text_streamer_prints(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    output = model.generate(ids_of(tokenizer, "hello"), streamer=TextStreamer(tokenizer), max_new_tokens=5)
    assert capsys.readouterr().out == tokenizer.decode(output[0]) + "\n"


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_batch_is_refused(model: CohereForCausalLM, tokenizer: CohereTokenizerFast, options: dict[str, Any]) -> None:
    prompt = ids_of(tokenizer, "hello")
    rows = prompt if options else prompt.repeat(2, 1)
    with pytest.raises(InputError, match="batch of 2"):
        model.generate(rows, streamer=TextStreamer(tokenizer), max_new_tokens=5, **options)


def in_thread(model: CohereForCausalLM, caught: list[BaseException], **kwargs: Any) -> threading.Thread:
    def run() -> None:
        try:
            model.generate(**kwargs)
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_iterating_in_another_thread(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    inputs = {"input_ids": ids_of(tokenizer, "hello"), "max_new_tokens": 40, "do_sample": True, "seed": 5}
    expected = model.generate(**inputs)[0, 5:]
    for _ in range(2):  # the object can be used again
        caught: list[BaseException] = []
        thread = in_thread(model, caught, **inputs, streamer=streamer)
        pieces = list(streamer)
        thread.join()
        assert not caught
        assert "".join(pieces) == tokenizer.decode(expected, skip_special_tokens=True)
        assert len(pieces) > 5
        assert "" not in pieces


def test_an_error_reaches_the_iterating_thread(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    def breaks(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] > 6:
            raise RuntimeError("broken processor")
        return scores

    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    caught: list[BaseException] = []
    prompt = ids_of(tokenizer, "hello")
    thread = in_thread(model, caught, inputs=prompt, streamer=streamer, logits_processor=[breaks], max_new_tokens=9)

    pieces: list[str] = []
    with pytest.raises(RuntimeError, match="broken processor"):
        pieces.extend(streamer)
    thread.join()
    assert "".join(pieces).startswith("hello")
    assert [str(error) for error in caught] == ["broken processor"]


def test_an_error_in_the_arguments_reaches_the_consumer(
    model: CohereForCausalLM, tokenizer: CohereTokenizerFast
) -> None:
    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    with pytest.raises(InputError):
        model.generate(ids_of(tokenizer, "hello"), streamer=streamer, top_p=7)
    with pytest.raises(InputError, match="top_p"):
        next(streamer)


def test_waiting_too_long_is_an_error(tokenizer: CohereTokenizerFast) -> None:
    with pytest.raises(Empty, match="timeout"):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


def test_any_object_with_put_and_end_is_a_streamer(model: CohereForCausalLM, tokenizer: CohereTokenizerFast) -> None:
    class Ids:
        def __init__(self) -> None:
            self.got: list[list[int]] = []

        def put(self, value: Tensor) -> None:
            self.got.append(value.flatten().tolist())

        def end(self) -> None:
            self.got.append([])

    ids = Ids()
    prompt = ids_of(tokenizer, "hello").repeat(2, 1)
    output = model.generate(prompt, streamer=ids, max_new_tokens=2)
    assert ids.got == [prompt.flatten().tolist(), output[:, 5].tolist(), output[:, 6].tolist(), []]
    with pytest.raises(InputError):
        model.generate(prompt, streamer=ids, max_new_tokens=-1)


def test_a_base_streamer_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="put"):
        BaseStreamer().put(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="end"):
        BaseStreamer().end()
