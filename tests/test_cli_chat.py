"""``quarterdeck chat``: the session, its commands, interruption, and the reuse of what the model has read."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quarterdeck import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat import answer, render
from quarterdeck.chat.template import Prompt
from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.conversation import Conversation
from quarterdeck.cli.flags import SETTABLE, parse_settings
from quarterdeck.cli.main import main
from quarterdeck.cli.session import Session
from quarterdeck.cli.terminal import PlainTerminal
from quarterdeck.errors import InputError
from quarterdeck.generation.prefix import PrefixCache

pytest_plugins = ["checkpoint_fixtures"]

QUESTIONS = ("Where do penguins live?", "How tall are they?", "Hi", "And 1 2 3?")


@pytest.fixture
def answerer(checkpoint: Path) -> Answerer:
    """A model of one's own, greedy, 12 tokens at most."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.generation_config.update(max_new_tokens=12)
    return Answerer(model, AutoTokenizer.from_pretrained(checkpoint), model.generation_config)


def ask(conversation: Conversation, text: str) -> str:
    return "".join(conversation.ask(text))


def session(
    answerer: Answerer, *lines: str, terminal: type[PlainTerminal] = PlainTerminal
) -> tuple[Conversation, str, str]:
    """Runs a session over the lines; gives the conversation, the output, the errors."""
    conversation = Conversation(answerer)
    output, errors = io.StringIO(), io.StringIO()
    Session(conversation, terminal(io.StringIO("\n".join(lines)), output, errors)).run()
    return conversation, output.getvalue(), errors.getvalue()


