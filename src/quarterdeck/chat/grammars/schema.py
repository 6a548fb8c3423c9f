"""A JSON Schema as rules of a grammar: every text of it is JSON that the schema accepts.

A grammar may say less than its schema, never more. What it leaves out, so that everything bounded comes to its end and
every text means the same to everybody who reads it:

    order           properties come in the order of the schema, additional ones last
    closed          objects have no other properties unless ``additionalProperties`` is given; tuples no other items
                    unless ``items`` is given
    white space     at most one space after a colon, one space or a line break with indentation elsewhere
    strings         characters as they are, escapes only where JSON needs them, and for ``<``: what takes control tokens
                    and citation tags out of an answer never finds one in JSON
    numbers         16 digits before and after the point, unless a bound needs more
    no type given   the type that the other keywords are about; with none of those, any value, 16 levels deep
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from quarterdeck.chat.grammars.formats import FORMATS
from quarterdeck.chat.grammars.numbers import limits, number_terminal
from quarterdeck.chat.grammars.rules import Inline, Literal, Ref, Repeat, Rules, Symbol, Terminal, quoted
from quarterdeck.chat.grammars.schema_check import Schema, accepts, check_schema, resolve
from quarterdeck.chat.grammars.schema_merge import plain, together
from quarterdeck.chat.grammars.text import without
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.errors import ChatError

_CHARACTER = r'([^"\\<\x00-\x1f]|\\(["\\bfnrt]|u00(0[0-7bef]|1[0-9a-f]|3c)))'
"""One character of a JSON string, in the one way in which it can be written here."""

_STRING = f'"{_CHARACTER}*"'
_LINE_BREAK = "/ |\\n {0,128}/"
_TAGS = ("<co:", "<co>", "</co:", "</co>")

_DEPTH = 16
_MOST_CHARACTERS = 1_000_000
_MOST_RULES = 20_000
_MOST_VARIANTS = 100

_KEYWORDS_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def gap(rules: Rules) -> Ref:
    """White space where a line may break."""
    return Ref("gap") if "gap" in rules else rules.add("gap", [Terminal(_LINE_BREAK)], [])


def after_colon(rules: Rules) -> Ref:
    """White space between a name and its value."""
    return Ref("after_colon") if "after_colon" in rules else rules.add("after_colon", [Literal(" ")], [])


def json_text(value: Any, what: str) -> str:
    """The JSON of a value in one line, with ``<`` as an escape.

    Raises:
        ChatError: it has none that is Unicode text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ChatError(f"{what} holds {value!r}, which has no JSON text: {error}") from error
    return text.replace("<", "\\u003c")


