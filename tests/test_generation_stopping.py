"""When rows are finished: the criteria alone, against transformers, and inside generate()."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from quarterdeck.model import CohereForCausalLM

WORDS = "a b c s t o p e r l i n st op stop per las to ab bc abc ☃".split()


def word_tokenizer() -> Tokenizer:
    """A byte-level vocabulary with overlapping words; "€" and "é" exist only as single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [byte_level.pre_tokenize_str(word)[0][0] for word in WORDS]
    tokens = list(dict.fromkeys(["<PAD>", "<EOS>", *words, *alphabet]))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = word_tokenizer()
IDS = {word: i for i, word in enumerate(["<PAD>", "<EOS>", *WORDS])}


def ids_of(*words: str) -> list[int]:
    return [IDS[word] for word in words]


def stops(words: Sequence[str], *strings: str) -> bool:
    done = StopStringCriteria(TOKENIZER, strings)(torch.tensor([ids_of(*words)]))
    assert isinstance(done, Tensor)
    return bool(done[0])


@pytest.mark.parametrize(
    ("words", "string"),
    [
        (["st", "op"], "stop"),
        (["stop"], "stop"),
        (["s", "to", "per"], "stop"),  # the last token goes on after the string
        (["las", "to", "per"], "astop"),  # the first begins before it
        (["las", "to", "per"], "p"),
        (["a", "b", "c"], "abc"),
        (["a", "☃"], "a☃"),
    ],
)
def test_a_stop_string_matches_wherever_tokens_end(words: list[str], string: str) -> None:
    assert stops(words, string)
    assert stops(words, "zzz", string)


@pytest.mark.parametrize(
    ("words", "string"),
    [
        (["stop", "a"], "stop"),  # it ended before the last token
        (["st", "o"], "stop"),
        (["s", "o", "p"], "stop"),
        (["a", "☃", "a"], "☃"),
    ],
)
def test_what_does_not_match(words: list[str], string: str) -> None:
    assert not stops(words, string)


def test_a_character_of_several_tokens_matches_when_it_is_whole() -> None:
    pieces = [TOKENIZER.token_to_id(character) for character in TOKENIZER.id_to_token(IDS["☃"])]
    criterion = StopStringCriteria(TOKENIZER, "a☃")
    assert len(pieces) == 3
    rows = [[*ids_of("a"), *pieces[:n]] for n in (1, 2, 3)]
    assert [bool(criterion(torch.tensor([row]))[0]) for row in rows] == [False, False, True]


def test_a_space_that_the_tokenizer_drops_at_the_beginning() -> None:
    class DropsFirstSpace:
        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            return "".join(map(chr, token_ids)).removeprefix(" ")

    criterion = StopStringCriteria(DropsFirstSpace(), " b")
    assert criterion(torch.tensor([[*b"a b"]])).tolist() == [True]
    assert criterion(torch.tensor([[*b"a b."]])).tolist() == [False]


words_drawn = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=14)


@settings(deadline=None, max_examples=80)
@given(words=words_drawn, strings=st.lists(st.text("abcstop", min_size=1, max_size=5), min_size=1, max_size=3))
def test_stop_strings_match_the_decoded_text(words: list[str], strings: list[str]) -> None:
    text, before = "".join(words), "".join(words[:-1])
    expected = any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in strings)
    assert stops(words, *strings) == expected


def test_stop_strings_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZER)
    rows = torch.randint(2, 2 + len(WORDS) - 1, (400, 9), generator=torch.Generator().manual_seed(0))
    for strings in (["stop"], ["a", "to"], ["ab", "perl", "ostop"], ["cab"]):
        expected = transformers.StopStringCriteria(tokenizer=theirs, stop_strings=strings)(rows, None)
        ours = StopStringCriteria(TOKENIZER, strings)(rows)
        assert ours.tolist() == expected.tolist()
        assert 0 < int(ours.sum()) < 400


@pytest.mark.parametrize("strings", ["", [], ["a", ""]])
def test_empty_stop_strings_are_refused(strings: Any) -> None:
    with pytest.raises(InputError, match="stop_strings"):
        StopStringCriteria(TOKENIZER, strings)


def test_end_tokens() -> None:
    ids = torch.tensor([[1, 2], [2, 1], [1, 3]])
    assert EosTokenCriteria(2)(ids).tolist() == [True, False, False]
    assert EosTokenCriteria([2, 3])(ids).tolist() == [True, False, True]


def test_time_is_counted_from_construction() -> None:
    now = [10.0]
    criterion = MaxTimeCriteria(2.0, clock=lambda: now[0])
    ids = torch.zeros(1, 1)
    assert criterion(ids) is False
    now[0] = 12.0
    assert criterion(ids) is False
    now[0] = 12.01
    assert criterion(ids) is True