def fed_lengths(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list of how many positions each run of the model reads, filled as it runs."""
    lengths: list[int] = []
    forward = answerer.model.model.forward

    def counting(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(answerer.model.model, "forward", counting)
    return lengths


# -- conversations ---------------------------------------------------------------------------------------


def test_answers_with_and_without_reuse_are_equal(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = fed_lengths(answerer, monkeypatch)
    fresh = Conversation(answerer, "Answer briefly.", reuse=False)
    expected = [ask(fresh, question) for question in QUESTIONS]
    read_fresh = sum(lengths)
    lengths.clear()
    reusing = Conversation(answerer, "Answer briefly.")
    assert [ask(reusing, question) for question in QUESTIONS] == expected
    assert reusing.messages == fresh.messages
    assert sum(lengths) < read_fresh - 50


def test_reuse_after_clear_and_after_other_histories(answerer: Answerer) -> None:
    conversation = Conversation(answerer)
    first = [ask(conversation, question) for question in QUESTIONS[:2]]
    conversation.clear()
    assert conversation.messages == []
    assert [ask(conversation, question) for question in QUESTIONS[:2]] == first
    conversation.messages[1]["content"] = "Something else was said."
    changed = ask(conversation, "Hi")
    other = Conversation(answerer, reuse=False)
    other.messages = [dict(message) for message in conversation.messages[:-2]]
    assert ask(other, "Hi") == changed


@pytest.mark.parametrize("with_answers", [True, False])
def test_tokens_of_an_answer_are_read_again_unless_they_are_kept(answerer: Answerer, with_answers: bool) -> None:
    answerer.settings.update(min_new_tokens=12)
    prefix, prompt = PrefixCache(with_answers=with_answers), render(QUESTIONS[0])
    said = "".join(answerer.raw(prompt, prefix=prefix))
    text = answerer.raw(Prompt((*prompt.parts, ("text", said + " And")), "default"), prefix=prefix)
    assert next(iter(text))
    text.close()
    assert (text.usage.cached_tokens > answerer.count(prompt)) == with_answers
    assert text.usage.cached_tokens >= answerer.count(prompt) - 1
    again = answerer.raw(prompt, prefix=prefix)
    assert "".join(again) == said
    assert (again.usage.cached_tokens > 0) == with_answers  # what is left early is only kept with answers


def test_the_whole_conversation_is_rendered(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(answerer, "Be brief.")
    answers = [ask(conversation, question) for question in QUESTIONS[:2]]
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": QUESTIONS[1]},
        {"role": "assistant", "content": answers[1]},
    ]
    prompt = render(conversation.messages[:-1])
    expected = answerer.tokenizer.apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
    assert prompt.token_ids(answerer.tokenizer) == expected
    assert "".join(answerer.raw(prompt)).strip() == answers[1]
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_stop_strings_of_the_settings_end_an_answer(answerer: Answerer) -> None:
    whole = answerer.raw(render(QUESTIONS[0]))
    said = "".join(whole)
    assert whole.finish_reason == "MAX_TOKENS"
    answerer.settings.update(stop_strings=[said[4:6]])
    stopped = answerer.raw(render(QUESTIONS[0]))
    text = "".join(stopped)
    assert stopped.finish_reason == "STOP_SEQUENCE"
    assert said.startswith(text)
    assert text.rfind(said[4:6]) == said.index(said[4:6])
    assert stopped.usage.output_tokens < whole.usage.output_tokens == 12
    assert answer(answerer.raw, QUESTIONS[0]).finish_reason == "STOP_SEQUENCE"
    answerer.settings.update(stop_strings=None, max_time=1e-9)
    late = answerer.raw(render(QUESTIONS[0]))
    assert said.startswith("".join(late))
    assert (late.finish_reason, late.usage.output_tokens) == ("MAX_TOKENS", 1)


def interrupt_after(answerer: Answerer, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a run of the model, between its layers."""
    layer = answerer.model.model.layers[1]
    forward, count = layer.forward, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > runs:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", interrupted)


def test_an_interrupted_answer_stays_as_far_as_it_came(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(answerer)
    whole = ask(conversation, QUESTIONS[0])
    conversation.clear()
    with monkeypatch.context() as patch:
        interrupt_after(answerer, 8, patch)
        shown, output, errors = session(answerer, QUESTIONS[0])
    partial = output.removesuffix("\n")
    assert 0 < len(partial) < len(whole)
    assert whole.startswith(partial)
    assert errors == ""
    assert shown.messages[-1] == {"role": "assistant", "content": partial}
    fresh = Conversation(answerer, reuse=False)
    fresh.messages = [dict(message) for message in shown.messages]
    assert ask(shown, "Go on") == ask(fresh, "Go on")


def test_a_question_without_any_answer_is_forgotten(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(answerer, 0, patch)
        conversation, output, _ = session(answerer, QUESTIONS[0])
    assert output == "\n"
    assert conversation.messages == []
    assert ask(conversation, QUESTIONS[0]) == ask(Conversation(answerer), QUESTIONS[0])


def test_an_answer_left_by_its_reader_stays_as_far_as_it_came(answerer: Answerer) -> None:
    conversation = Conversation(answerer)
    pieces = conversation.ask(QUESTIONS[0])
    first = next(pieces)
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": first}
    assert ask(conversation, "Go on")


# -- the session -----------------------------------------------------------------------------------------


def test_each_line_is_answered_and_nothing_else_is_printed(answerer: Answerer) -> None:
    expected = Conversation(answerer, reuse=False)
    answers = [ask(expected, question) for question in QUESTIONS[:2]]
    conversation, output, errors = session(answerer, QUESTIONS[0], "", "   ", f"  {QUESTIONS[1]} ")
    assert output == "".join(answer + "\n" for answer in answers)
    assert errors == ""
    assert conversation.messages == expected.messages


def test_exit_ends_the_session(answerer: Answerer) -> None:
    conversation, output, _ = session(answerer, "!exit", "Hi")
    assert (conversation.messages, output) == ([], "")


@pytest.mark.parametrize("line", ["!help", "!helpp", "!"])
def test_help_and_unknown_commands_show_the_help(answerer: Answerer, line: str) -> None:
    conversation, output, errors = session(answerer, line)
    for command in ("!help", "!clear", "!save", "!set", "!source", "!exit"):
        assert command in output
    assert bool(errors) == (line != "!help")
    assert conversation.messages == []


def test_clear_forgets(answerer: Answerer) -> None:
    conversation, output, _ = session(answerer, "Hi", "!clear", "Hi")
    lines = output.split("the conversation is forgotten\n")
    assert lines[0] == lines[1]
    assert len(conversation.messages) == 2


def test_save_writes_the_messages(answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    conversation, output, errors = session(
        answerer, "Hi", "!save 'my chat.json'", "Bye", "!save 'my chat.json'", "!save"
    )
    assert errors == ""
    assert "saved 2 messages to my chat.json" in output
    assert json.loads((tmp_path / "my chat.json").read_text()) == conversation.messages
    (other,) = tmp_path.glob("quarterdeck-chat-*.json")
    assert json.loads(other.read_text()) == conversation.messages


def test_save_spares_files_of_others(answerer: Answerer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    lines = (f"!save {tmp_path}/notes.txt", f"!save {tmp_path}/missing/x", "!save a b", "!save 'open")
    _, output, errors = session(answerer, *lines, "Hi")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(errors.splitlines()) == 4
    assert len(output.splitlines()) >= 1


def test_set_changes_and_shows_settings(answerer: Answerer) -> None:
    conversation, output, errors = session(
        answerer, "!set max_new_tokens=3 temperature=0.5", "!set top_k=5 do_sample=False"
    )
    assert errors == ""
    assert output.count("max_new_tokens=3") == 2
    assert "do_sample=True" in output
    settings = conversation.settings
    assert {name: settings[name] for name in ("max_new_tokens", "temperature", "top_k", "do_sample")} == {
        "max_new_tokens": 3,
        "temperature": 0.5,
        "top_k": 5,
        "do_sample": False,
    }
    session(answerer, "!set temperature=0")
    assert answerer.settings.do_sample is False
    text = answerer.raw(render("Hi"))
    assert "".join(text)
    assert text.usage.output_tokens == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("!set temperatur=1", "temperatur"),
        ("!set num_return_sequences=2", "num_return_sequences"),
        ("!set temperature=-1", "temperature"),
        ("!set top_p=2", "top_p"),
        ("!set max_new_tokens=many", "max_new_tokens"),
        ("!set temperature", "name=value"),
        ("!set temperature=0.5 top_p=7", "top_p"),
        ("!set stop_strings=[a]", "stop_strings=[a] is not valid JSON"),
        ("!set stop_strings=['a']", "is not valid JSON"),
        ('!set stop_strings="a', "is not valid JSON"),
        ("!set stop_strings='a", "no closing quote"),
        ('!set stop_strings="a"top_k=1', "goes on after its value"),
    ],
)
def test_set_refuses_what_cannot_be_right(answerer: Answerer, line: str, message: str) -> None:
    before = answerer.settings.to_dict()
    _, output, errors = session(answerer, line, "Hi")
    assert message in errors
    assert answerer.settings.to_dict() == before
    assert output.strip()


def test_settings_are_parsed_as_people_write_them() -> None:
    text = 'a=1 b=0.5  c=true d=False e=None f=text g=["x"] h= i=a=b'
    assert parse_settings(text) == {
        "a": 1, "b": 0.5, "c": True, "d": False, "e": None, "f": "text", "g": ["x"], "h": "", "i": "a=b",
    }  # fmt: skip
    with pytest.raises(InputError):
        parse_settings("=1")
    quoted = parse_settings(' a=["x y", "z=\\"1"] b="s t"\tc=\'u v\' d={"k": 1}')
    assert quoted == {"a": ["x y", 'z="1'], "b": "s t", "c": "u v", "d": {"k": 1}}


def test_quotes_reach_the_settings(answerer: Answerer) -> None:
    session(answerer, '!set stop_strings=["a b","c"] top_k=3')
    assert (answerer.settings.stop_strings, answerer.settings.top_k) == (["a b", "c"], 3)
    session(answerer, "!set stop_strings=None")
    assert answerer.settings.stop_strings is None


def test_what_can_be_set_exists(answerer: Answerer) -> None:
    assert set(SETTABLE) <= set(answerer.settings.to_dict())


def test_errors_do_not_end_the_session(answerer: Answerer) -> None:
    long = "penguin " * 2000
    conversation, output, errors = session(answerer, long, "Hi")
    assert "context" in errors
    assert output.strip()
    assert conversation.messages[0]["content"] == "Hi"


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def chat(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(lines: str, *options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", str(checkpoint), "--max-tokens", "8", *options]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def test_the_command_draws_unless_told_otherwise(chat: Callable[..., str], answerer: Answerer) -> None:
    greedy = chat("Hi\n", "--temperature", "0")
    assert greedy == chat("Hi\n", "--temperature", "0")
    assert chat("Hi\n", "--seed", "1") == chat("Hi\n", "--seed", "1")
    hot = [chat("Hi\n", "--temperature", "3", "--top-p", "1", "--seed", seed) for seed in ("1", "2")]
    assert len({greedy, *hot}) == 3
    answerer.settings.update(max_new_tokens=8)
    assert greedy == ask(Conversation(answerer), "Hi") + "\n"


def test_the_command_s_options_reach_the_session(chat: Callable[..., str], answerer: Answerer) -> None:
    settings = chat(
        "!set\n", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.5", "--attn_implementation", "eager"
    )
    for line in ("max_new_tokens=8", "do_sample=True", "temperature=0.7", "top_k=9", "top_p=0.5"):
        assert line in settings.splitlines()
    settings = chat("!set\n").splitlines()
    assert {"temperature=0.3", "top_p=0.75", "top_k=0"} <= set(settings)
    answerer.settings.update(max_new_tokens=8)
    with_system = chat("Hi", "--system", "Be brief.", "--temperature", "0", "--dtype", "float32", "--device", "cpu")
    assert with_system == ask(Conversation(answerer, "Be brief."), "Hi") + "\n"


def test_a_model_without_template_answers_as_with_it(
    checkpoint_without_template: Path,
    chat: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n"
    expected = chat(lines, "--temperature", "0")
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", str(checkpoint_without_template), "--max-tokens", "8", "--temperature", "0"]) == 0
    assert capsys.readouterr() == (expected, "")
