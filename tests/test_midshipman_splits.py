"""What midshipman is never trained on, drills that are right, and cases that only the right answer passes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from quarterdeck.training.midshipman import evaluate as evaluation
from quarterdeck.training.midshipman import schemas
from quarterdeck.training.midshipman.cases import make_groups
from quarterdeck.training.midshipman.described import species_question
from quarterdeck.training.midshipman.drills import (
    ask_many,
    call_many,
    find_document,
    find_documents,
    find_newest,
    find_tools,
)
from quarterdeck.training.midshipman.example import Example, Segment, segments
from quarterdeck.training.midshipman.grounded import SchemaQuestions, property_question
from quarterdeck.training.midshipman.invention import Inventor
from quarterdeck.training.midshipman.primer import table_text
from quarterdeck.training.midshipman.scoring import METRICS, Outcome
from quarterdeck.training.midshipman.skeletons import skeletons
from quarterdeck.training.midshipman.tooling import ToolExamples


def inventor(seed: int = 0) -> Inventor:
    return Inventor(random.Random(seed))


class Says:
    """Writes one text for every prompt."""

    def __init__(self, text: str) -> None:
        self.text = text

    def complete(self, prompts: list[object]) -> list[str]:
        return [self.text for _ in prompts]

    def continue_ids(self, prompts: list[object], count: int) -> list[list[int]]:
        raise NotImplementedError


def outcome(group: str, case: Example, text: str) -> Outcome:
    (found,) = evaluation.run_cases(Says(text), {group: [case]})  # type: ignore[arg-type]
    return found


# -- held out ----------------------------------------------------------------------------------------------


def test_a_wording_that_is_held_out_is_trained_on_for_no_attribute() -> None:
    trained = {text for one in schemas.attributes().values() for text in one.questions}
    held_out = {text for one in schemas.attributes().values() for text in one.held_out_questions}
    assert len(held_out) > 40
    assert not trained & held_out


def test_a_property_that_is_held_out_is_told_of_nothing_in_training() -> None:
    nouns = [noun for noun, _ in schemas.properties(held_out=True)]
    sentences = [t for one in schemas.attributes().values() for t in (*one.statements, *one.questions)]
    assert len(nouns) > 30
    for noun in nouns:
        assert not any(re.search(rf"\b{re.escape(noun)} of <e>", sentence, re.I) for sentence in sentences), noun
        assert noun not in {middle for _, middle in schemas.TWO_STEP_NOUNS}
    asked = [property_question(one, held_out=True).about["property"] for one in [inventor()] for _ in range(200)]
    assert set(asked) <= set(nouns)


def test_every_held_out_case_asks_what_was_never_asked_in_training() -> None:
    trained = schemas.trained_attributes()
    for case in make_groups(1.0)["held_out"]:
        attribute = schemas.attributes()[case.about["attribute"]]
        if attribute.key in trained:
            asked = case.messages[-1].content
            patterns = [re.escape(text.rstrip("?")).replace("<e>", ".+") for text in attribute.held_out_questions]
            assert any(re.search(pattern, asked, re.I) for pattern in patterns), asked


def test_the_best_known_example_is_not_in_the_data() -> None:
    one = inventor()
    questions = [species_question(one) for _ in range(3000)]
    assert not any("tallest penguins" in str((q.text, q.documents)).lower() for q in questions)
    assert any("penguins" in q.text for q in questions)


# -- drills and labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_the_number_that_is_to_be_found_is_that_of_the_document_with_the_name(seed: int) -> None:
    example = find_document(inventor(seed))
    number = int(example.completion.splitlines()[0].removeprefix("Relevant Documents: "))
    assert example.completion.splitlines()[1] == f"Cited Documents: {number}"
    (name,) = example.about["names"]
    assert name.lower() in example.messages[0].content.lower()
    holders = [n for n, one in enumerate(example.documents or ()) if name.lower() in str(one.data).lower()]
    assert holders == [number]


def test_prompts_of_drills_hold_no_fixed_texts() -> None:
    texts = [text for kind, text, _ in segments(find_document(inventor())) if kind == "text"]
    assert len(texts) == 3
    assert texts[1].startswith("<results>")


def learned(parts: list[Segment]) -> list[tuple[int, str]]:
    """Places and texts of what is supervised."""
    return [(n, text) for n, (kind, text, supervised) in enumerate(parts) if supervised and kind == "text"]


@pytest.mark.parametrize("make", [find_documents, find_newest])
@pytest.mark.parametrize("seed", range(40))
def test_many_questions_have_the_right_numbers(make: Callable[[Inventor], Example], seed: int) -> None:
    example = make(inventor(seed))
    parts = segments(example)
    answers = learned(parts)
    assert 2 <= len(answers) <= 16
    for (place, text), name in zip(answers, example.about["names"], strict=True):
        told = [t for kind, t, _ in parts[:place] if kind == "text" and t.startswith("<results>")]
        documents = {
            n: words for results in told for n, words in re.findall(r"Document: (\d+)\n(.*(?:\n.+)*)", results)
        }
        asked = [t for kind, t, _ in parts[:place] if kind == "text" and name.lower() in t.lower() and t not in told]
        assert asked
        holders = [n for n, words in documents.items() if name.lower() in words.lower()]
        assert holders == list(set(re.findall(r"\d+", text)))


def test_every_answer_of_many_stands_in_the_documents() -> None:
    cited = 0
    for seed in range(60):
        parts = segments(ask_many(inventor(seed)))
        blocks = parts[3][1].split("\nDocument: ")[1:]
        for _, text in learned(parts):
            for number, words in re.findall(r"<co: (\d+)>(.+)</co: \d+>", text):
                assert words.lower() in blocks[int(number)].lower()
                cited += 1
            assert "Grounded" in text or text.startswith("Answer: ")
    assert cited > 20


def test_every_call_of_many_is_of_a_tool_that_is_shown() -> None:
    whole = 0
    for seed in range(60):
        parts = segments(call_many(inventor(seed)))
        for place, text in learned(parts):
            plan, _, action = text.partition("Action: ```json\n")
            assert not plan or re.fullmatch(r"Plan: I will .+\.\n", plan)
            name = re.search(r'"tool_name": "(.+)",', action)
            assert name
            assert f"def {name[1]}(" in parts[3][1]
            if action.endswith("```"):
                (call,) = json.loads(action.removesuffix("\n```"))
                strings = [value for value in call["parameters"].values() if isinstance(value, str)]
                assert all(value in parts[place - 4][1] for value in strings)
                whole += 1
    assert whole > 60


def test_every_tool_that_is_looked_up_is_shown_under_its_description() -> None:
    by_description = odd = by_words = 0
    for seed in range(60):
        parts = segments(find_tools(inventor(seed)))
        listed = dict(re.findall(r'def (\w+)\(\) -> List\[Dict\]:\n    """(.+)\n', parts[3][1]))
        assert len(set(listed.values())) == len(listed)
        answers = learned(parts)
        assert len(answers) == 2 * (len(listed) - 1)  # all but directly_answer, twice
        for place, text in answers:
            if text.startswith(" "):
                assert parts[place - 1][1] == f"{listed[text.strip()]}:"
                by_description += 1
            else:
                (name,) = re.findall(r'^"tool_name": "(\w+)",$', text)
                assert name in listed
                asked = set(re.findall("[a-z]+", parts[place - 4][1].lower()))
                told = {re.sub("s$", "", word) for word in re.findall("[a-z]+", listed[name].lower())}
                by_words += bool({re.sub("s$", "", word) for word in asked} & (told - {"the", "a"}))
                odd += not set(name.split("_")) & set(listed[name].lower().strip(".").split())
    assert by_description > 60
    assert by_words > 200
    assert odd > 100