def test_a_list_joins_bools_and_tensors() -> None:
    ids = torch.tensor([[1, 2], [2, 1]])
    assert StoppingCriteriaList()(ids).tolist() == [False, False]
    assert StoppingCriteriaList([EosTokenCriteria(1), MaxLengthCriteria(3)])(ids).tolist() == [False, True]
    assert StoppingCriteriaList([EosTokenCriteria(1), MaxLengthCriteria(2)])(ids).tolist() == [True, True]


# ---------------------------------------------------------------------------------- inside generate()

FIELDS: dict[str, Any] = {
    "vocab_size": TOKENIZER.get_vocab_size(),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**FIELDS)).eval()


def prompts(rows: int) -> Tensor:
    return torch.randint(2, 20, (rows, 4), generator=torch.Generator().manual_seed(3))


def test_stop_strings_in_generate_equal_transformers(model: CohereForCausalLM) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.CohereForCausalLM(transformers.CohereConfig(**FIELDS)).eval()
    peer.load_state_dict(model.state_dict(), strict=True)
    their_tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZER)
    options: dict[str, Any] = {
        "do_sample": True,
        "max_new_tokens": 25,
        "suppress_tokens": [0, 1, *range(2 + len(WORDS) - 1, FIELDS["vocab_size"])],
        "stop_strings": ["st", "ab", "li"],
    }
    for seed in range(3):
        torch.manual_seed(seed)
        expected = peer.generate(prompts(5), tokenizer=their_tokenizer, **options)
        torch.manual_seed(seed)
        ours = model.generate(prompts(5), tokenizer=TOKENIZER, **options)
        assert ours.tolist() == expected.tolist()
        for row in ours[:, 4:].tolist():
            kept = row[: row.index(0)] if 0 in row else row
            assert not any(stop in TOKENIZER.decode(kept[:-1]) for stop in options["stop_strings"])


def test_stop_strings_need_a_tokenizer(model: CohereForCausalLM) -> None:
    with pytest.raises(InputError, match="tokenizer="):
        model.generate(prompts(1), stop_strings="stop")


def test_finished_rows_are_padded(model: CohereForCausalLM) -> None:
    def second_row_at_seven(ids: Tensor, scores: object) -> Tensor:
        return torch.tensor([False, ids.shape[1] >= 7])

    ids = model.generate(prompts(2), max_new_tokens=6, stopping_criteria=[second_row_at_seven], min_new_tokens=6)
    assert ids.shape == (2, 10)
    assert ids[1, 7:].tolist() == [0, 0, 0]
    assert 0 not in ids[0].tolist()


def test_without_padding_token_the_end_token_pads(model: CohereForCausalLM) -> None:
    def first_row(ids: Tensor, scores: object) -> Tensor:
        return torch.tensor([True, False])

    saved = model.generation_config.pad_token_id
    model.generation_config.pad_token_id = None
    try:
        ids = model.generate(prompts(2), max_new_tokens=4, stopping_criteria=[first_row], min_new_tokens=4)
    finally:
        model.generation_config.pad_token_id = saved
    assert ids[0, 5:].tolist() == [1, 1, 1]


def test_a_criterion_may_be_a_class_and_stop_at_once(model: CohereForCausalLM) -> None:
    class Never(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids: Tensor, scores: object = None) -> bool:
            type(self).calls += 1
            return False

    ids = model.generate(prompts(1), max_new_tokens=5, eos_token_id=None, stopping_criteria=[Never()])
    assert Never.calls == ids.shape[1] - 4 == 5
    assert model.generate(prompts(1), stopping_criteria=[lambda ids, scores: True]).shape[1] == 5


def test_a_criterion_replaces_the_one_of_its_class(model: CohereForCausalLM) -> None:
    own = MaxLengthCriteria(6)
    assert model.generate(prompts(1), max_new_tokens=9, eos_token_id=None, stopping_criteria=[own]).shape[1] == 6


def test_criteria_see_the_scores_that_are_recorded(model: CohereForCausalLM) -> None:
    seen: list[int | None] = []

    def count(ids: Tensor, scores: tuple[Tensor, ...] | None) -> bool:
        seen.append(None if scores is None else len(scores))
        return False

    model.generate(prompts(1), max_new_tokens=3, eos_token_id=None, stopping_criteria=[count])
    options = {"return_dict_in_generate": True, "output_scores": True}
    model.generate(prompts(1), max_new_tokens=3, eos_token_id=None, stopping_criteria=[count], **options)
    assert seen == [None, None, None, 1, 2, 3]


def test_max_time_ends_generation(model: CohereForCausalLM) -> None:
    assert model.generate(prompts(1), max_new_tokens=50, eos_token_id=None, max_time=1e-9).shape[1] == 5
