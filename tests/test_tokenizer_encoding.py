"""Calling the tokenizer: what it refuses and how it says so, and what the peer does not have."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quarterdeck.errors import TokenizerError, UnsupportedOptionError
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenizer import AddedToken, CohereTokenizerFast
from tokenizer_support import TEXTS

pytest_plugins = ["tokenizer_fixtures"]

OVERFLOW = {"return_overflowing_tokens": True}


def test_one_text_gives_flat_lists_and_several_give_rows(tiny: CohereTokenizerFast) -> None:
    one, several = tiny("a penguin"), tiny(["a penguin", "two"])
    assert list(one) == ["input_ids", "attention_mask"]
    assert one["input_ids"] == several["input_ids"][0]
    assert one.input_ids[0] == tiny.bos_token_id
    assert [len(row) for row in several["attention_mask"]] == [len(row) for row in several["input_ids"]]


def test_targets_become_labels(tiny: CohereTokenizerFast) -> None:
    both = tiny("question", text_target="answer")
    assert both["labels"] == tiny("answer")["input_ids"]
    assert tiny(text_target="answer").data == tiny("answer").data


def test_padding_is_on_the_left(tiny: CohereTokenizerFast) -> None:
    batch = tiny(["a", "a longer text"], padding=True)
    assert batch["input_ids"][0][0] == tiny.pad_token_id
    assert batch["attention_mask"][0] == sorted(batch["attention_mask"][0])
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])
    tiny.padding_side = "right"
    assert tiny(["a", "a longer text"], padding=True)["input_ids"][0][-1] == tiny.pad_token_id


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None,), {}, "nothing to encode"),
        ((3,), {}, "text 0 is '3', a int"),
        ((["a", None],), {}, "text 1 is 'None', a NoneType"),
        (([["two", "words"]],), {}, "is_split_into_words=True"),
        ((["two", "words"],), {"is_split_into_words": True}, "add_prefix_space=True"),
        ((["a", "b"], ["c"]), {}, "text_pair has 1 texts for the 2"),
        ((["a", "b"], "c"), {}, "text_pair has a single text"),
        (("a",), {"padding_side": "middle"}, "padding_side='middle'"),
        (("a",), {"max_length": -1, "truncation": True}, "max_length=-1"),
        (("a",), {"max_length": 2.5, "truncation": True}, "max_length=2.5"),
        (("a", "b"), {"max_length": 1, "truncation": True}, "no room for the 2 special tokens; give 2 or more"),
        (("a b c",), {"max_length": 4, "truncation": True, "stride": 3, **OVERFLOW}, "or a stride below 3"),
        (("a b c",), {"max_length": 1, "truncation": True, "stride": 3, **OVERFLOW}, "give a max_length of 5 or more$"),
        ((["a", ("b", "c", "d")],), {}, "text 1 is a tuple of 3; give a str, or a pair"),
        ((["a", "b\ud83dc"],), {}, r"text 1 has a lone surrogate, '\\ud83d', at character 1"),
        ((["a", ("b", "\udc00")],), {}, "text 1 has a lone surrogate"),
        (("a b c",), {"max_length": 3, "truncation": "only_second"}, "cannot be encoded: .*not provided"),
        (("a b c", "x" * 99), {"max_length": 5, "truncation": "only_first"}, "too short"),
        (
            ("a",),
            {"max_length": 9, "truncation": True, "padding": True, "pad_to_multiple_of": 4},
            "max_length=9 .* pad_to_multiple_of=4",
        ),
    ],
)
def test_refusals(tiny: CohereTokenizerFast, arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tiny(*arguments, **options)
    assert tiny("still works", padding=True)["input_ids"] == tiny.encode("still works")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ({"return_tensors": "jax"}, "return_tensors='jax'"),
        ({"padding": "shortest"}, "padding='shortest'"),
        ({"truncation": "only_third"}, "truncation='only_third'"),
        ({"maxlength": 3, "trunc": True}, "no option maxlength, trunc; it has add_special_tokens, padding"),
    ],
)
def test_options_that_do_not_exist_are_named(tiny: CohereTokenizerFast, options: Any, message: str) -> None:
    for call in (tiny, tiny.encode, tiny.encode_plus, tiny.tokenize):
        with pytest.raises(UnsupportedOptionError, match=message):
            call("a", **options)


def test_missing_padding_token(tiny: CohereTokenizerFast) -> None:
    """The five ways to ask for padding, as in the peer's own test."""
    tiny.pad_token = None
    for call in (
        lambda: tiny("a", max_length=6, padding="max_length"),
        lambda: tiny.encode("a", max_length=6, padding="max_length"),
        lambda: tiny.encode_plus("a", max_length=6, padding="max_length"),
        lambda: tiny.batch_encode_plus(["a", "b"], max_length=6, padding="max_length"),
        lambda: tiny.batch_encode_plus([("a", "b")], max_length=6, padding="max_length"),
        lambda: tiny.pad([{"input_ids": [1]}, {"input_ids": [1, 2]}]),
    ):
        with pytest.raises(ValueError, match=r"tokenizer.pad_token = tokenizer.eos_token"):
            call()
    tiny.pad_token = tiny.eos_token
    assert tiny(["a", "a b"], padding=True)["input_ids"][0][0] == tiny.eos_token_id


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_ragged_rows_are_no_tensor(tiny: CohereTokenizerFast, kind: str) -> None:
    with pytest.raises(TokenizerError, match=r"'input_ids' has rows of lengths 2, 3, .* padding=True"):
        tiny(["a", "b c"], return_tensors=kind)


