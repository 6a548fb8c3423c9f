"""Citation checking: hand-made cases in several scripts, the documented formula, and properties."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck.chat.documents.checking import check_citations, supported, text_of
from quarterdeck.chat.documents.words import words_of
from quarterdeck.chat.messages import Citation, Source
from quarterdeck.errors import ChatError


def source(text: str | None, index: int = 0, **fields: object) -> Source:
    return Source("document", f"doc:{index}", index, {**fields, **({} if text is None else {"text": text})})


def citation(text: str, *sources: Source) -> Citation:
    return Citation(0, len(text), text, sources)


def check(text: str, *sources: Source):
    (support,) = check_citations([citation(text, *sources)])
    return support


SHOPS = source(
    "Sound of Music became Best Buy in 1983. It was added to Standard & Poor's S&P 500 in 1999. It has 1,234 shops."
)
TALL = source("Emperor penguins are the tallest.", 0, title="Tall penguins")
WHERE = source("Emperor penguins only live in Antarctica.", 1)
TOKYO = source("東京都は日本の首都であり、人口は約1400万人です。")
THAI = source("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย")
MOSCOW = source("Москва — столица России. Население — 13 миллионов.")


@pytest.mark.parametrize(
    ("span", "where", "passage"),
    [
        ("Best Buy", SHOPS, "Best Buy"),
        ("added to Standard & Poor's S&P 500", SHOPS, "added to Standard & Poor's S&P 500"),
        ("BEST BUY!", SHOPS, "Best Buy"),
        ("1234 shops", SHOPS, "1,234 shops"),
        ("1.234 shops", SHOPS, "1,234 shops"),
        ("Émperor Penguins", TALL, "Emperor penguins"),
        ("Tall penguins", TALL, "Tall penguins"),
        ("日本の首都", TOKYO, "日本の首都"),
        ("１４００万人", TOKYO, "1400万人"),
        ("約", TOKYO, "約"),
        ("เมืองหลวง", THAI, "เมืองหลวง"),
        ("СТОЛИЦА России", MOSCOW, "столица России"),
        ("Straße", source("in der STRASSE"), "STRASSE"),
        ("ﬁve", source("all five of them"), "five"),
        ("42", source(None, number=42), "42"),
        ("is open", source(None, state={"is": "open"}), 'is":"open'),
    ],
)
def test_a_quotation_is_fully_supported(span, where, passage) -> None:
    support = check(span, where)
    assert (support.score, support.overlap, support.quotation) == (1.0, 1.0, 1.0)
    assert (support.source, support.passage, support.missing) == (where, passage, ())


@pytest.mark.parametrize(
    ("span", "where"),
    [
        ("Paris", SHOPS),
        ("韓国", TOKYO),
        ("本東", TOKYO),
        ("Best Buy", source(None)),
        ("Столица", TALL),
        ("→", SHOPS),
        ("7", SHOPS),
    ],
)
def test_what_no_source_says_is_not_supported(span, where) -> None:
    support = check(span, where)
    assert (support.score, support.source, support.passage) == (0.0, None, "")
    assert support.missing == tuple(span.split())


def test_symbols_are_supported_where_they_stand() -> None:
    assert check("→", source("a → b")).score == 1.0
    assert check("", source("a")).score == 0.0


def test_a_wrong_number_costs_at_least_half() -> None:
    right, wrong = check("added to the S&P 500 in 1999", SHOPS), check("added to the S&P 400 in 2001", SHOPS)
    assert right.score > 0.8
    assert wrong.score < 0.5
    assert wrong.missing == ("the", "400", "2001")


def test_the_documented_formula_by_hand() -> None:
    """Weights: penguins 1, eat 0.6, 9 (a number) 1, fish 0.8; found: penguins, fish; longest run: penguins."""
    support = check("penguins eat 9 fish", source("The fish sees penguins"))
    assert support.overlap == pytest.approx(1.8 / 3.4)
    assert support.quotation == pytest.approx(1 / 3.4)
    assert support.score == pytest.approx((0.75 * 1.8 / 3.4 + 0.25 * 1 / 3.4) * 0.5)
    assert support.missing == ("eat", "9")


def test_characters_count_in_pairs() -> None:
    """日本, 本の, の人, 人口: three of four pairs are there, two of them in a run."""
    support = check("日本の人口", TOKYO)
    assert (support.overlap, support.quotation) == (0.75, 0.5)
    assert check("口人", TOKYO).missing == ("口人",)


def test_the_same_words_in_another_order_keep_three_quarters() -> None:
    support = check("Antarctica only penguins Emperor", WHERE)
    assert support.overlap == 1.0
    assert 0.75 < support.score < 0.9


def test_sources_support_a_span_together() -> None:
    span = "Emperor penguins, the tallest, only live in Antarctica"
    both = check(span, TALL, WHERE)
    assert both.overlap == 1.0
    assert both.source == WHERE
    assert both.missing == ()
    assert both.score > max(check(span, TALL).score, check(span, WHERE).score)
    assert check(span, WHERE).missing == ("the", "tallest")


def test_words_far_apart_are_no_passage() -> None:
    """Everyday words of a long document must not add up to a sentence that stands nowhere in it."""
    apart = source(" ".join(["Penguins", *["filler"] * 60, "fly", *["filler"] * 60, "planes"]))
    together = source("Penguins, said the pilot, would like to fly old planes")
    assert check("Penguins fly planes", apart).overlap < 0.4
    assert check("Penguins fly planes", together).overlap == 1.0


def test_the_passage_is_the_shortest_and_first_with_these_words() -> None:
    text = source("red. And red or blue. Then blue, red. And blue, red.")
    assert check("red blue", text).passage == "blue, red"
    assert check("red red", text).passage == "red"


def test_unsupported_citations_are_dropped() -> None:
    good, bad = citation("Best Buy", SHOPS), citation("Best Western in 2020", SHOPS)
    assert supported([good, bad]) == (good,)
    assert supported([good, bad], 0) == (good, bad)
    assert supported([]) == ()
    with pytest.raises(ChatError, match="from 0 to 1, not 50"):
        supported([good], 50)


def test_the_text_of_a_source_is_that_of_its_fields() -> None:
    assert text_of(source("b", 0, title="a", n=1, tags=["é"])) == 'a\n1\n["é"]\nb'


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("1,234.50 1.5 1 000", "1234.5 1.5 1 0"),
        ("1,000,000 1\u202f000 1'000 10,20,30", "1000000 1000 1000 10.20.30"),
        ("٣٫٥ ۱۲ ７", "3.5 12 7"),
        ("007 0.50 0.0", "7 0.5 0"),
        ("don’t COVID-19 a_b 1st", "don t covid 19 a b 1 st"),
        ("e\u0301 É naïve Straße ﬁn", "e e naive strasse fin"),
        ("हिन्दी שָׁלוֹם ким й", "हिन्दी שלום ким и"),
        ("東京 ｶﾅ カナ 한국 漢", "東 京 カ ナ カ ナ 한국 漢"),
        ("…→ !?", ""),
    ],
)
def test_words(text, keys) -> None:
    assert [word.key for word in words_of(text)] == keys.split()


@settings(max_examples=200, deadline=None)
@given(st.text(), st.lists(st.text(), max_size=3))
def test_scores_are_shares_and_words_stand_where_they_say(span, texts) -> None:
    support = check(span, *map(source, texts))
    assert all(0 <= share <= 1 for share in (support.score, support.overlap, support.quotation))
    assert support.source is None or support.passage in text_of(support.source)
    words = words_of(span)
    assert all(0 <= word.start < word.end <= len(span) and word.key for word in words)
    assert all(one.end <= other.start for one, other in pairwise(words))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.text("ab é日本กข1,. \n", max_size=60))
def test_whole_words_of_a_source_are_fully_supported(data, text) -> None:
    words = words_of(text)
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    assert check(text[words[first].start : words[last].end], source(f"x {text} y")).score == 1.0
