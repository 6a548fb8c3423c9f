"""Reads the list of tool calls that follows `Action:` while it arrives, forgiving what can be forgiven.

    Action: ```json
    [
        {
            "tool_name": "search",              ToolCallStart(0, "search_...", "search")
            "parameters": {"query": "knots"}    ToolCallDelta(0, '{"query":"kn'), ToolCallDelta(0, 'ots"}')
        }                                       ToolCallEnd(0)
    ]
    ```

What comes before the first bracket (the fence) and after the list is ignored. A bracket that closes what it did not
open ends the list there: whatever follows would have to be guessed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from quarterdeck.chat.json_text import parse_json
from quarterdeck.chat.messages import Event, ToolCallDelta, ToolCallEnd, ToolCallStart
from quarterdeck.chat.parsing.citations import Report
from quarterdeck.chat.parsing.json_pieces import JsonSplitter, Kind, Piece, unescaped

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_CLOSER_OF = {"{": "}", "[": "]"}
_FENCE_BEGUN = re.compile(r"\s*(`{0,3}|```\s*j?|```\s*js|```\s*jso|```\s*json)\s*")
_LIST_OR_CALL = re.compile(r"[\[{]")


def new_call_id(name: str) -> str:
    """An id for a call of a tool: its name and 12 random letters and digits."""
    return f"{name}_{''.join(secrets.choice(_ID_ALPHABET) for _ in range(12))}"


class Brackets:
    """Brackets that are open, innermost last."""

    def __init__(self) -> None:
        self._closers: list[str] = []

    def fits(self, piece: Piece) -> bool:
        """Takes a piece in; false if it closes something that is not open."""
        if piece.kind is Kind.OPENER:
            self._closers.append(_CLOSER_OF[piece.text])
        elif piece.kind is Kind.CLOSER:
            return bool(self._closers) and self._closers.pop() == piece.text
        return True

    def __bool__(self) -> bool:
        """Whether any is open."""
        return bool(self._closers)


class CompactObject:
    """JSON of an object, without white space and trailing commas, piece by piece."""

    def __init__(self) -> None:
        self._brackets = Brackets()
        self._after_opener = False
        self._comma = ""
        self.broken = False
        """A bracket closed something that was not open; nothing more comes out."""

    @property
    def complete(self) -> bool:
        """The object is closed."""
        return not self._brackets

    def feed(self, piece: Piece) -> str:
        """The text that is now certain: a comma only when it is known not to be the last of its list."""
        self.broken = not self._brackets.fits(piece)
        if self.broken:
            return ""
        if piece.kind is Kind.COMMA and not self._after_opener:
            comma, self._comma = self._comma, ","
            return comma
        self._after_opener = piece.kind is Kind.OPENER
        if piece.kind is Kind.CLOSER:
            self._comma = ""
        return self.close() + piece.text

    def close(self) -> str:
        """The comma that was withheld, if there was one."""
        comma, self._comma = self._comma, ""
        return comma


class CallReader:
    """Reads one call: the pieces of a JSON object, after its opening brace.

    The first `tool_name` that is a string, and not empty, and the first `parameters` that are an object count; other
    keys do not.

    Args:
        index: the number that the call will have.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._state: Callable[[Piece], list[Event]] = self._between
        self._inside: list[str] = []
        self._key = ""
        self._arguments: CompactObject | None = None
        self._early: list[str] = []
        self._skipped = Brackets()
        self._said: list[str] = []
        self._has_other_parameters = False
        self.started = False
        self.complete = False
        self.broken = False

    def feed(self, piece: Piece) -> list[Event]:
        """The events that the piece makes certain. Afterwards see `complete` and `broken`."""
        return self._state(piece)

    def close(self) -> list[Event]:
        """Ends the call where it is: it keeps what arrived."""
        if not self.started:
            return []
        rest = self._arguments.close() if self._arguments is not None else ""
        return [*self._delta(rest), ToolCallEnd(self._index)]

    @property
    def problem(self) -> str | None:
        """What is wrong with the arguments of a call that is complete."""
        if self._arguments is None:
            return "the parameters of a call are no object, and were left out" if self._has_other_parameters else None
        try:
            parse_json("".join(self._said))
        except ValueError as error:
            return f"the arguments of a call are no JSON: {error}"
        return None

    def _between(self, piece: Piece) -> list[Event]:
        """Before a key, and after a value. Commas may be missing."""
        if piece.kind is Kind.QUOTE:
            self._inside = []
            self._state = self._in_key
        elif piece.kind is Kind.OPENER:
            self._skipped.fits(piece)
            self._state = self._skipping
        elif piece.text == "}":
            return self._end()
        elif piece.kind is Kind.CLOSER:
            self.broken = True
        return []

    def _in_key(self, piece: Piece) -> list[Event]:
        if piece.kind is Kind.QUOTE:
            self._key = unescaped("".join(self._inside))
            self._state = self._after_key
        self._inside.append(piece.text)
        return []

    def _after_key(self, piece: Piece) -> list[Event]:
        if piece.kind is Kind.COLON:
            self._state = self._before_value
            return []
        self._state = self._between
        return self._between(piece)

    def _before_value(self, piece: Piece) -> list[Event]:
        self._has_other_parameters |= self._key == "parameters" and piece.text != "{"
        if piece.kind is Kind.QUOTE:
            self._inside = []
            self._state = self._in_name if self._key == "tool_name" and not self.started else self._in_other_string
            return []
        if piece.text == "{" and self._key == "parameters" and self._arguments is None:
            self._arguments = CompactObject()
            self._state = self._in_arguments
            return self._in_arguments(piece)
        self._state = self._between
        return self._between(piece)

    def _in_other_string(self, piece: Piece) -> list[Event]:
        if piece.kind is Kind.QUOTE:
            self._state = self._between
        return []

    def _in_name(self, piece: Piece) -> list[Event]:
        if piece.kind is not Kind.QUOTE:
            self._inside.append(piece.text)
            return []
        self._state = self._between
        name = unescaped("".join(self._inside))
        self.started = name != ""
        if not self.started:
            return []
        return [ToolCallStart(self._index, new_call_id(name), name), *self._delta("".join(self._early))]

    def _in_arguments(self, piece: Piece) -> list[Event]:
        assert self._arguments is not None, "entered with its first brace"
        text = self._arguments.feed(piece)
        self.broken = self._arguments.broken
        if self._arguments.complete:
            self._state = self._between
        if self.started:
            return self._delta(text)
        self._early.append(text)
        return []

    def _skipping(self, piece: Piece) -> list[Event]:
        self.broken = not self._skipped.fits(piece)
        if not self._skipped:
            self._state = self._between
        return []

    def _end(self) -> list[Event]:
        self.complete = True
        if not self.started:
            return []
        return [*self._delta("{}" if self._arguments is None else ""), ToolCallEnd(self._index)]

    def _delta(self, text: str) -> list[Event]:
        self._said.append(text)
        return [ToolCallDelta(self._index, text)] if text else []