def test_tensors(tiny: CohereTokenizerFast) -> None:
    array = tiny("abc", return_tensors="np", return_offsets_mapping=True)
    assert array["input_ids"].shape == (1, len(tiny.encode("abc")))
    assert array["offset_mapping"].shape == (1, array["input_ids"].shape[1], 2)
    torch = pytest.importorskip("torch")
    batch = tiny(["a", "a b c"], padding=True, return_tensors="pt")
    assert batch.to("cpu") is batch
    assert batch["attention_mask"].sum() == sum(len(tiny.encode(text)) for text in ("a", "a b c"))
    moved = batch.to(torch.device("meta"))
    assert moved["input_ids"].device.type == "meta"
    with pytest.raises(TokenizerError, match="dtype"):
        batch.to(torch.float16)
    padded = tiny.pad([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([5])}])
    assert padded["input_ids"].tolist() == [[5, 6], [0, 5]]
    assert isinstance(tiny.pad({"input_ids": np.array([[5, 6]])})["input_ids"], np.ndarray)


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_nothing_is_a_tensor_of_integers(tiny: CohereTokenizerFast, kind: str) -> None:
    for texts, shape in (([], (0,)), ("", (1, 0)), (["", ""], (2, 0))):
        ids = tiny(texts, add_special_tokens=False, return_tensors=kind)["input_ids"]
        assert tuple(ids.shape) == shape
        assert "int64" in str(ids.dtype)


def test_a_call_leaves_no_trace(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    """Padding and truncation of one call neither reach the next nor the saved file."""
    before = tiny.backend_tokenizer.to_str()
    tiny("a b c d e f", truncation=True, max_length=3, padding="max_length")
    with pytest.raises(TokenizerError):
        tiny("a b c", truncation="only_second", max_length=3)
    assert tiny.backend_tokenizer.to_str() == before
    assert len(tiny.encode("a b c d e f")) > 3


def test_threads(tiny: CohereTokenizerFast) -> None:
    """Calls with different lengths at the same time do not see each other's."""
    alone = {n: tiny(list(TEXTS), truncation=True, max_length=n, padding="max_length").data for n in range(3, 40)}
    whole = tiny(list(TEXTS)).data

    def call(n: int) -> bool:
        if n % 3 == 0:
            return tiny(list(TEXTS)).data == whole
        length = 3 + n % 37
        return tiny(list(TEXTS), truncation=True, max_length=length, padding="max_length").data == alone[length]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))


def test_result_is_a_dictionary(tiny: CohereTokenizerFast) -> None:
    batch = tiny(["a b", "c"], return_offsets_mapping=True)
    assert dict(**batch) == batch.data
    assert batch[0].ids == batch["input_ids"][0]
    assert batch.is_fast
    assert BatchEncoding({"input_ids": [[1, 2], [3]]})[1:] == {"input_ids": [[3]]}
    with pytest.raises(AttributeError, match="no input 'labels'"):
        _ = batch.labels
    with pytest.raises(TokenizerError, match="did not come from a text"):
        BatchEncoding({"input_ids": [1]}).word_ids()
    again = pickle.loads(pickle.dumps(batch))
    assert again.data == batch.data
    assert again.word_ids(1) == batch.word_ids(1)
    assert again.n_sequences == 1


