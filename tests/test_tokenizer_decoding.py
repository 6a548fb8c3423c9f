"""Decoding, whole and piece by piece. The slow twin of the incremental decoder is ``decode`` of all ids."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.incremental import IncrementalDecoder, byte_of_character, clean_up, token_bytes
from quarterdeck.tokenizer import CohereTokenizerFast
from tokenizer_support import TEXTS

pytest_plugins = ["tokenizer_fixtures"]


def pieces(tokenizer: CohereTokenizerFast, ids: Sequence[int], **options: Any) -> list[str]:
    decoder = tokenizer.incremental_decoder(**options)
    return [*(decoder.feed(index) for index in ids), decoder.close()]


def random_ids(tokenizer: CohereTokenizerFast, seed: int, count: int = 80) -> list[int]:
    """Half of them stand for single bytes, so that most sequences are no valid UTF-8."""
    numbers, size = random.Random(seed), len(tokenizer) + 10
    return [numbers.randrange(8, 264) if numbers.random() < 0.5 else numbers.randrange(size) for _ in range(count)]


@pytest.fixture(params=["tiny", "real"])
def tokenizer(request: pytest.FixtureRequest) -> CohereTokenizerFast:
    found: CohereTokenizerFast = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_pieces_add_up(tokenizer: CohereTokenizerFast, skip: bool, clean: bool) -> None:
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    sequences = [tokenizer.encode(text) for text in TEXTS] + [random_ids(tokenizer, seed) for seed in range(100)]
    for ids in sequences:
        assert "".join(pieces(tokenizer, ids, **options)) == tokenizer.decode(ids, **options)


def test_any_ids_in_any_portions(tiny_pair: tuple[CohereTokenizerFast, Any]) -> None:
    tokenizer, peer = tiny_pair
    ids = st.lists(st.integers(0, len(tokenizer) + 3) | st.integers(8, 263), max_size=30)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(ids, max_size=8), st.booleans(), st.booleans())
    def check(portions: list[list[int]], skip: bool, clean: bool) -> None:
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        decoder = tokenizer.incremental_decoder(**options)
        text = "".join(map(decoder.feed, portions)) + decoder.close()
        assert text == peer.decode([index for portion in portions for index in portion], **options)

    check()


def test_no_half_characters(tokenizer: CohereTokenizerFast) -> None:
    """What was emitted is at every moment the beginning of the text, never with a replacement character."""
    for text in TEXTS[:16]:
        decoder, emitted = tokenizer.incremental_decoder(), ""
        for index in tokenizer.encode(text):
            emitted += decoder.feed(index)
            assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True).startswith(emitted)
            assert "\ufffd" not in emitted
        assert decoder.close() == ""


def byte_ids(tokenizer: CohereTokenizerFast, data: bytes) -> list[int]:
    """The ids of single bytes."""
    character_of = {byte: character for character, byte in byte_of_character().items()}
    ids = [tokenizer.convert_tokens_to_ids(character_of[byte]) for byte in data]
    assert None not in ids
    return ids


def test_a_character_comes_with_its_last_byte(tiny: CohereTokenizerFast) -> None:
    assert pieces(tiny, byte_ids(tiny, "a€🚀é".encode())) == ["a", "", "", "€", "", "", "", "🚀", "", "é", ""]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xe2\x82", ["", "", "\ufffd"]),  # unfinished at the end
        (b"\xe2a", ["", "\ufffda", ""]),  # can never become a character: certain at once
        (b"\xff\xc0", ["\ufffd", "\ufffd", ""]),
        (b"\xf0\x9f\x9a\xe2\x82\xac", ["", "", "", "\ufffd", "", "€", ""]),
        (b"\xed\xa0\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),  # a surrogate is no character
    ],
)
def test_invalid_bytes(tiny: CohereTokenizerFast, data: bytes, expected: list[str]) -> None:
    ids = byte_ids(tiny, data)
    assert pieces(tiny, ids) == expected
    assert tiny.decode(ids) == "".join(expected)


def test_special_tokens_in_a_stream(tiny: CohereTokenizerFast) -> None:
    """Markers of turns are not special in the public checkpoints, so they stay; the end of a turn is."""
    ids = tiny.encode("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi<|END_OF_TURN_TOKEN|>")
    assert "".join(pieces(tiny, ids)) == "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi"
    whole = "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    assert "".join(pieces(tiny, ids, skip_special_tokens=False)) == whole == tiny.decode(ids)


def test_added_token_outside_the_byte_alphabet(tiny: CohereTokenizerFast) -> None:
    tiny.add_tokens(["two words", "日本"])
    ids = tiny.encode("x two words 日本 €")
    assert "".join(pieces(tiny, ids)) == tiny.decode(ids, skip_special_tokens=True) == "x two words 日本 €"
    assert token_bytes("two words") == b"two words"


def test_a_closed_decoder_starts_anew(tiny: CohereTokenizerFast) -> None:
    decoder = tiny.incremental_decoder()
    first, second = byte_ids(tiny, "€".encode()), tiny.encode("next")
    decoder.feed(first[:1])
    assert decoder.close() == "\ufffd"
    assert decoder.feed(second) + decoder.close() == "next"


def test_feeding_portions_of_any_kind(tiny: CohereTokenizerFast) -> None:
    np = pytest.importorskip("numpy")
    ids = tiny.encode("any kind of ids")
    for portion in (ids, tuple(ids), np.array(ids), iter(ids)):
        assert tiny.incremental_decoder().feed(portion) == "any kind of ids"
    assert tiny.incremental_decoder().feed(np.int64(ids[1])) == tiny.decode(ids[1])


def test_work_per_token_does_not_grow() -> None:
    """Each id is looked up once, however long the text before it."""
    looked_up = []

    def token_of(index: int) -> str:
        looked_up.append(index)
        return "Ġword"

    decoder = IncrementalDecoder(token_of)
    assert "".join(decoder.feed(index) for index in range(5000)) == " word" * 5000
    assert looked_up == list(range(5000))


def test_only_byte_level_streams(tiny: CohereTokenizerFast) -> None:
    tiny.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(TokenizerError, match=r"byte-level tokenizer.*Metaspace"):
        tiny.incremental_decoder()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=" '.,?!ntmsvrex€", max_size=4), max_size=20))
def test_cleaning_up_piece_by_piece(parts: list[str]) -> None:
    """Every way to cut a text of nothing but difficult characters."""
    character_of = {byte: character for character, byte in byte_of_character().items()}
    decoder = IncrementalDecoder(lambda i: "".join(character_of[b] for b in parts[i].encode()), clean_up_spaces=True)
    text = "".join(decoder.feed(i) for i in range(len(parts))) + decoder.close()
    assert text == clean_up("".join(parts))


def test_cleaned_up_streams_flow(tiny: CohereTokenizerFast) -> None:
    """Cleaning up holds back a few characters, not the text until a space comes."""
    ids = byte_ids(tiny, "世界".encode() * 3)
    assert pieces(tiny, ids, clean_up_tokenization_spaces=True).count("") == 13


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2]], "for a batch use batch_decode"),
        ([5, -100], "token id -100 is negative"),
        ("abc", "not 'abc'"),
        ([None], "expected a token id"),
    ],
)
def test_what_is_no_id(tiny: CohereTokenizerFast, ids: Any, message: str) -> None:
    for decode in (tiny.decode, tiny.incremental_decoder().feed, tiny.convert_ids_to_tokens):
        with pytest.raises(TokenizerError, match=message):
            decode(ids)


def test_kinds_of_ids(tiny: CohereTokenizerFast) -> None:
    torch = pytest.importorskip("torch")
    ids = tiny.encode("kinds of ids")
    for given_ids in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy(), list(torch.tensor(ids))):
        assert tiny.decode(given_ids) == "<BOS_TOKEN>kinds of ids"
    assert tiny.decode(torch.tensor(ids[1])) == tiny.decode(ids[1])
    assert tiny.batch_decode(torch.tensor([ids, ids]), skip_special_tokens=True) == ["kinds of ids"] * 2
    assert tiny.decode([]) == ""


def test_models_without_a_decoder() -> None:
    backend = Tokenizer(models.WordLevel({"<BOS_TOKEN>": 0, "<|END_OF_TURN_TOKEN|>": 1, "<UNK>": 2}, unk_token="<UNK>"))
    assert CohereTokenizerFast(tokenizer_object=backend).convert_tokens_to_string(["a", "b"]) == "a b"


def test_alphabet() -> None:
    """All 256 bytes, each once; a space is Ġ and a line break Ċ."""
    assert sorted(byte_of_character().values()) == list(range(256))
    assert token_bytes("ĠaĊ") == b" a\n"
    assert codecs.decode(token_bytes("âĤ¬"), "utf-8") == "€"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2**40], f"token id {2**40} is beyond {2**32 - 1}"),
        (2**40, f"token id {2**40} is beyond"),
        ([1.0, 2.0], "which are integers, not '\\[1.0, 2.0\\]'"),
        (np.array([1.5, 2.5]), r"not an array of shape \(2,\) and type float64"),
        ([-1], "token id -1 is negative"),
    ],
)
def test_what_is_no_id_is_refused(tiny: CohereTokenizerFast, ids: Any, message: str) -> None:
    for convert in (tiny.decode, tiny.convert_ids_to_tokens):
        with pytest.raises(TokenizerError, match=message):
            convert(ids)
