"""Constrained tool calls and JSON: everything that can be written is valid, and what should be writable is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from chat_grammar_support import PADDED, accepts, allowed, compiler, ids_of, objects, pretty, schemas, validator, write
from chat_support import tiny_tokenizer
from quarterdeck.chat.grammars.grammar import Grammar, json_grammar, tool_calls_grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler
from quarterdeck.chat.messages import Message, ToolCall
from quarterdeck.chat.parser import parse
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.chat.template import render
from quarterdeck.errors import ChatError, InputError, MissingPackageError

SEARCH = {
    "name": "search",
    "parameters": {
        "type": "object",
        "properties": {"query": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 1}},
        "required": ["query"],
    },
}
SEND = {
    "name": "send-mail",
    "parameters": {"type": "object", "properties": {"to": {"type": "string", "format": "email"}}},
}
TOOLS = [SEARCH, SEND]

RANDOM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
"""Random schemas take their time, and some of them nothing satisfies."""


def satisfiable(make: Any, *args: Any, **options: Any) -> Grammar:
    """The grammar; another example if hypothesis made a schema that nothing satisfies."""
    try:
        grammar: Grammar = make(*args, **options)
        compiler().compile(grammar)
    except ChatError as error:
        assume("nothing satisfies" not in str(error) and "Unsatisfiable" not in str(error))
        raise
    return grammar


def calls_in(text: str, format: Any = "multi_step") -> list[tuple[str, Any]]:
    """Name and parameters of the calls, read without our own parser."""
    before, fence, rest = text.partition("```json\n")
    assert fence, text
    assert rest.endswith("\n```")
    assert before.splitlines()[-1].startswith("Action:")
    calls = [(call["tool_name"], call["parameters"]) for call in json.loads(rest[: -len("\n```")])]
    parsed = parse(text, format).tool_calls
    assert [(call.name, call.parameters) for call in parsed] == calls
    return calls


# ── 1,000 calls ───────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, parent=RANDOM)
@given(st.lists(objects(schemas), min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_thousand_calls_of_random_tools_are_valid(parameters: list[dict[str, Any]], seed: int) -> None:
    tools = [{"name": f"tool_{number}", "parameters": one} for number, one in enumerate(parameters)]
    grammar = satisfiable(tool_calls_grammar, tools, tool_choice="required", format="tool_use", max_calls=3)
    validators = {tool["name"]: validator({"additionalProperties": False, **tool["parameters"]}) for tool in tools}
    count = 0
    for number in range(40):
        text = write(grammar, seed + number, most=1500)
        for name, arguments in calls_in(text, "tool_use") if text is not None else ():
            count += 1
            validators[name].validate(arguments)
        if count >= 10:
            return
    raise AssertionError(f"only {count} calls came to their end: {json.dumps(tools)}")


@settings(max_examples=40, parent=RANDOM)
@given(schemas, st.integers(0, 2**32))
def test_json_of_random_schemas_is_valid_and_can_be_laid_out_as_the_prompt_does(schema: Any, seed: int) -> None:
    grammar = satisfiable(json_grammar, schema)
    values = validator(schema)
    for number in range(2):
        text = write(grammar, seed + number, most=600)
        if text is not None:
            value = json.loads(text)
            values.validate(value)
            assert accepts(grammar, text)
            if "e" not in numbers_of(value) and "<" not in pretty(value):
                assert accepts(grammar, pretty(value))
                assert accepts(grammar, json.dumps(value, ensure_ascii=False))


def numbers_of(value: Any) -> str:
    """The numbers in a value as Python writes them; with an exponent, where a bound allows decimals only."""
    if isinstance(value, dict | list):
        return "".join(map(numbers_of, value.values() if isinstance(value, dict) else value))
    return repr(value) if isinstance(value, float) else ""


# ── what a schema's grammar allows ────────────────────────────────────────────────────────────────────────────────

NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value", "next"],
}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
            {"value": 1, "next": {"value": 2, "next": None}},
            {"value": 1},
        ),
        ({"anyOf": [{"type": "integer"}, {"const": "é"}]}, "é", "e"),
        ({"enum": ["日本", "🚀", "a\nb", None, {"k": [1]}]}, {"k": [1]}, "日"),
        ({"type": "object"}, {}, {"a": 1}),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"x": 1, "y": 2}, {"x": "1"}),
        ({"type": "object", "additionalProperties": True}, {"x": [1, {"y": None}], "z": 1.5e-7}, []),
        ({"properties": {"a": {"type": "null"}}, "additionalProperties": {}}, {"a": None, "b": 3}, {"a": 1}),
        ({"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}}, {"z": 1}, {}),
        ({"type": "array"}, [1, "x", [None]], {}),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [1, "a", 2]),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}}, [1, None, None], [1, 2]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [1, 2, 3], [1]),
        ({"type": "array", "maxItems": 0}, [], [1]),
        ({"type": "array", "items": False}, [], [1]),
        ({"type": ["integer", "null"], "minimum": 5}, None, 4),
        ({"type": "integer", "exclusiveMinimum": 4, "maximum": 1000}, 1000, 4),
        ({"type": "number", "exclusiveMaximum": 0.25}, 0.2499, 0.25),
        ({"type": "number"}, -1.5e-7, "1"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, 'é"\n', "a"),
        ({"type": "string", "pattern": "^a.c$", "maxLength": 5}, "axc", "ac"),
        ({"type": "string", "pattern": "b", "minLength": 3}, "xbx", "xxx"),
        ({"type": "string", "format": "date"}, "2024-02-29", "2023-02-29"),
        ({"type": "string", "format": "date-time"}, "2024-02-29T23:59:59.5+01:00", "2024-02-29 23:59:59"),
        ({"type": "string", "format": "time"}, "00:00:00Z", "24:00:00Z"),
        ({"type": "string", "format": "email"}, "jo.doe@mail.example.org", "jo@doe"),
        ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 3}, "b": True}}]},
            {"a": 3, "b": "x"},
            {"a": 2},
        ),
        (
            {
                "properties": {"a": {"type": "null"}},
                "anyOf": [{"required": ["a"]}, {"properties": {"b": {"const": 1}}}],
            },
            {"a": None, "b": 1},
            {"c": 1},
        ),
        ({"$ref": "#/$defs/x", "maxLength": 2, "$defs": {"x": {"type": "string"}}}, "ab", "abc"),
        ({"enum": [1, 2, 3], "minimum": 2}, 3, 1),
        ({"const": {"a": [1, {"b": "c"}]}}, {"a": [1, {"b": "c"}]}, {"a": [1]}),
        (True, [None, {"a": 1}], None),
        ({"title": "x", "description": "y", "default": 0, "examples": [1], "$comment": "z", "type": "integer"}, 5, "5"),
    ],
)
def test_what_a_schema_allows(schema: Any, right: Any, wrong: Any) -> None:
    grammar = json_grammar(schema)
    for layout in (
        pretty(right),
        json.dumps(right, ensure_ascii=False),
        json.dumps(right, ensure_ascii=False, separators=(",", ":")),
    ):
        assert accepts(grammar, layout), layout
    if wrong is not None:
        assert not accepts(grammar, pretty(wrong))


@pytest.mark.parametrize(
    "keyword",
    "oneOf not if then else patternProperties propertyNames minProperties maxProperties multipleOf uniqueItems "
    "contains minContains dependentRequired dependentSchemas unevaluatedProperties contentEncoding $anchor $dynamicRef "
    "definitions nullable x-unknown".split(),
)
@pytest.mark.parametrize("place", ["root", "property", "$defs"])
def test_other_keywords_are_refused_by_name(keyword: str, place: str) -> None:
    one = {"type": "object", keyword: {}}
    schema = {"root": one, "property": {"properties": {"a": one}}, "$defs": {"$defs": {"a": one}, "type": "null"}}[
        place
    ]
    with pytest.raises(ChatError, match=rf"'{keyword.replace('$', '[$]')}', which a grammar cannot enforce"):
        json_grammar(schema)
    with pytest.raises(ChatError, match="the parameters of the tool f"):
        tool_calls_grammar([{"name": "f", "parameters": {**schema, "type": "object"}}])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, "'type'"),
        ({"minLength": -1}, "'minLength'"),
        ({"maxItems": True}, "'maxItems'"),
        ({"minimum": "3"}, "'minimum'"),
        ({"maximum": 10**400}, "'maximum'"),
        ({"format": "ipv4"}, "'format'"),
        ({"items": [{}]}, "prefixItems"),
        ({"required": "a"}, "'required'"),
        ({"enum": []}, "'enum'"),
        ({"enum": [float("nan")]}, "JSON"),
        ({"enum": ["\ud800"]}, "no JSON text"),
        ({"properties": {"\ud800": {}}}, "no JSON text"),
        ({"$ref": "https://example.org/schema"}, "out of it"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#/$defs", "$defs": {"type": "x"}}, "'[$]defs'"),
        ({"pattern": "[a"}, "cannot be enforced"),
        ({"pattern": "(?=a)b"}, "cannot be enforced"),
        ({"anyOf": []}, "'anyOf'"),
        ({"allOf": [{"$ref": "#"}]}, "back to itself"),
        ([], "an object"),
    ],
)
def test_schemas_that_cannot_be_right_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        compiler().compile(json_grammar(schema))


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "minimum": 0.2, "maximum": 0.8},
        {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "^a$", "minLength": 3},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "prefixItems": [False], "minItems": 1},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"allOf": [{"enum": [1]}, {"enum": [True]}]},
        {"anyOf": [False, {"type": "null", "enum": [1]}]},
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"required": ["b"]}]},
    ],
)
def test_schemas_that_nothing_satisfies_are_refused(schema: Any) -> None:
    with pytest.raises(ChatError, match=r"nothing satisfies|Unsatisfiable"):
        compiler().compile(json_grammar(schema))


def test_optional_properties_that_nothing_satisfies_are_left_out() -> None:
    grammar = json_grammar({"properties": {"a": False, "b": {"type": "null"}}})
    assert accepts(grammar, '{"b": null}')
    assert {write(grammar, seed) for seed in range(20)} >= {"{}"}


BOUNDED = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 20},
        "number": {"type": "number"},
        "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["text", "number", "list", "kind"],
}


def test_bounded_schemas_come_to_their_end_whatever_is_preferred() -> None:
    """Not at random: always the allowed token with the highest, or the lowest, id."""
    for choose in (max, min):
        matcher, count = compiler().compile(json_grammar(BOUNDED)), 0
        while not matcher.is_finished:
            matcher.consume(int(choose(allowed(matcher))))
            count += 1
            assert count < 3000


def test_json_mode_gives_objects() -> None:
    texts = [text for seed in range(60) if (text := write(json_grammar(), seed, most=400)) is not None]
    assert len(texts) > 5
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert not accepts(json_grammar(), "[]")


def test_deep_nesting_ends_in_json_mode() -> None:
    matcher = compiler().compile(json_grammar())
    opener = ids_of('{"a":')
    depth = 0
    while _takes(matcher, opener):
        depth += 1
        assert depth < 100
    assert depth >= 10


def _takes(matcher: Any, ids: list[int]) -> bool:
    try:
        for token in ids:
            matcher.consume(token)
    except InputError:
        return False
    return True


# ── tool calls ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", ["multi_step", "tool_use"])
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"search", "send-mail"}), ("REQUIRED", {"search", "send-mail"}), ("send-mail", {"send-mail"})],
)
def test_forced_calls_are_of_the_tools_that_may_be_called(format: Any, choice: str, names: set[str]) -> None:
    grammar = tool_calls_grammar(TOOLS, tool_choice=choice, format=format)
    called = {name for seed in range(12) for name, _ in calls_in(write(grammar, seed) or "", format)}
    assert called == names


def action(*calls: tuple[str, Any], before: str = "") -> str:
    listed = [{"tool_name": name, "parameters": parameters} for name, parameters in calls]
    return f"{before}Action: ```json\n{pretty(listed)}\n```"


ANSWER = ("directly_answer", {})


@pytest.mark.parametrize(
    ("text", "options", "is_right"),
    [
        (action(ANSWER), {}, True),
        (action(ANSWER), {"directly_answer": False}, False),
        (action(ANSWER), {"tool_choice": "required"}, False),
        (action(ANSWER), {"tool_choice": "search"}, False),
        (action(ANSWER), {"format": "tool_use"}, True),
        (action(("search", {"query": "x"})), {"tool_choice": "send-mail"}, False),
        (action(("search", {"count": 1})), {}, False),
        (action(("search", {"query": "x", "more": 1})), {}, False),
        (action(("find", {"query": "x"})), {}, False),
        (action(), {}, False),
        (action(("search", {"query": "x"}), ("send-mail", {})), {"tool_choice": "required"}, True),
        (action(("search", {"query": "x"}), ("send-mail", {})), {"max_calls": 1}, False),
        (action(*[("send-mail", {})] * 16), {}, True),
        (action(*[("send-mail", {})] * 17), {}, False),
        (action(ANSWER, before="\nPlan: I'll look.\n\nAnd see.\n"), {}, True),
        (action(("send-mail", {}), before="Plan: I'll look.\nAct\n"), {"tool_choice": "required"}, True),
        (action(("send-mail", {}), before="\nReflection: So.\n"), {"tool_choice": "required"}, True),
        (action(("send-mail", {}), before="Plan: x\n" * 2), {"tool_choice": "required"}, False),
        (action(("send-mail", {}), before="Plan: x\n"), {"tool_choice": "required", "format": "tool_use"}, False),
        (action(("send-mail", {}), before="Plan: " + "x" * 900 + "\n"), {}, True),
        (action(("send-mail", {}), before="Plan: " + "x" * 900 + "\n"), {"tool_choice": "required"}, False),
        ("Just a text.\nIn action: lines.", {}, True),
        ("Reflection: fine.\nGrounded answer: <co: 1>x</co: 1>", {}, True),
        ("Just a text.", {"tool_choice": "required"}, False),
        ("Just a text.", {"format": "tool_use"}, False),
        ("Just a text.", {"format": "tool_use", "directly_answer": False}, True),
        ("Text\nAction: none", {}, False),
        (" \n Action: none", {}, False),
        ("Text Action: none", {}, True),
        ("Actio", {}, True),
    ],
)
def test_what_may_be_written_instead_of_calls_and_around_them(text: str, options: Any, is_right: bool) -> None:
    assert accepts(tool_calls_grammar(TOOLS, **options), text) == is_right


def test_text_that_is_no_call_has_no_call_in_it() -> None:
    grammar = tool_calls_grammar(TOOLS)
    for seed in range(8):
        text = write(grammar, seed, most=1500)
        if text is not None and "```json\n" not in text:
            assert parse(text, "multi_step").tool_calls == ()


@settings(max_examples=20, parent=RANDOM)
@given(
    st.lists(objects(schemas), min_size=1, max_size=2),
    st.integers(0, 2**32),
    st.sampled_from(["", "Plan it.\nThen do."]),
)
def test_what_the_template_writes_of_earlier_calls_is_in_the_language(parameters: Any, seed: int, plan: str) -> None:
    """Written by the grammar, parsed, rendered as history, cut out of the prompt, read by the grammar again."""
    tools = [{"name": f"tool_{number}", "parameters": one} for number, one in enumerate(parameters)]
    grammar = satisfiable(tool_calls_grammar, tools, tool_choice="required", format="tool_use", max_calls=2)
    text = write(grammar, seed, most=500)
    assume(text is not None)
    called = calls_in(text or "", "tool_use")
    calls = tuple(ToolCall(str(number), name, json.dumps(value)) for number, (name, value) in enumerate(called))
    assume("e" not in "".join(numbers_of(call.parameters) for call in calls))
    message = Message("assistant", tool_plan=plan, tool_calls=calls)
    prompt = render([Message("user", "Hi"), message], tools=tools).text
    written = (
        prompt.split("<|CHATBOT_TOKEN|>")[-2]
        .removesuffix("<|START_OF_TURN_TOKEN|>")
        .removesuffix("<|END_OF_TURN_TOKEN|>")
    )
    assert written.endswith("\n```")
    assume("<" not in written)  # which a grammar lets models write as an escape alone
    for options in ({"tool_choice": "required"}, {}):
        assert accepts(tool_calls_grammar(tools, **options), written)


def test_published_outputs_are_in_the_language(shared_data: Path) -> None:
    tools = [
        {"name": name, "parameters": {"type": "object", "additionalProperties": True}} for name in ("tool1", "tool2")
    ]
    vectors = json.loads((shared_data / "template_vectors.json").read_text(encoding="utf-8"))["output_parsing_vectors"]
    texts = [vector["text"].removesuffix("\n") for vector in vectors if vector["id"].startswith("parse_actions_")]
    texts = [text for text in texts if "Action:" in text]
    assert len(texts) == 3
    for text in texts:
        for options in ({}, {"tool_choice": "required"}):
            assert accepts(tool_calls_grammar(tools, **options), text)


@pytest.mark.parametrize(
    ("tools", "options", "message"),
    [
        ([], {}, "needs tools"),
        (TOOLS, {"tool_choice": "find"}, "search, send-mail"),
        (TOOLS, {"tool_choice": "none"}, "needs no grammar"),
        (TOOLS, {"format": "rag"}, "multi_step or tool_use"),
        (TOOLS, {"max_calls": 0}, "max_calls is 0"),
        ([SEARCH, SEARCH], {}, "unique"),
        (
            [{"name": "f", "parameters": {"type": "object", "required": ["a"]}}],
            {},
            "nothing satisfies the parameters of the tool f",
        ),
    ],
)
def test_requests_that_cannot_be_right_are_refused(tools: Any, options: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        tool_calls_grammar(tools, **options)


# ── the matcher ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_control_tokens_and_ids_without_a_token_never_come_next() -> None:
    """Not at the start, not inside of strings and text, and not where the grammar spells one."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    controls = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens()} - {end}
    spelled = {"enum": ["<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "e\u0301"]}
    for grammar in (json_grammar(), tool_calls_grammar(TOOLS), json_grammar(spelled)):
        matcher = compiler().compile(grammar)
        for seed in range(60):
            choices = {int(one) for one in allowed(matcher)}
            assert choices
            assert not choices & controls
            assert max(choices) < len(tokenizer)
            assert (end in choices) == matcher.is_complete
            if matcher.is_finished:
                break
            matcher.consume(sorted(choices - {end} or {end})[seed * 7 % len(choices - {end} or {end})])
    assert compiler().vocab_size == len(tokenizer) + PADDED
    texts = {write(json_grammar(spelled), seed) for seed in range(30)}
    assert texts == {json.dumps(value, ensure_ascii=False).replace("<", "\\u003c") for value in spelled["enum"]}


def test_patterns_leave_markup_out_and_keep_all_else() -> None:
    """A pattern writes ``<`` as it is, but never a control token or a citation tag."""
    grammar = json_grammar({"type": "string", "pattern": "^(<.{0,20}>|<<<PA<P|<c</co<cod)$", "maxLength": 24})
    for text in ("<b>", "</code>", "<PADS>", "<<P>", "<co >", "<|END_OF_TURN_TOKEN>", "<<<PA<P", "<c</co<cod"):
        assert accepts(grammar, f'"{text}"'), text
    for text in ("<PAD>", "<<P<PAD>", "<co: 0>", "</co>", "<<EOS_TOKEN>x>", "<co:>", "<a</co: 1>"):
        assert not accepts(grammar, f'"{text}"'), text


def test_after_the_end_only_end_tokens_come() -> None:
    tokenizer = tiny_tokenizer()
    matcher = compiler().compile(json_grammar({"const": 1}))
    end = tokenizer.eos_token_id
    with pytest.raises(InputError, match="not complete"):
        matcher.consume(end)
    matcher.consume(ids_of("1")[0])
    assert matcher.is_complete
    assert list(allowed(matcher)) == [end]
    matcher.consume(end)
    assert matcher.is_finished
    assert list(allowed(matcher)) == [end]
    matcher.consume(3)
    assert list(allowed(matcher)) == [end]


def test_a_token_that_may_not_come_is_refused() -> None:
    matcher = compiler().compile(json_grammar({"const": 1}))
    with pytest.raises(InputError, match=r"cannot come next under the schema of response_format"):
        matcher.consume(ids_of("x")[0])


def test_matchers_of_one_grammar_are_independent_and_copies_are_too() -> None:
    grammar = json_grammar({"enum": ["ab", "cd"]})
    one, other = compiler().compile(grammar), compiler().compile(grammar)
    for token in ids_of('"a'):
        one.consume(token)
    copy = one.copy()
    copy.consume(ids_of("b")[0])
    rest = ids_of('b"')
    assert one.accepts(rest)
    assert other.accepts(ids_of('"cd"'))
    assert not copy.accepts(rest)


def test_several_end_tokens_may_be_given() -> None:
    own = GrammarCompiler(tiny_tokenizer(), end_token_ids=[6, tiny_tokenizer().eos_token_id])
    matcher = own.compile(json_grammar({"const": 1}))
    matcher.consume(ids_of("1")[0])
    assert set(allowed(matcher)) == {6, tiny_tokenizer().eos_token_id}
    matcher.consume(6)
    assert matcher.is_finished
    with pytest.raises(InputError, match="end tokens within the vocabulary"):
        GrammarCompiler(tiny_tokenizer(), end_token_ids=[10**6])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'quarterdeck\[grammar\]'"):
        GrammarCompiler(tiny_tokenizer())


def test_importing_grammars_imports_neither_the_package_nor_torch() -> None:
    code = "import quarterdeck.chat.grammars.grammar, quarterdeck.chat.grammars.matcher, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"llguidance", "torch", "tokenizers", "jsonschema"} & set(loaded)