def test_row_may_be_left_out(tiny: CohereTokenizerFast) -> None:
    batch = tiny("two words")
    last = len(batch["input_ids"]) - 1
    assert batch.token_to_chars(-1) == batch.token_to_chars(0, last)
    assert batch.token_to_chars(0) is None
    assert batch.token_to_chars(-1).end == len("two words")
    span = batch.word_to_tokens(1)
    assert batch.char_to_token(3) == span.start  # the space belongs to the word after it
    assert batch.word_to_chars(1) == (3, 9)


def test_copies_are_independent(tiny: CohereTokenizerFast) -> None:
    for other in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert other("a b", padding=True).data == tiny("a b").data
        other.add_tokens(["<other>"])
        other.add_bos_token = False
        assert len(other) == len(tiny) + 1
        assert other.encode("a") == tiny.encode("a", add_special_tokens=False)


def test_constructor_copies_what_it_is_given(tiny_backend: Any) -> None:
    before = tiny_backend.to_str()
    tokenizer = CohereTokenizerFast(tokenizer_object=tiny_backend, pad_token="<PAD>", add_eos_token=True)
    tokenizer.add_tokens(["<new>"])
    assert tiny_backend.to_str() == before
    assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id


def test_constructor_adds_named_tokens_that_are_missing(tiny_backend: Any) -> None:
    size = tiny_backend.get_vocab_size()
    tokenizer = CohereTokenizerFast(
        tokenizer_object=tiny_backend,
        mask_token=AddedToken("<mask me>", lstrip=True),
        additional_special_tokens=["<more>"],
        extra_special_tokens={"image_token": "<image>"},
    )
    assert len(tokenizer) == size + 3
    assert (tokenizer.image_token, tokenizer.image_token_id) == ("<image>", tokenizer.convert_tokens_to_ids("<image>"))
    assert tokenizer.special_tokens_map["image_token"] == "<image>"
    text = "x <image> <mask me><more>"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "x "
    assert tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos_token": None}, "add_bos_token=True needs a bos_token"),
        ({"eos_token": None, "add_eos_token": True}, "add_eos_token=True needs a eos_token"),
        ({"bos_token": 5}, "bos_token is 5"),
        ({"padding_side": "both"}, "padding_side='both'"),
        ({"truncation_side": "both"}, "truncation_side='both'"),
        ({"additional_special_tokens": "<a>"}, "give a list"),
        ({"extra_special_tokens": {"decode": "<d>"}}, "'decode', which is no free attribute name"),
        ({"tokenizer_file": "x"}, "one of tokenizer_object, tokenizer_file"),
    ],
)
def test_constructor_refusals(tiny_backend: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CohereTokenizerFast(tokenizer_object=tiny_backend, **options)


def test_saved_padding_and_truncation_give_defaults_only(tiny_backend: Any) -> None:
    backend = copy.deepcopy(tiny_backend)
    backend.enable_padding(direction="right", pad_id=0, pad_token="<PAD>", length=50)
    backend.enable_truncation(2, direction="left")
    tokenizer = CohereTokenizerFast(tokenizer_object=backend)
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token) == ("right", "left", "<PAD>")
    assert len(tokenizer.encode("a b c d")) == 1 + len(tokenizer.tokenize("a b c d"))


def test_named_tokens(tiny: CohereTokenizerFast) -> None:
    tiny.cls_token = "<CLS>"
    assert tiny.cls_token_id == 2
    tiny.cls_token_id = 3
    assert tiny.cls_token == "<SEP>"
    tiny.cls_token_id = None
    assert tiny.cls_token is None
    assert tiny.cls_token_id is None
    with pytest.raises(TokenizerError, match="no token has the id 99999"):
        tiny.cls_token_id = 99999
    with pytest.raises(
        TokenizerError, match="'nose_token' is not the name of a special token; the names are bos_token"
    ):
        tiny.add_special_tokens({"nose_token": "<n>"})
    with pytest.raises(AttributeError, match="nose_token"):
        _ = tiny.nose_token
    assert tiny.convert_tokens_to_ids("no such token") is None
    tiny.unk_token = "<UNK>"
    assert tiny.convert_tokens_to_ids(["no such token", "<PAD>"]) == [1, 0]


def test_a_special_token_stays_special(tiny: CohereTokenizerFast) -> None:
    assert tiny.add_tokens(["<BOS_TOKEN>"]) == 0
    assert tiny.decode([tiny.bos_token_id], skip_special_tokens=True) == ""