def test_only_what_a_table_has_told_is_learned() -> None:
    one = inventor()
    for _ in range(50):
        parts = segments(table_text(one))
        told, again = (text for kind, text, _ in parts if kind == "text")
        assert set(again.splitlines()) <= set(told.splitlines())
        assert [text for _, text, supervised in parts if supervised] == [again, "<|END_OF_TURN_TOKEN|>"]


def test_which_thing_has_one_answer() -> None:
    questions, one = SchemaQuestions(), inventor(5)
    for _ in range(300):
        question = questions.question(one, "reverse")
        if len(question.answer[0].pieces) == 2:  # the name that is asked for, and what is said of it
            predicate = question.answer[0].pieces[1][0].strip().rstrip(".")
            holders = [d for d in question.documents if predicate in " ".join(map(str, d.data.values()))]
            assert len(holders) <= 1, (question.text, question.documents)


@pytest.mark.parametrize("held_out", [False, True])
def test_no_other_tool_does_the_same(held_out: bool) -> None:
    tools, one = ToolExamples(held_out=held_out), inventor(1)
    purposes = {text: skeleton.name for skeleton in skeletons(held_out) for text in skeleton.descriptions}
    for _ in range(300):
        example = tools.call(one)
        shown = {tool.name: purposes.get(tool.description) for tool in example.tools}
        used = shown.pop(example.about["tool"])
        assert used is None or used not in shown.values(), example.tools


# -- cases -------------------------------------------------------------------------------------------------


def test_repeating_the_document_is_no_answer() -> None:
    right = METRICS["answers, seen schemas"][1]
    cases = [case for case in make_groups(0.5)["seen"] if len(case.about["rivals"]) > 1]
    assert len(cases) > 20
    for case in cases:
        assert case.documents
        everything = " ".join(str(value) for document in case.documents for value in document.data.values())
        assert not right(outcome("seen", case, f"Grounded answer: {everything}"))


def test_nonsense_is_no_answer_over_results() -> None:
    for seed in range(3):
        for case in make_groups(1.0, seed)["results"]:
            assert not METRICS["answers from results of tools"][1](outcome("results", case, "Once upon a time"))


def test_one_is_not_true() -> None:
    case = make_groups(0.1)["calls"][0]
    case = replace(case, about={"tool": "switch", "arguments": {"on": True}})
    for value, expected in (("true", True), ("1", False), ('400"', False), ('"400" "', False)):
        said = f'Action: ```json\n[{{"tool_name": "switch", "parameters": {{"on": {value}}}}}]\n```'
        assert METRICS["right arguments"][1](outcome("calls", case, said)) is expected
