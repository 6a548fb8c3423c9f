"""What midshipman is trained on: examples that are right, rendered as the product renders, and held out by name."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from quarterdeck.chat import render
from quarterdeck.chat.messages import Tool
from quarterdeck.chat.parser import parse
from quarterdeck.tokenizer import CohereTokenizerFast
from quarterdeck.training.midshipman import mixture as mixtures
from quarterdeck.training.midshipman import schemas, vocabulary
from quarterdeck.training.midshipman.answers import REFUSAL
from quarterdeck.training.midshipman.cases import held_out_passages
from quarterdeck.training.midshipman.described import verbs
from quarterdeck.training.midshipman.example import Encoded, Example, ExampleEncoder, compacted, segments
from quarterdeck.training.midshipman.grammar import blocks, text_lines, word_lists
from quarterdeck.training.midshipman.grounded import KINDS, SchemaQuestions
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.languages import grounded_in_language
from quarterdeck.training.midshipman.mixture import FAMILIES, STAGES, Materials, Mixture, share
from quarterdeck.training.midshipman.natural import NaturalQuestions, Passage, write_passages
from quarterdeck.training.midshipman.primer import repeated_tokens
from quarterdeck.training.midshipman.skeletons import skeletons
from quarterdeck.training.midshipman.talk import Knowledge
from quarterdeck.training.midshipman.tooling import ToolExamples
from quarterdeck.training.packing import pack

PASSAGES = tuple(
    Passage(
        "own",
        f"Part {n}",
        (f"The {word} was carried to the harbour by sailors.", f"Nobody has seen the {word} lately."),
    )
    for n, word in enumerate(("anchor", "barrel", "compass", "dinghy", "ensign", "fender", "galley", "hawser"))
)
MATERIALS = Materials(PASSAGES, ("A text about nothing in particular.",), Knowledge((("Freedonia", "Rufus"),), ()))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture(MATERIALS)


@pytest.fixture(scope="module")
def tokenizer(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> CohereTokenizerFast:
    def texts() -> Iterator[str]:
        for _, example in islice(mixture.examples(random.Random(0), 0.5), 300):
            if isinstance(example, Example):
                yield from (text for kind, text, _ in segments(example) if kind == "text")

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    vocabulary.train(texts()).save(str(path))
    return CohereTokenizerFast(tokenizer_file=str(path))


def some(mixture: Mixture, family: str, count: int = 60, seed: int = 0) -> list[Example]:
    inventor = Inventor(random.Random(seed))
    made = [mixture.of_family(family, inventor) for _ in range(count)]
    return [one for one in made if isinstance(one, Example)]


def test_the_same_seed_gives_the_same_examples(mixture: Mixture) -> None:
    first, again, other = (
        [str(example) for _, example in islice(mixture.examples(random.Random(seed), 0.3), 40)] for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_the_shares_are_shares_and_move(mixture: Mixture) -> None:
    for progress in (0.0, 0.03, 0.1, 0.15, 0.4, 0.65, 0.8, 1.0):
        assert sum(share(name, progress) for name in FAMILIES) == pytest.approx(1.0, abs=1e-9)
    names = [name for name, _ in islice(mixture.examples(random.Random(1), 1.0), 900)]
    assert set(names) == set(STAGES[-1][1])
    assert names.count("natural") > names.count("repeat")
    early = [name for name, _ in islice(mixture.examples(random.Random(1), 0.0), 300)]
    assert set(early) == set(STAGES[0][1])
    assert early.count("repeat") > early.count("natural")


GROUNDED = ("schema", "property", "event", "species", "natural", "summary", "results")


@pytest.mark.parametrize("family", GROUNDED)
def test_the_product_reads_completions_without_complaint(mixture: Mixture, family: str) -> None:
    for example in some(mixture, family):
        prompt = example.prompt()
        parsed = parse(example.completion, prompt.format, prompt.sources, example.citation_mode)
        assert not parsed.problems, (example.completion, parsed.problems)
        assert parsed.text == example.about["answer"]
        if example.citation_mode == "off":
            continue
        cited = {source.index for citation in parsed.citations for source in citation.sources}
        assert sorted(cited) == example.about["sources"] == list(parsed.cited_documents or ())
        assert cited <= set(parsed.relevant_documents or ())
        assert parsed.text != REFUSAL or not cited


@pytest.mark.parametrize("family", ["schema", "property", "event", "species", "natural"])
def test_what_is_cited_stands_in_the_document(mixture: Mixture, family: str) -> None:
    for example in some(mixture, family):
        parsed = parse(example.completion, "rag", example.prompt().sources, example.citation_mode)
        for citation in parsed.citations:
            for source in citation.sources:
                text = " ".join(map(str, source.data.values())).lower()
                if not example.messages[-1].content.startswith(("Which", "Hello! Which")):  # cites a name, perhaps "it"
                    assert citation.text.lower() in text, (citation.text, text)


@pytest.mark.parametrize("family", ["call", "two_calls", "two_steps", "direct"])
def test_calls_fit_the_tools_that_are_shown(mixture: Mixture, family: str) -> None:
    for example in some(mixture, family):
        if "Action:" not in example.completion:
            continue
        parsed = parse(example.completion, example.prompt().format)
        assert not parsed.problems
        tools = {tool.name: tool.parameters for tool in example.tools}
        for call in parsed.tool_calls:
            if call.name == "directly_answer":
                continue
            properties = tools[call.name]["properties"]
            assert set(tools[call.name]["required"]) == set(call.parameters) <= set(properties)
            kinds = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}
            assert all(type(value) is kinds[properties[name]["type"]] for name, value in call.parameters.items())


def test_arguments_stand_in_the_request_as_they_are() -> None:
    tools, inventor = ToolExamples(), Inventor(random.Random(3))
    for _ in range(80):
        example = tools.call(inventor)
        for value in example.about["arguments"].values():
            if isinstance(value, str):
                assert value in example.messages[-1].content


def test_where_a_value_begins_is_never_a_matter_of_taste() -> None:
    """No quotes, and no "crate 57" or "Project Rous" of which a parameter `crate` or `project` might be a part."""
    tools, inventor = ToolExamples(held_out=True), Inventor(random.Random(3))
    starts = []
    for _ in range(400):
        for example in (tools.call(inventor), tools.two_steps(inventor)):
            arguments = example.about.get("arguments", {})
            values = {name: value for name, value in arguments.items() if isinstance(value, str)}
            assert not any(re.match(r'"|[a-z]+ \S*\d', value) for value in values.values()), values
            assert not any(value.lower().removeprefix("the ").startswith(f"{name} ") for name, value in values.items())
            starts += [value.partition(" ")[0] for value in values.values()]
    assert "the" in starts


def looked_up(tool: Tool) -> str:
    """What a tool looks up, of whatever thing; or its whole description."""
    found = re.fullmatch(r"(?:Looks up the|Returns the|Finds the|The) (.+?)(?: of an? \w+)?\.", tool.description)
    return found[1] if found else tool.description


@pytest.mark.parametrize("held_out", [False, True])
def test_no_two_tools_of_a_prompt_do_the_same(held_out: bool) -> None:
    tools, inventor = ToolExamples(held_out=held_out), Inventor(random.Random(6))
    for _ in range(400):
        for example in (tools.call(inventor), tools.two_steps(inventor)):
            done = [looked_up(tool) for tool in example.tools]
            assert len(done) == len(set(done)), done
            assert not any(re.search(r"\ba [aeio]", tool.description) for tool in example.tools)


def test_results_that_come_together_have_keys_of_their_own() -> None:
    tools, inventor = ToolExamples(), Inventor(random.Random(7))
    pairs = 0
    for _ in range(600):
        documents = next(one.documents for one in tools.results(inventor).messages if one.role == "tool")
        keys = [key for document in documents for key in document.data]
        pairs += len(documents) > 1
        assert len(keys) == len(set(keys)), keys
    assert pairs > 50


def test_what_a_question_in_another_language_names_is_one_thing() -> None:
    inventor = Inventor(random.Random(8))
    for _ in range(1500):
        example = grounded_in_language(inventor)
        before, _, after = example.about["answer"].partition(example.about["values"][0])
        texts = [str(document.data["text"]) for document in example.documents or ()]
        assert sum(text.startswith(before) and text.endswith(after) for text in texts) == 1, texts


def test_the_words_of_a_question_stand_in_one_sentence() -> None:
    again = Passage("own", "Again", ("The anchor is heavy here.", "Nobody lifts the anchor now.", "The sea is calm."))
    questions, inventor = NaturalQuestions((again, *PASSAGES)), Inventor(random.Random(9))
    for _ in range(300):
        question = questions.question(inventor)
        asked = re.findall(r"(?:about|mentions) (anchor|barrel|compass)[.?]", question.text)
        for word in asked if question.answer else ():
            texts = " ".join(str(value) for one in question.documents for value in one.data.values())
            assert texts.count(word) == 1, (question.text, texts)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_questions_of_every_kind_are_clean_text(kind: str, held_out: bool) -> None:
    questions, inventor = (
        SchemaQuestions(held_out_schemas=held_out, held_out_wordings=held_out),
        Inventor(random.Random(4)),
    )
    for _ in range(40):
        question = questions.question(inventor, kind)
        texts = [question.text, *(one.plain for one in question.answer)]
        texts += [str(value) for document in question.documents for value in document.data.values()]
        for text in texts:
            assert not re.search(r"[{}|]|<[a-z]>|  | [.,?]|\bthe The\b", text), text


def test_every_attribute_has_wordings_and_every_schema_attributes() -> None:
    known = schemas.attributes()
    inventor = Inventor(random.Random(0))
    assert len(schemas.schemas(held_out=False)) >= 60
    for schema in (*schemas.schemas(held_out=False), *schemas.schemas(held_out=True)):
        assert inventor.value(schema.name_kind)
        assert len(schema.attributes) >= 3
        for key in schema.attributes:
            assert inventor.value(known[key].kind)
            assert len(known[key].questions) >= 2
            assert all("<e>" in text and text.count("<v>") == 1 for text in known[key].statements)
            assert all("<e>" in text and text.endswith("?") for text in known[key].questions)


def test_what_is_held_out_is_never_trained_on() -> None:
    trained, kept = (schemas.schemas(held_out=flag) for flag in (False, True))
    assert len(kept) == 8
    assert not {one.key for one in trained} & {one.key for one in kept}
    for one in schemas.attributes().values():
        assert not set(one.questions) & set(one.held_out_questions)
    wordings = [len(one.held_out_questions) for one in schemas.attributes().values()]
    assert sum(wordings) > 40
    for pick in (schemas.properties, skeletons, verbs):
        first, second = ({getattr(one, "name", None) or one[0] for one in pick(flag)} for flag in (False, True))
        assert first
        assert second
        assert not first & second
    assert {one.source for one in held_out_passages()} == {"jargon"}
    assert len(held_out_passages()) == 400


def test_training_uses_no_held_out_wording(mixture: Mixture) -> None:
    held_out = [text for one in schemas.attributes().values() for text in one.held_out_questions]
    patterns = [re.compile(re.escape(text).replace("<e>", "(.+)") + "$") for text in held_out]
    own = {text for one in schemas.attributes().values() for text in one.questions}
    for example in some(mixture, "schema", 150):
        asked = example.messages[-1].content
        assert not any(pattern.match(asked) for pattern in patterns) or any(
            re.fullmatch(re.escape(text).replace("<e>", "(.+)"), asked) for text in own
        )


def test_every_chat_intent_and_language_is_complete() -> None:
    assert len(blocks("languages.txt")) == 9
    for block in blocks("chat.txt"):
        assert block.tagged["U"], block.name
        assert block.tagged["A"], block.name
        assert all(line.count("{") == line.count("}") for lines in block.tagged.values() for line in lines)
    lists = word_lists("values.txt")
    assert all(all(words) for words in lists.values())
    assert len(text_lines("verbs.txt")) > 40


def test_prompts_are_the_products_own(mixture: Mixture, tokenizer: CohereTokenizerFast) -> None:
    encoder = ExampleEncoder(tokenizer)
    for family in ("schema", "call", "results", "two_steps", "chat", "languages"):
        for example in some(mixture, family, 12):
            one = encoder.encode(example)
            prompt = render(list(example.messages), **example.options()).token_ids(tokenizer)
            assert one.ids[: len(prompt)].tolist() == prompt
            rest = one.ids[len(prompt) :].tolist()
            assert tokenizer.decode(rest) == example.completion + "<|END_OF_TURN_TOKEN|>"
            assert one.supervised[len(prompt) :].all()
            assert family == "chat" or not one.supervised[: len(prompt)].any()


def test_earlier_answers_of_a_chat_are_supervised_too(mixture: Mixture, tokenizer: CohereTokenizerFast) -> None:
    example = next(one for one in some(mixture, "chat") if len(one.messages) > 2 and one.messages[0].role == "user")
    one = ExampleEncoder(tokenizer).encode(example)
    said = tokenizer.decode(one.ids[one.supervised].tolist())
    answers = [message.content for message in example.messages if message.role == "assistant"]
    assert said == "".join(text + "<|END_OF_TURN_TOKEN|>" for text in (*answers, example.completion))


def test_compact_prompts_keep_all_but_the_fixed_texts(mixture: Mixture, tokenizer: CohereTokenizerFast) -> None:
    encoder = ExampleEncoder(tokenizer)
    for family in ("schema", "call", "results"):
        for example in some(mixture, family, 10):
            short = "".join(text for _, text in compacted(example.prompt()))
            assert len(encoder.encode(example, compact=True).ids) < 0.75 * len(encoder.encode(example).ids)
            assert example.messages[-1].content in short or example.messages[-1].role == "tool"
            for source in example.prompt().sources:
                assert all(str(value) in short for value in source.data.values())
            assert all(f"def {tool.name}(" in short for tool in example.tools if example.prompt().format != "rag")


def test_repeated_tokens_are_supervised_where_they_repeat() -> None:
    one = repeated_tokens(random.Random(0), bos=5, end=8164, last=8163, length=10)
    assert one.ids[1:11].tolist() == one.ids[11:21].tolist() == one.ids[one.supervised][:-1].tolist()
    assert (one.ids[0], one.ids[-1]) == (5, 8164)


def test_the_vocabulary_has_coheres_layout_and_short_prompts(tokenizer: CohereTokenizerFast) -> None:
    ids = tokenizer.get_vocab()
    assert len(ids) == 8192
    assert (ids["<PAD>"], ids["<BOS_TOKEN>"], ids["<|START_OF_TURN_TOKEN|>"], ids["<|EXTRA_9_TOKEN|>"]) == (
        0,
        5,
        8163,
        8191,
    )
    for word in (
        "Relevant",
        "Documents",
        "Cited",
        "Answer",
        "Grounded",
        "answer",
        "Action",
        "Plan",
        "parameters",
        "None",
    ):
        assert word in ids, word
    for mode, most in (("accurate", 560), ("fast", 520), ("off", 350)):
        assert len(render("Where?", documents=[], citation_mode=mode).token_ids(tokenizer)) < most
    text = "Ünïcode 日本語 العربية 😀 12,345\n\tend"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("told", "name", "copied"),
    [
        ("The toll of {} is", "Daikitaim Ranch", "<co: 0>{}</co: 0>"),
        ("It lies in {}.", "Bamgra", "<co: 0>{}</co: 0>"),
        ("def {}(x: str)", "courierFeed_v2", '"tool_name": "{}",'),
        ("write to {} now", "Pierre Rotend", '"name": "{}"'),
    ],
)
def test_a_name_has_the_same_tokens_wherever_it_stands(
    told: str, name: str, copied: str, tokenizer: CohereTokenizerFast
) -> None:
    wanted = " ".join(tokenizer.tokenize(name))
    assert f" {wanted} " in " ".join(tokenizer.tokenize(told.format(name)))
    assert f" {wanted} " in " ".join(tokenizer.tokenize(copied.format(name)))


def test_frequent_words_take_the_space_before_them_along(tokenizer: CohereTokenizerFast) -> None:
    pieces = tokenizer.tokenize("Part of it is in the box")
    assert {"\u0120of", "\u0120is", "\u0120in", "\u0120the"} <= set(pieces)


def test_batches_are_a_matter_of_seed_step_and_progress(
    tokenizer: CohereTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write_materials(folder, tokenizer)
    makers = [
        mixtures.BatchMaker(folder, seed=1, packer=functools.partial(pack, rows=1, length=1024)) for _ in range(2)
    ]
    first, again = (maker(3, 0.25) for maker in makers)
    assert first.ids.tolist() == again.ids.tolist()
    assert first.targets.tolist() == again.targets.tolist()
    assert first.ids.tolist() != makers[0](4, 0.25).ids.tolist()
    assert first.used > 700


def write_materials(folder: Path, tokenizer: CohereTokenizerFast) -> None:
    write_passages(PASSAGES, folder / "passages.jsonl")
    (folder / "texts.jsonl").write_text(json.dumps("A text.") + "\n")
    (folder / "knowledge.json").write_text(json.dumps({"capitals": [["Freedonia", "Rufus"]], "meanings": []}))
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))


def test_encoded_arrays_are_small(mixture: Mixture, tokenizer: CohereTokenizerFast) -> None:
    one = ExampleEncoder(tokenizer).encode(some(mixture, "text", 1)[0])
    assert isinstance(one, Encoded)
    assert one.ids.dtype == np.uint16
    assert one.supervised[1:].all()
    assert not one.supervised[0]