class SchemaRules:
    """Adds the rules of one schema to a grammar.

    Args:
        rules: the grammar.
        root: the whole schema, in which references are looked up.
        what: it is, for messages.

    Raises:
        ChatError: the schema says something that a grammar cannot enforce.
    """

    def __init__(self, rules: Rules, root: Schema, what: str) -> None:
        check_schema(root, what)
        self._rules = rules
        self._root = root
        self._what = what
        self._known: dict[str, Ref] = {}
        self._todo: list[tuple[str, Schema]] = []

    def add(self, schema: Schema) -> Ref:
        """Whatever a schema, the root or a part of it, accepts; with all rules that it takes."""
        found = self._symbol(schema)
        while self._todo:
            if len(self._rules) > _MOST_RULES:
                raise ChatError(f"{self._what} is too large for a grammar: it needs more than {_MOST_RULES} rules")
            name, one = self._todo.pop()
            self._rules.add(name, *self._alternatives(one))
        return found

    def _symbol(self, schema: Schema) -> Ref:
        """The rule of a schema, which is made later if it is new: so schemas may contain themselves."""
        key = json.dumps(schema)
        if key not in self._known:
            self._known[key] = Ref(self._rules.fresh("value"))
            self._todo.append((self._known[key].name, schema))
        return self._known[key]

    def _alternatives(self, schema: Schema) -> list[Sequence[Symbol]]:
        if isinstance(schema, bool):
            return [[self._anything(0)]] if schema else []
        alone = plain(schema)
        if set(alone) == {"$ref"}:
            return [[self._symbol(resolve(schema["$ref"], self._root, self._what))]]
        if set(alone) == {"anyOf"}:
            return [[self._symbol(one)] for one in schema["anyOf"]]
        found: list[Sequence[Symbol]] = []
        for variant in self._variants(schema, ()):
            found += self._of_variant(variant)
        return found

    def _variants(self, schema: Schema, seen: tuple[str, ...]) -> list[dict[str, Any]]:
        """The schema as alternatives without references, ``allOf`` and ``anyOf``."""
        if isinstance(schema, bool):
            return [{}] if schema else []
        reference = schema.get("$ref")
        if reference in seen or len(seen) > _DEPTH:
            raise ChatError(f"the $ref {reference!r} in {self._what} leads back to itself, or {_DEPTH} references on")
        own = plain(schema)
        factors = [[{key: own[key] for key in own if key not in ("$ref", "allOf", "anyOf")}]]
        if reference is not None:
            factors.append(self._variants(resolve(reference, self._root, self._what), (*seen, reference)))
        factors += [self._variants(one, seen) for one in schema.get("allOf", ())]
        if "anyOf" in schema:
            factors.append([variant for one in schema["anyOf"] for variant in self._variants(one, seen)])
        count = 1
        for factor in factors:
            count *= len(factor)
        if count > _MOST_VARIANTS:
            raise ChatError(f"anyOf and allOf in {self._what} combine in {count} ways, more than {_MOST_VARIANTS}")
        merged = (together(combination) for combination in product(*factors))
        return [variant for variant in merged if variant is not None]

    def _of_variant(self, schema: dict[str, Any]) -> list[Sequence[Symbol]]:
        if "enum" in schema:
            return [self._constant(value) for value in self._listed(schema)]
        found: list[Sequence[Symbol]] = []
        types = self._types(schema)
        for name in types:
            if name != "integer" or "number" not in types:
                found += self._of_type(name, schema)
        return found

    def _types(self, schema: dict[str, Any]) -> Sequence[str]:
        if "type" in schema:
            return tuple(schema["type"])
        about = [name for name, keywords in _KEYWORDS_OF_TYPE.items() if any(key in schema for key in keywords)]
        return about or ("anything",)

    def _of_type(self, name: str, schema: dict[str, Any]) -> list[Sequence[Symbol]]:
        match name:
            case "anything":
                return [[self._anything(0)]]
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._string(schema)
            case "boolean":
                return [[Literal("true")], [Literal("false")]]
            case "null":
                return [[Literal("null")]]
        is_whole = name == "integer"
        terminal = number_terminal(*limits(schema, whole=is_whole), whole=is_whole)
        return [] if terminal is None else [[Terminal(terminal)]]

    # ── constants ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _listed(self, schema: dict[str, Any]) -> Iterator[Any]:
        """The values of an enum that satisfy what else the schema says."""
        conditions = [{"type": list(schema["type"])}] if "type" in schema else []
        conditions += [{"pattern": one} for one in schema.get("pattern", ())]
        conditions += [{"format": one} for one in schema.get("format", ())]
        conditions.append({k: v for k, v in schema.items() if k not in ("enum", "type", "pattern", "format")})
        try:
            yield from [one for one in schema["enum"] if accepts({"allOf": conditions}, one, self._root, self._what)]
        except RecursionError as error:
            raise ChatError(f"an enum in {self._what} cannot be checked: its schema refers to itself") from error

    def _constant(self, value: Any) -> list[Symbol]:
        """The JSON of a value; where it is an object or an array, laid out in lines or not."""
        if isinstance(value, Mapping):
            members = [[*self._name(name), *self._constant(one)] for name, one in value.items()]
            return self._enclosed("{", members, "}")
        if isinstance(value, (list, tuple)):
            return self._enclosed("[", [self._constant(one) for one in value], "]")
        return [Literal(json_text(value, self._what))]

    def _enclosed(self, opener: str, members: list[list[Symbol]], closer: str) -> list[Symbol]:
        if not members:
            return [Literal(opener + closer)]
        symbols: list[Symbol] = [Literal(opener), gap(self._rules), *members[0]]
        for member in members[1:]:
            symbols += [Literal(","), gap(self._rules), *member]
        return [*symbols, gap(self._rules), Literal(closer)]

    def _name(self, name: str) -> list[Symbol]:
        return [Literal(json_text(name, self._what)), Literal(":"), after_colon(self._rules)]

    # ── strings ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _string(self, schema: dict[str, Any]) -> list[Sequence[Symbol]]:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and least > most:
            return []
        if least > _MOST_CHARACTERS:
            raise ChatError(f"minLength in {self._what} is {least}; a grammar can ask for {_MOST_CHARACTERS} at most")
        formats, patterns = schema.get("format", ()), schema.get("pattern", ())
        if not patterns and len(formats) <= 1 and (not formats or (least == 0 and most is None)):
            return [[Terminal(_string_terminal(least, most, formats))]]
        # strings with a pattern are as the pattern has them, but without markup
        texts = [*patterns, *([f"^{without((*control_tokens(), *_TAGS))}$"] if patterns else [])]
        texts += [f"^(?:{FORMATS[name]})$" for name in formats]
        leaf: dict[str, Any] = {"type": "string", "allOf": [{"pattern": text} for text in texts], "minLength": least}
        if most is not None:
            leaf["maxLength"] = min(most, _MOST_CHARACTERS)
        return [[Inline(f"%json {json.dumps(leaf)}")]]

    # ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _array(self, schema: dict[str, Any]) -> list[Sequence[Symbol]]:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        prefix: Sequence[Schema] = schema.get("prefixItems", ())
        others: Schema = schema.get("items", not prefix or least > len(prefix))
        if most is not None:
            prefix = prefix[:most]
            if least > most:
                return []
        rest = (max(0, least - len(prefix)), None if most is None else most - len(prefix))
        found: list[Sequence[Symbol]] = [[Literal("[]")]] if least == 0 else []
        if most != 0:
            items = self._items(prefix, others, least, rest)
            found.append([Literal("["), gap(self._rules), items, gap(self._rules), Literal("]")])
        return found

    def _items(self, prefix: Sequence[Schema], others: Schema, least: int, rest: tuple[int, int | None]) -> Ref:
        """One item or more."""
        comma: tuple[Symbol, ...] = (Literal(","), gap(self._rules))
        item: tuple[Symbol, ...] = () if rest[1] == 0 or others is False else (self._symbol(others),)
        if not prefix:
            fewer = max(0, rest[0] - 1), None if rest[1] is None else rest[1] - 1
            return self._rules.add(
                self._rules.fresh("items"), *([[*item, Repeat((*comma, *item), *fewer)]] if item else [])
            )
        following = self._rules.fresh("items")
        if item or not rest[0]:
            self._rules.add(following, [Repeat((*comma, *item), *rest)] if item else [])
        for place in reversed(range(1, len(prefix))):
            name = self._rules.fresh("items")
            self._rules.add(name, [*comma, self._symbol(prefix[place]), Ref(following)])
            if place >= least:
                self._rules.add(name, [])
            following = name
        return self._rules.add(self._rules.fresh("items"), [self._symbol(prefix[0]), Ref(following)])

    # ── objects ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _object(self, schema: dict[str, Any]) -> list[Sequence[Symbol]]:
        others: Schema = schema.get("additionalProperties", False)
        required = tuple(dict.fromkeys(schema.get("required", ())))
        properties: dict[str, Schema] = dict(schema.get("properties", {}))
        properties.update({name: others for name in required if name not in properties})
        members = self._members(properties, required, others)
        found: list[Sequence[Symbol]] = [] if required else [[Literal("{}")]]
        found.append([Literal("{"), gap(self._rules), members, gap(self._rules), Literal("}")])
        return found

    def _members(self, properties: dict[str, Schema], required: Sequence[str], others: Schema) -> Ref:
        """One property or more. For each property two rules: with members before it, so that a comma is due, or not."""
        rules = self._rules
        comma: tuple[Symbol, ...] = (Literal(","), gap(rules))
        later, first = rules.fresh("later"), rules.fresh("first")
        rules.add(later, [])
        if others is not False:
            other = self._other_member(properties, others)
            rules.add(later, [Repeat((*comma, other), 1)])
            rules.add(first, [other, Repeat((*comma, other))])
        for name in reversed(properties):
            member = [*self._name(name), self._symbol(properties[name])]
            now_later, now_first = rules.fresh("later"), rules.fresh("first")
            rules.add(now_later, [*comma, *member, Ref(later)])
            rules.add(now_first, [*member, Ref(later)])
            if name not in required:
                rules.add(now_later, [Ref(later)])
                rules.add(now_first, [Ref(first)])
            later, first = now_later, now_first
        return Ref(first)

    def _other_member(self, properties: dict[str, Schema], others: Schema) -> Ref:
        name = f"/{_STRING}/"
        if properties:
            taken = " | ".join(quoted(json_text(name, self._what)) for name in properties)
            name = f"{name} & ~({taken})"
        value = self._symbol(others)
        return self._rules.add(
            self._rules.fresh("other"), [Terminal(name), Literal(":"), after_colon(self._rules), value]
        )

    # ── anything ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _anything(self, depth: int) -> Ref:
        name = f"anything_{depth}"
        if name in self._rules:
            return Ref(name)
        scalars = [value for kind in ("string", "number", "boolean", "null") for value in self._of_type(kind, {})]
        self._rules.add(name, *scalars)
        if depth < _DEPTH:
            inner = self._anything(depth + 1)
            comma: tuple[Symbol, ...] = (Literal(","), gap(self._rules))
            member: list[Symbol] = [Terminal(f"/{_STRING}/"), Literal(":"), after_colon(self._rules), inner]
            item = self._rules.add(f"member_{depth}", member)
            for opener, one, closer in (("{", item, "}"), ("[", inner, "]")):
                lines: Sequence[Symbol] = (gap(self._rules), one, Repeat((*comma, one)), gap(self._rules))
                self._rules.add(name, [Literal(opener + closer)], [Literal(opener), *lines, Literal(closer)])
        return Ref(name)


def _string_terminal(least: int, most: int | None, formats: Sequence[str]) -> str:
    if formats:
        return f'/"{FORMATS[formats[0]]}"/'
    if least == 0 and most is None:
        return f"/{_STRING}/"
    bound = "" if most is None else min(most, _MOST_CHARACTERS)
    return f'/"{_CHARACTER}{{{least},{bound}}}"/'