def test_changing_bos_needs_an_update(tiny: CohereTokenizerFast) -> None:
    tiny.bos_token = "<CLS>"
    assert tiny.encode("a")[0] == 5
    tiny.update_post_processor()
    assert tiny.encode("a")[0] == 2
    tiny.bos_token = None
    with pytest.raises(ValueError, match="add_bos_token=True"):
        tiny.update_post_processor()


def test_too_long_is_said_in_the_log(tiny: CohereTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    tiny.model_max_length = 4
    tiny("a b c d e f g")
    assert "the model reads 4 at most" in caplog.text
    caplog.clear()
    tiny("a b c d e f g", verbose=False)
    assert len(tiny.encode("a b c d e f g", truncation=True)) == 4
    assert caplog.text == ""


def test_importing_is_light() -> None:
    code = "import sys, quarterdeck.tokenizer; print(sorted({'torch', 'jinja2', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pair_anywhere_in_a_batch_is_cut(tiny: CohereTokenizerFast) -> None:
    rows = tiny(["c", ("a b c d e", "f g h")], truncation=True, max_length=3)["input_ids"]
    assert [len(row) for row in rows] == [2, 3]
    with pytest.raises(TokenizerError, match="no room for the 2 special tokens"):
        tiny(["c", ("a", "b")], truncation=True, max_length=1)


def test_a_stride_counts_only_with_overflow(tiny: CohereTokenizerFast) -> None:
    whole = tiny("a b c d e f", truncation=True, max_length=4)
    assert tiny("a b c d e f", truncation=True, max_length=4, stride=9)["input_ids"] == whole["input_ids"]


def test_a_stride_has_all_the_room_when_no_special_tokens_are_added(tiny: CohereTokenizerFast) -> None:
    tiny.add_eos_token = True
    options: dict[str, Any] = {"truncation": True, "max_length": 2, "stride": 1, **OVERFLOW}
    rows = tiny("1234", add_special_tokens=False, **options)["input_ids"]
    ids = tiny("1234", add_special_tokens=False)["input_ids"]
    assert rows == [ids[start : start + 2] for start in range(len(ids) - 1)]
    assert tiny("1")["input_ids"] == [tiny.bos_token_id, *tiny("1", add_special_tokens=False)["input_ids"],
                                      tiny.eos_token_id]  # fmt: skip


@pytest.mark.parametrize("texts", [("1", "234567"), ("123456", "7"), ("12345", "67890")])
@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("max_length", range(2, 12))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pairs_with_a_stride_never_make_the_library_panic(
    tiny: CohereTokenizerFast,
    texts: tuple[str, str],
    strategy: str,
    max_length: int,
    stride: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {"truncation": strategy, "max_length": max_length, "stride": stride, **OVERFLOW}
    cause = ""
    try:
        rows = tiny([texts], **options)["input_ids"]
    except TokenizerError as error:
        cause = repr(error.__cause__)
    else:
        assert max(map(len, rows)) <= max_length
    assert "Panic" not in cause
    assert capfd.readouterr().err == ""


def test_a_pair_is_refused_with_a_length_that_will_do(tiny: CohereTokenizerFast) -> None:
    options: dict[str, Any] = {"truncation": True, "stride": 2, **OVERFLOW}
    with pytest.raises(TokenizerError, match=r"give a stride below 2, or a larger max_length \(6 \+ 2 will do\)"):
        tiny([("12345", "67890")], max_length=6, **options)
    assert len(tiny([("12345", "67890")], max_length=8, **options)["input_ids"]) > 1


def test_pad_refuses_rows_with_different_inputs(tiny: CohereTokenizerFast) -> None:
    whole, bare = tiny("a b"), {"input_ids": [5]}
    for rows in ([whole, bare], [bare, whole]):
        with pytest.raises(TokenizerError, match=r"encodings 0 and 1 do not have the same inputs.*'attention_mask'"):
            tiny.pad(rows)


def test_a_refused_token_around_texts_changes_nothing(tiny: CohereTokenizerFast) -> None:
    before = tiny("a b")["input_ids"]
    tiny.eos_token = None
    with pytest.raises(TokenizerError, match="add_eos_token=True needs a eos_token"):
        tiny.add_eos_token = True
    assert not tiny.add_eos_token
    tiny.update_post_processor()
    assert tiny("a b")["input_ids"] == before
    tiny.add_bos_token, tiny.bos_token = False, None
    with pytest.raises(TokenizerError, match="add_bos_token=True needs a bos_token"):
        tiny.add_bos_token = True
    assert not tiny.add_bos_token