class ActionReader:
    """The body of an `Action:` section to events.

    Args:
        report: told of calls that were left out or are incomplete.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._pieces = JsonSplitter()
        self._state: Callable[[Piece], list[Event]] = self._before
        self._call = CallReader(0)
        self._calls = 0
        self._alone = False
        self._skipped = Brackets()
        self._fence = ""
        self._has_text = False
        self._has_others = False
        self._begun = False
        self._done = False

    def feed(self, text: str) -> list[Event]:
        """`ToolCallStart`, `ToolCallDelta` and `ToolCallEnd`, each as soon as it is certain."""
        position = 0
        if not self._begun:
            match = _LIST_OR_CALL.search(text)
            position = len(text) if match is None else match.start()
            self._has_text = self._has_text or not _FENCE_BEGUN.fullmatch(self._fence + text[:position])
            self._fence = "" if self._has_text else (self._fence + text[:position]).strip()
            if match is None:
                return []
            self._begun = True
            if self._has_text:
                self._report("text before the list of tool calls was left out")
        events: list[Event] = []
        if not self._done:
            for piece in self._pieces.feed(text[position:]):
                events += self._state(piece)
                if self._done:
                    break
        return events

    @property
    def is_complete(self) -> bool:
        """The list has ended; nothing that follows counts."""
        return self._done

    def close(self) -> list[Event]:
        """The end of a call that the text did not finish."""
        if self._done:
            return []
        self._done = True
        self._report("the list of tool calls is incomplete" if self._begun else "there is no list of tool calls")
        return self._call.close() if self._state == self._in_call else []

    def _before(self, piece: Piece) -> list[Event]:
        self._alone = piece.text == "{"
        if self._alone:
            return self._in_list(piece)
        self._state = self._in_list
        return []

    def _in_list(self, piece: Piece) -> list[Event]:
        if piece == Piece(Kind.OPENER, "{"):
            self._call = CallReader(self._calls)
            self._state = self._in_call
        elif piece.kind is Kind.OPENER:
            self._skipped.fits(piece)
            self._state = self._in_nested_list
        elif piece.kind in (Kind.BARE, Kind.QUOTE, Kind.INSIDE) and "`" not in piece.text:
            self._has_others = True
        elif piece.kind is Kind.CLOSER or (piece.kind is Kind.BARE and "`" in piece.text):
            self._done = True
            if self._has_others:
                self._report("something that is no object among the tool calls was left out")
            if piece.text != "]":
                self._report("the list of tool calls is not closed")
        return []

    def _in_nested_list(self, piece: Piece) -> list[Event]:
        if not self._skipped.fits(piece):
            return self._break([])
        if not self._skipped:
            self._report("a list among the tool calls was left out")
            self._state = self._in_list
        return []

    def _in_call(self, piece: Piece) -> list[Event]:
        events = self._call.feed(piece)
        if self._call.broken:
            return self._break([*events, *self._call.close()])
        if self._call.complete:
            self._calls += self._call.started
            if not self._call.started:
                self._report("an object without a tool_name among the tool calls was left out")
            elif self._call.problem is not None:
                self._report(self._call.problem)
            self._state = self._in_list
            self._done = self._alone
        return events

    def _break(self, events: list[Event]) -> list[Event]:
        self._report("the list of tool calls has a bracket that closes what it did not open")
        self._done = True
        return events
