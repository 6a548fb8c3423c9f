"""Equality with the tokenizer of transformers, and with the published text-to-ids vectors."""

from __future__ import annotations

import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck.tokenizer import CohereTokenizerFast
from tokenizer_support import TEXTS

pytest_plugins = ["tokenizer_fixtures"]

Pair = tuple[CohereTokenizerFast, Any]
LETTERS = "".join(sorted(set("".join(TEXTS))))


def outcome(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """Everything that a call returns, as lists."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer(*texts, verbose=False, **options).data


def shuffled_text(seed: int, length: int = 400) -> str:
    """Characters of all the texts in an order that no language has, with many spaces."""
    letters = random.Random(seed)
    return "".join(letters.choice(LETTERS) if letters.random() < 0.85 else " " for _ in range(length))


def test_published_vectors(real: CohereTokenizerFast, shared_data: Path) -> None:
    vectors = json.loads((shared_data / "tokenizer_vectors_command_r.json").read_text(encoding="utf-8"))
    assert len(vectors) == 47
    for vector in vectors:
        assert real.encode(vector["text"], add_special_tokens=False) == vector["ids"], vector["text"]
        assert real.encode(vector["text"]) == [5, *vector["ids"]]


def test_documented_example(real: CohereTokenizerFast) -> None:
    assert real.encode("Hello this is a test") == [5, 28339, 2075, 1801, 1671, 3282]
    assert real("Hello", "pair")["input_ids"] == [5, 28339, 5, 24245]
    assert (len(real), real.vocab_size) == (255029, 255000)
    assert (real.bos_token_id, real.eos_token_id, real.pad_token_id, real.unk_token_id) == (5, 255001, 0, None)


EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


def test_texts_in_many_scripts(pair: Pair) -> None:
    ours, theirs = pair
    samples = [*TEXTS, *map(shuffled_text, range(40)), " ".join(TEXTS), *(text * 3 for text in TEXTS)]
    for text in samples:
        assert outcome(ours, text, **EVERYTHING) == outcome(theirs, text, **EVERYTHING), text
        assert ours.tokenize(text) == theirs.tokenize(text), text
    assert outcome(ours, samples, **EVERYTHING) == outcome(theirs, samples, **EVERYTHING)
    assert outcome(ours, samples, add_special_tokens=False) == outcome(theirs, samples, add_special_tokens=False)


def test_any_text(tiny_pair: Pair) -> None:
    ours, theirs = tiny_pair

    @settings(max_examples=150, deadline=None)
    @given(st.text(), st.text(alphabet=LETTERS), st.booleans())
    def check(text: str, pair: str, split: bool) -> None:
        options = {**EVERYTHING, "split_special_tokens": split}
        assert outcome(ours, text + pair, **options) == outcome(theirs, text + pair, **options)
        assert outcome(ours, text, pair, **options) == outcome(theirs, text, pair, **options)
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)

    check()


def test_decoding(pair: Pair) -> None:
    ours, theirs = pair
    numbers, size = random.Random(0), len(ours) + 20
    sequences = [ours.encode(text) for text in TEXTS]
    sequences += [[numbers.randrange(size) for _ in range(60)] for _ in range(40)]
    for skip, clean in itertools.product((False, True), (False, True, None)):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        assert ours.batch_decode(sequences, **options) == theirs.batch_decode(sequences, **options)
    for ids in sequences:
        tokens = ours.convert_ids_to_tokens(ids)
        assert tokens == theirs.convert_ids_to_tokens(ids)
        assert ours.convert_ids_to_tokens(ids, True) == theirs.convert_ids_to_tokens(ids, True)
        known = [token for token in tokens if token is not None]
        assert ours.convert_tokens_to_ids(known) == theirs.convert_tokens_to_ids(known)
        assert ours.convert_tokens_to_string(known) == theirs.convert_tokens_to_string(known)


INPUTS = (
    (list(TEXTS[:12]),),
    (TEXTS[0],),
    ([TEXTS[1]],),
    (list(TEXTS[:5]), list(TEXTS[5:10])),
    (TEXTS[0], "a short second text"),
    ("first", ""),
    (["first", "x"], ["", "y"]),
)


@pytest.mark.parametrize("truncation", [None, False, True, "only_first", "longest_first", "only_second"])
@pytest.mark.parametrize("padding", [False, True, "max_length", "do_not_pad"])
def test_padding_and_truncation(tiny_pair: Pair, padding: Any, truncation: Any) -> None:
    ours, theirs = tiny_pair
    compared = 0
    for texts, max_length, multiple, side in itertools.product(INPUTS, (None, 16, 64), (None, 8), (None, "right")):
        if truncation == "only_second" and (len(texts) == 1 or max_length is None):
            continue
        options = {"padding": padding, "truncation": truncation, "max_length": max_length, **EVERYTHING}
        options |= {"pad_to_multiple_of": multiple, "padding_side": side}
        try:
            expected = outcome(theirs, *texts, **options)
        except Exception:  # noqa: BLE001 (the peer fails in many ways: a text too short to be cut)
            with pytest.raises(ValueError):
                outcome(ours, *texts, **options)
            continue
        assert outcome(ours, *texts, **options) == expected, options
        compared += 1
    assert compared >= 24


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 3])
def test_overflow(tiny_pair: Pair, stride: int, side: str) -> None:
    ours, theirs = tiny_pair
    options = {"truncation": "only_first", "stride": stride, "return_overflowing_tokens": True, **EVERYTHING}
    ours.truncation_side = theirs.truncation_side = side
    try:
        for texts, max_length, padding in itertools.product(INPUTS[:4], (9, 20), (False, "max_length")):
            if len(texts) == 2:
                max_length += 150  # the second texts are not cut
            asked = {**options, "max_length": max_length, "padding": padding}
            assert outcome(ours, *texts, **asked) == outcome(theirs, *texts, **asked)
        second = {**options, "truncation": "only_second", "max_length": 12}
        assert outcome(ours, "question", TEXTS[0], **second) == outcome(theirs, "question", TEXTS[0], **second)
    finally:
        ours.truncation_side = theirs.truncation_side = "right"


def test_relating_tokens_to_text(tiny_pair: Pair) -> None:
    """Every method of the result that relates tokens, words and characters."""
    texts = ([TEXTS[0], TEXTS[6]], [TEXTS[14], "second"])
    mine, other = (tokenizer(*texts, padding=True) for tokenizer in tiny_pair)
    assert mine.n_sequences == other.n_sequences == 2
    for row in range(2):
        assert mine.tokens(row) == other.tokens(row)
        assert mine.word_ids(row) == other.word_ids(row)
        assert mine.sequence_ids(row) == other.sequence_ids(row)
        for token in range(len(mine.tokens(row))):
            for method in ("token_to_chars", "token_to_word", "token_to_sequence"):
                assert getattr(mine, method)(row, token) == getattr(other, method)(row, token)
        for number, sequence in itertools.product(range(8), (0, 1)):
            for method in ("char_to_token", "word_to_tokens", "char_to_word"):
                assert getattr(mine, method)(row, number, sequence) == getattr(other, method)(row, number, sequence)
        assert mine.word_to_chars(row, 0) == other.word_to_chars(row, 0)


def test_words(tiny_folder: Path, transformers: Any) -> None:
    ours = CohereTokenizerFast.from_pretrained(tiny_folder, add_prefix_space=True)
    theirs = transformers.CohereTokenizerFast.from_pretrained(tiny_folder, add_prefix_space=True)
    words = [text.split() for text in TEXTS if text.split()]
    options = {"is_split_into_words": True, **EVERYTHING}
    for sample in words:
        assert outcome(ours, sample, **options) == outcome(theirs, sample, **options)
    assert outcome(ours, words, words[::-1], **options) == outcome(theirs, words, words[::-1], **options)
    assert ours(words, is_split_into_words=True).word_ids(0) == theirs(words, is_split_into_words=True).word_ids(0)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_tokens_around_texts(tiny_folder: Path, transformers: Any, begin: bool, end: bool) -> None:
    ours = CohereTokenizerFast.from_pretrained(tiny_folder)
    theirs = transformers.CohereTokenizerFast.from_pretrained(tiny_folder)
    for tokenizer in (ours, theirs):
        tokenizer.add_bos_token = begin
        tokenizer.add_eos_token = end
    for texts in (("one",), ("one", "two"), (["a", "b"], ["c", "d"])):
        assert outcome(ours, *texts, **EVERYTHING) == outcome(theirs, *texts, **EVERYTHING)
    for two in (False, True):
        assert ours.num_special_tokens_to_add(two) == theirs.num_special_tokens_to_add(two)
    a, b = [10, 11, 12], [13]
    for ids in ((a,), (a, b)):
        mine = ours.create_token_type_ids_from_sequences(*ids)
        assert mine == theirs.create_token_type_ids_from_sequences(*ids)
    row = ours.build_inputs_with_special_tokens(a, b)
    assert row == [5] * begin + a + [ours.eos_token_id] * end + [5] * begin + b + [ours.eos_token_id] * end
    mask = ours.get_special_tokens_mask(row, already_has_special_tokens=True)
    assert mask == theirs.get_special_tokens_mask(row, already_has_special_tokens=True)
    assert mask == ours.get_special_tokens_mask(a, b)


def test_special_tokens(pair: Pair) -> None:
    ours, theirs = pair
    assert len(ours) == len(theirs) == len(ours.get_vocab())
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.added_tokens_encoder == theirs.added_tokens_encoder
    mine = {index: token.__getstate__() for index, token in ours.added_tokens_decoder.items()}
    assert mine == {index: token.__getstate__() for index, token in theirs.added_tokens_decoder.items()}
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for number in (ours.model_max_length, ours.max_len_single_sentence):
        assert number in (theirs.model_max_length, theirs.max_len_single_sentence)


def test_added_tokens(tiny_folder: Path, transformers: Any) -> None:
    ours = CohereTokenizerFast.from_pretrained(tiny_folder)
    theirs = transformers.CohereTokenizerFast.from_pretrained(tiny_folder)
    for tokenizer in (ours, theirs):
        assert tokenizer.add_tokens(["new_tok1", "my_new-tok2"]) == 2
        assert tokenizer.add_special_tokens({"cls_token": "<MY_CLS>", "additional_special_tokens": ["<A>", "<B>"]}) == 3
        assert tokenizer.add_special_tokens({"additional_special_tokens": ["<C>"]}, False) == 1
        tokenizer.sep_token_id = 3
    text = "a new_tok1 my_new-tok2 <MY_CLS> <A><B>x<C> <SEP>"
    assert ours(text).data == theirs(text).data
    ids = ours.encode(text)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.additional_special_tokens == theirs.additional_special_tokens == ["<A>", "<B>", "<C>"]
    assert ours.additional_special_tokens_ids == theirs.additional_special_tokens_ids
    assert (ours.sep_token, len(ours)) == (theirs.sep_token, len(theirs)) == ("<SEP>", len(ours))
    assert ours.get_vocab() == theirs.get_vocab()


def test_pad(tiny_pair: Pair) -> None:
    ours, theirs = tiny_pair
    rows = [ours(text, return_special_tokens_mask=True, return_token_type_ids=True).data for text in TEXTS[:4]]
    for padding, length, multiple, side in (
        (True, None, None, None),
        ("max_length", 200, None, "right"),
        ("longest", None, 7, None),
        (False, None, None, None),
    ):
        options = {"padding": padding, "max_length": length, "pad_to_multiple_of": multiple, "padding_side": side}
        assert ours.pad(rows, **options).data == theirs.pad(rows, **options).data
        assert ours.pad(dict(rows[0]), **options).data == theirs.pad(dict(rows[0]), **options).data
    bare = [{"input_ids": row["input_ids"]} for row in rows]
    assert ours.pad(bare).data == theirs.pad(bare).data


def test_tensors(tiny_pair: Pair) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = tiny_pair
    for texts in (TEXTS[0], list(TEXTS[:3])):
        mine, other = (tokenizer(texts, padding=True, return_tensors="pt") for tokenizer in (ours, theirs))
        for name in other:
            assert mine[name].dtype == other[name].dtype == torch.int64
            assert torch.equal(mine[name], other[name])
        array = ours(texts, padding=True, return_tensors="np")["input_ids"]
        assert (array == other["input_ids"].numpy()).all()
        assert ours.batch_decode(mine["input_ids"]) == theirs.batch_decode(other["input_ids"])


def test_training_a_new_vocabulary(tiny_pair: Pair) -> None:
    ours, theirs = (
        tokenizer.train_new_from_iterator(TEXTS, 400, new_special_tokens=["<N>"]) for tokenizer in tiny_pair
    )
    text = "Emperor penguins <N> <BOS_TOKEN>"
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.additional_special_tokens == theirs.additional_special_tokens == ["<N>"]
    assert ours.decode(ours.encode(text)) == f"<BOS_TOKEN>{text}"


def test_rows_made_from_ids(tiny_pair: Pair) -> None:
    ours, theirs = tiny_pair
    a, b = (ours.encode(text, add_special_tokens=False) for text in (TEXTS[0], "a shorter second text"))
    for texts, cut, length, side in itertools.product(
        ((a,), (b, a), (a, b), (b, b)), (False, "only_first", "longest_first"), (18, 25), ("right", "left")
    ):
        ours.truncation_side = theirs.truncation_side = side
        for remove in (0, 3, 8):
            mine = ours.truncate_sequences(
                *texts, num_tokens_to_remove=remove, truncation_strategy=cut or "do_not_truncate"
            )
            other = theirs.truncate_sequences(
                *texts, num_tokens_to_remove=remove, truncation_strategy=cut or "do_not_truncate"
            )
            assert list(mine) == list(other)
        if cut == "only_first" and sum(map(len, texts)) - length >= len(texts[0]) - 2:
            continue  # too short to be cut: refused here, left too long by the peer
        options = {"truncation": cut, "padding": "max_length", "max_length": length, "return_length": True}
        if length == 25 and len(texts) == 1:
            options |= {"return_overflowing_tokens": True, "stride": 2}
        mine = ours.prepare_for_model(*texts, verbose=False, **options).data
        assert mine == theirs.prepare_for_model(*texts, verbose=False, **options).data
        plain = {
            "truncation": cut,
            "max_length": length,
            "add_special_tokens": False,
            "return_special_tokens_mask": True,
        }
        mine = ours.prepare_for_model(*texts, verbose=False, **plain).data
        assert mine == theirs.prepare_for_model(*texts, verbose=False, **plain).data
    ours.truncation_side = theirs.truncation_side = "right"


def test_rows_made_from_ids_equal_rows_made_from_texts(tiny: CohereTokenizerFast) -> None:
    texts = (TEXTS[0], "second")
    ids = [tiny.encode(text, add_special_tokens=False) for text in texts]
    options = {"return_token_type_ids": True, "return_special_tokens_mask": True, "padding": "max_length"}
    for length in (5, 30, 90):
        asked = {**options, "max_length": length, "truncation": "longest_first"}
        assert tiny.prepare_for_model(*ids, **asked).data == tiny(*texts, **asked).data
    with pytest.raises(ValueError, match="neither offsets nor words"):
        tiny.prepare_for_model(*ids, return_offsets_mapping=True)
    with pytest.raises(ValueError, match="9 tokens are to be cut from a text that has 2"):
        tiny.truncate_sequences([1, 2], num_tokens_to_remove=9)
    with pytest.raises(ValueError, match="there is none"):
        tiny.truncate_sequences([1, 2], num_tokens_to_remove=1, truncation_strategy="only_second")
