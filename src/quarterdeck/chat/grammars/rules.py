"""A context-free grammar while it is being built, and its text for `llguidance`.

    rules = Rules()
    rules.add("list", [Literal("["), rules.optional(Ref("item")), Literal("]")])
    rules.add("item", [Terminal("/[0-9]+/")])
    rules.text("list")                           # start: list ...

What can never come to an end (a rule without alternatives, or one that always needs itself) is taken out before the
text is written, and with it every alternative that needs it. That is how the grammar of a schema finds out that
nothing satisfies it: its rule is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ref:
    """Whatever the rule of that name says."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A text, exactly."""

    text: str


@dataclass(frozen=True)
class Terminal:
    """A regular expression in Lark's notation: ``/[a-z]+/ & ~/x/``."""

    lark: str


@dataclass(frozen=True)
class Inline:
    """Something that Lark's notation takes in the place of a rule, such as ``%json {...}``."""

    lark: str


@dataclass(frozen=True)
class Repeat:
    """Symbols, that many times; ``most`` None is without limit."""

    symbols: tuple[Symbol, ...]
    least: int = 0
    most: int | None = None


Symbol = Ref | Literal | Terminal | Inline | Repeat
Sequence_ = tuple[Symbol, ...]


class Rules:
    """Rules by name; each is a list of alternatives, each of those a sequence of symbols."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Sequence_]] = {}

    def __len__(self) -> int:
        return len(self._rules)

    def __contains__(self, name: str) -> bool:
        return name in self._rules

    def fresh(self, stem: str) -> str:
        """A name that no rule has, kept for the rule that is to come: it has no alternatives yet."""
        name = f"{stem}_{len(self._rules)}"
        self._rules[name] = []
        return name

    def add(self, name: str, *alternatives: Iterable[Symbol]) -> Ref:
        """More alternatives for a rule, which is made if it is not there."""
        self._rules.setdefault(name, []).extend(tuple(alternative) for alternative in alternatives)
        return Ref(name)

    def optional(self, *symbols: Symbol) -> Ref:
        """The symbols or nothing."""
        return self.add(self.fresh("maybe"), symbols, ())

    def is_satisfiable(self, rule: Ref) -> bool:
        """Whether some text satisfies a rule, as far as its shape shows: a terminal may still match nothing."""
        return rule.name in self._productive()

    def text(self, start: str) -> str | None:
        """The grammar in Lark's notation as `llguidance` reads it, or None if no text satisfies it."""
        productive = self._productive()
        if start not in productive:
            return None
        kept = {
            name: [alternative for alternative in self._rules[name] if self._ends(alternative, productive)]
            for name in self._rules
            if name in productive
        }
        writer = _Writer(productive)
        order = _reachable(start, kept, productive)
        lines = [f"start: {start}"]
        lines += [f"{name}: {' | '.join(map(writer.sequence, dict.fromkeys(kept[name])))}" for name in order]
        return "\n".join([*lines, *writer.terminals(), ""])

    def _productive(self) -> set[str]:
        """The rules that some text satisfies."""
        found: set[str] = set()
        while True:
            more = {
                name
                for name, alternatives in self._rules.items()
                if name not in found and any(self._ends(one, found) for one in alternatives)
            }
            if not more:
                return found
            found |= more

    def _ends(self, symbols: Sequence_, productive: set[str]) -> bool:
        for symbol in symbols:
            if isinstance(symbol, Ref) and symbol.name not in productive:
                return False
            if isinstance(symbol, Repeat) and symbol.least and not self._ends(symbol.symbols, productive):
                return False
        return True


def _reachable(start: str, rules: dict[str, list[Sequence_]], productive: set[str]) -> list[str]:
    """The names of the rules that the start needs, itself first."""
    found = {start: None}
    todo = [start]
    while todo:
        for name in _names(rules[todo.pop()]):
            if name in productive and name not in found:
                found[name] = None
                todo.append(name)
    return list(found)


def _names(alternatives: Sequence[Sequence_]) -> Iterable[str]:
    for alternative in alternatives:
        for symbol in alternative:
            if isinstance(symbol, Ref):
                yield symbol.name
            elif isinstance(symbol, Repeat):
                yield from _names([symbol.symbols])


class _Writer:
    """Symbols in Lark's notation; terminals get names, one for each that is different."""

    def __init__(self, productive: set[str]) -> None:
        self._productive = productive
        self._named: dict[str, str] = {}

    def sequence(self, symbols: Sequence_) -> str:
        """Symbols one after another."""
        return " ".join(filter(None, map(self._symbol, symbols))) or '""'

    def terminals(self) -> list[str]:
        """The definitions of the terminals that were used."""
        return [f"{name}: {lark}" for lark, name in self._named.items()]

    def _symbol(self, symbol: Symbol) -> str:
        match symbol:
            case Ref(name):
                return name
            case Literal(text):
                return quoted(text)
            case Terminal(lark):
                return self._named.setdefault(lark, f"T{len(self._named)}")
            case Inline(lark):
                return lark
            case Repeat(symbols, least, most):
                return self._repeated(symbols, least, most)

    def _repeated(self, symbols: Sequence_, least: int, most: int | None) -> str:
        if most == 0 or any(name not in self._productive for name in _names([symbols])):
            return ""
        return f"({self.sequence(symbols)}){{{least},{'' if most is None else most}}}"


def quoted(text: str) -> str:
    """A text as a Lark string. Empty texts are not written at all."""
    return json.dumps(text) if text else ""
