"""The evaluation: a scripted perfect model reaches 100%, one that writes nonsense 0%, and each metric can tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat.template import Prompt
from quarterdeck.training.midshipman import evaluate as evaluation
from quarterdeck.training.midshipman.cases import SIZES, make_groups
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.scoring import METRICS, value_right

SCALE, TINY_SCALE = 0.2, 0.01
Judged = Callable[..., int]


class Perfect:
    """Knows the completion of every case, and any plain answer where a tool is declined."""

    def __init__(self, groups: dict[str, list[Example]]) -> None:
        self.texts = {one.prompt().text: one.completion for examples in groups.values() for one in examples}

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        return [self.texts.get(prompt.text, "Hello!") for prompt in prompts]

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        return [list(ids[1 + evaluation.GIVEN : 1 + evaluation.GIVEN + count]) for ids in prompts]


class Wrong:
    """Writes the same nonsense whatever it is asked."""

    def __init__(self, text: str = "Once upon a time") -> None:
        self.text = text
        self.asked: list[str] = []

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        self.asked += [prompt.text for prompt in prompts]
        return [self.text for _ in prompts]

    def continue_ids(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        return [[1] * count for _ in prompts]


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Example]]:
    return make_groups(SCALE)


def shares(candidate: evaluation.Candidate) -> dict[str, float]:
    return {row.metric: row.share for row in evaluation.evaluate(candidate, scale=SCALE)}


def test_a_perfect_model_is_right_everywhere(groups: dict[str, list[Example]]) -> None:
    assert shares(Perfect(groups)) == dict.fromkeys((evaluation.INDUCTION, *METRICS), 1.0)


def test_nonsense_is_wrong_everywhere() -> None:
    assert shares(Wrong()) == dict.fromkeys((evaluation.INDUCTION, *METRICS), 0.0)


def test_an_answer_from_another_document_is_wrong(groups: dict[str, list[Example]]) -> None:
    case = next(one for one in groups["seen"] if one.about["rivals"])
    perfect = Perfect({"seen": [case]})
    value, rival = case.about["values"][0], case.about["rivals"][0]
    perfect.texts = {key: text.replace(value, rival) for key, text in perfect.texts.items()}
    (outcome,) = evaluation.run_cases(perfect, {"seen": [case]})
    assert METRICS["format"][1](outcome)
    assert not METRICS["answers, seen schemas"][1](outcome)
    assert METRICS["right citation of right answers"][1](outcome) is None


def test_a_right_answer_with_the_wrong_citation(groups: dict[str, list[Example]]) -> None:
    case = next(one for one in groups["seen"] if len(one.documents or ()) > 1 and len(one.about["sources"]) == 1)
    right = case.about["sources"][0]
    other = 0 if right else 1
    perfect = Perfect({"seen": [case]})
    perfect.texts = {key: text.replace(f"co: {right}>", f"co: {other}>") for key, text in perfect.texts.items()}
    (outcome,) = evaluation.run_cases(perfect, {"seen": [case]})
    assert METRICS["answers, seen schemas"][1](outcome)
    assert METRICS["right citation of right answers"][1](outcome) is False


def test_sections_that_are_missing_or_tags_that_stay_open_are_no_format(groups: dict[str, list[Example]]) -> None:
    case = groups["seen"][0]
    for broken in (
        case.completion.replace("Cited Documents", "Documents"),
        case.completion.replace("</co: ", "</c: "),
        case.completion.partition("Grounded answer:")[0],
    ):
        perfect = Perfect({})
        perfect.texts = {case.prompt().text: broken}
        (outcome,) = evaluation.run_cases(perfect, {"seen": [case]})
        assert not METRICS["format"][1](outcome), broken


def test_calls_are_judged_by_json_name_and_arguments(groups: dict[str, list[Example]]) -> None:
    case = next(one for one in groups["calls"] if one.completion.count('"') >= 8)
    argument = next(iter(case.about["arguments"]))
    for broken, expected in (
        (case.completion.replace("\n]", "\n", 1), (False, None, None)),
        (case.completion.replace(f'"{case.about["tool"]}"', '"other"'), (True, False, False)),
        (case.completion.replace(f'"{argument}"', '"another"'), (True, True, False)),
    ):
        perfect = Perfect({})
        perfect.texts = {case.prompt().text: broken}
        (outcome,) = evaluation.run_cases(perfect, {"calls": [case]})
        for metric, right in zip(("tool calls are valid JSON", "right tool", "right arguments"), expected, strict=True):
            assert right is None or METRICS[metric][1](outcome) is right, (metric, broken)


@pytest.mark.parametrize(
    ("given", "expected", "right"),
    [
        ("the Red Lion", "the Red Lion", True),
        ("Red Lion", "the Red Lion", True),
        ("The Red Lion", "the Red Lion", True),
        ("fallen tree", "a fallen tree", True),
        ('"Road of Griatha"', "Road of Griatha", True),
        ("the Red", "the Red Lion", False),
        ("Lion", "the Red Lion", False),
        ("red lion", "the Red Lion", False),
        ("the tin", "tin", False),
        ("the", "the Red Lion", False),
        ("", "the Red Lion", False),
        ("8", 8, False),
        (8.0, 8, False),
        (1, True, False),
        (["beans", "rice"], ["beans", "rice"], True),
        (["rice", "beans"], ["beans", "rice"], False),
        ("beans and rice", ["beans", "rice"], False),
    ],
)
def test_a_value_is_right_with_and_without_its_article_but_in_no_other_words(
    given: object, expected: object, right: bool
) -> None:
    assert value_right(given, expected) is right


def test_arguments_that_are_missing_or_too_many_are_wrong(groups: dict[str, list[Example]]) -> None:
    case = next(one for one in groups["calls"] if len(one.about["arguments"]) > 1)
    (name, value), *rest = case.about["arguments"].items()
    for arguments in (dict(rest), {**case.about["arguments"], "limit": "none"}, {name: [value], **dict(rest)}):
        other = replace(case, about={**case.about, "arguments": arguments})
        (outcome,) = evaluation.run_cases(Perfect({"calls": [other]}), {"calls": [other]})
        assert not METRICS["right arguments"][1](outcome)


def test_part_of_a_number_is_not_the_number(groups: dict[str, list[Example]]) -> None:
    case = replace(groups["seen"][0], about={"answer": "It has 30.", "values": ["30"], "sources": [0], "rivals": []})
    for text, right in (("It has 300.", False), ("It has 1,30.", False), ("It has 30.", True)):
        perfect = Perfect({})
        perfect.texts = {case.prompt().text: f"Grounded answer: {text}"}
        (outcome,) = evaluation.run_cases(perfect, {"seen": [case]})
        assert METRICS["answers, seen schemas"][1](outcome) is right


def test_cases_are_the_same_for_the_same_seed_and_as_many_as_said() -> None:
    groups = make_groups(0.05, seed=3)
    assert groups == make_groups(0.05, seed=3)
    assert groups != make_groups(0.05, seed=4)
    assert {name: len(examples) for name, examples in groups.items()} == {
        name: max(1, round(size * 0.05)) for name, size in SIZES.items()
    }


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263 and 15 of 148
    assert evaluation.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert evaluation.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert evaluation.wilson(0, 0) == (0.0, 1.0)


def test_results_that_are_reported_on_have_something_to_report() -> None:
    for case in make_groups(1.0)["results"]:
        assert case.about["values"] != [case.about["answer"]]


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_every_gate_is_a_metric(name: str) -> None:
    assert set(evaluation.gates(name)) <= set(METRICS)
    assert len(evaluation.gates(name)) == 7


def test_rows_know_their_gates() -> None:
    rows = evaluation.evaluate(Wrong(), scale=0.01, gate="cpu")
    missed = [row.metric for row in rows if not row.passes]
    assert sorted(missed) == sorted(evaluation.gates("cpu"))
    assert evaluation.markdown(rows).count("MISSED") == 7


def test_a_model_on_disk_answers_in_batches_as_alone_and_within_its_context() -> None:
    model, tokenizer = (auto.from_pretrained("midshipman") for auto in (AutoModelForCausalLM, AutoTokenizer))
    prompts = [one.prompt() for one in make_groups(0.02)["chat"]]

    def batched(batch: int, longest: int) -> evaluation.BatchedModel:
        return evaluation.BatchedModel(model, tokenizer, batch=batch, longest=longest)

    alone = [batched(1, 3).complete([prompt])[0] for prompt in prompts]
    assert all(alone)
    assert batched(2, 3).complete(prompts) == alone
    (two_tokens,) = batched(1, 2).complete(prompts[:1])
    assert two_tokens
    model.config.max_position_embeddings = len(prompts[0].token_ids(tokenizer)) + 2
    assert batched(2, 3).complete(prompts[:1]) == [two_tokens]
    model.config.max_position_embeddings -= 2
    assert batched(2, 3).complete(prompts[:1]) == [""]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Calls the command with a candidate in place of the model on disk; the exit code."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda folder, dtype: torch.nn.Module())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder: None)

    def call(candidate: evaluation.Candidate, *more: str) -> int:
        monkeypatch.setattr(evaluation, "BatchedModel", lambda model, tokenizer, batch: candidate)
        return evaluation.main(["folder", "--scale", str(TINY_SCALE), "--seed", "3", *more])

    return call


def test_the_exit_code_says_whether_every_gate_is_passed(judged: Judged, capsys: pytest.CaptureFixture[str]) -> None:
    perfect = Perfect(make_groups(TINY_SCALE, seed=3))
    for gate in ("cpu", "gpu"):
        assert judged(perfect, "--gates", gate) == 0
        assert "MISSED" not in capsys.readouterr().out
        assert judged(Wrong(), "--gates", gate) == 1
        assert capsys.readouterr().out.count("MISSED") == 7
    assert judged(Wrong()) == 0  # no gates, nothing to miss


def test_one_missed_gate_fails_all(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    perfect = Perfect(make_groups(TINY_SCALE, seed=3))
    monkeypatch.setattr(evaluation, "gates", lambda name: {"format": 1.0, evaluation.INDUCTION: 1.01})
    assert judged(perfect, "--gates", "cpu") == 1


def test_rows_table_and_examples_are_written_of_one_generation(judged: Judged, tmp_path: Path) -> None:
    cases = make_groups(TINY_SCALE, seed=3)
    paths = [tmp_path / name for name in ("rows.json", "table.md", "said.jsonl")]
    options = [str(part) for pair in zip(("--json", "--markdown", "--examples"), paths, strict=True) for part in pair]
    wrong = Wrong("Ich weiß es nicht.")
    assert judged(wrong, "--gates", "cpu", *options) == 1
    rows = evaluation.evaluate(Wrong("Ich weiß es nicht."), scale=TINY_SCALE, seed=3, gate="cpu")
    assert json.loads(paths[0].read_text()) == [asdict(row) for row in rows]
    assert paths[1].read_text() == evaluation.markdown(rows)
    said = [json.loads(line) for line in paths[2].read_text(encoding="utf-8").splitlines()]
    expected = [(name, one.messages[-1].content, one.completion) for name, group in cases.items() for one in group]
    assert [(one["group"], one["asked"], one["expected"]) for one in said] == expected
    assert {one["said"] for one in said} == {"Ich weiß es nicht."}
    assert "weiß" in paths[2].read_text(encoding="utf-8")  # readable, not escaped
    assert len(wrong.asked) == len(set(wrong.asked))  # nothing is generated a second time
