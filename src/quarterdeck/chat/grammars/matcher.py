"""From a grammar and a tokenizer to the tokens that may come next, with the `llguidance` library.

    compiler = GrammarCompiler(tokenizer, vocab_size=256000)       # once per tokenizer: takes seconds if it is large
    matcher = compiler.compile(json_grammar())                      # once per answer
    while not matcher.is_finished:
        allowed = matcher.mask()                                    # one bit per token
        matcher.consume(token)

The library is imported when the first compiler needs it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.errors import ChatError, InputError, MissingPackageError

if TYPE_CHECKING:
    from quarterdeck.tokenizer import CohereTokenizerFast


class Matcher:
    """Follows one text, token by token, and knows which tokens may come next.

    Made by `GrammarCompiler.compile`. Not for several threads at once; different matchers are independent. Computing
    a mask lets other threads run Python.
    """

    def __init__(self, matcher: Any, what: str, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._what = what
        self.end_token_ids = tuple(end_token_ids)
        self.vocab_size = vocab_size
        self.is_finished = False
        """An end token was consumed."""

    @property
    def is_complete(self) -> bool:
        """The text could end here: an end token is among those that may come next."""
        return self.is_finished or bool(self._matcher.is_accepting())

    def mask(self) -> bytes:
        """Which tokens may come next: bit ``i % 8`` of byte ``i // 8`` is token ``i``; a multiple of 4 bytes.

        Once the text is finished, the end tokens.

        Raises:
            ChatError: the grammar is too complex for the library's limits.
        """
        if self.is_finished:
            return self._end_mask()
        bits: bytes = self._matcher.compute_bitmask()
        self._check()
        return bits

    def consume(self, token: int) -> None:
        """Takes the next token. After the end of the text any is taken, and ignored.

        Raises:
            InputError: it is none of those that may come next.
        """
        if self.is_finished:
            return
        if token in self.end_token_ids:
            if not self._matcher.is_accepting():
                raise InputError(f"token {token} ends the text, which is not complete under {self._what}")
            self.is_finished = True
        elif not self._matcher.try_consume_tokens([token]):
            self._check()
            raise InputError(f"token {token} cannot come next under {self._what}")

    def stop(self) -> None:
        """Ends the text where it is, complete or not."""
        self.is_finished = True

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether the text so far and then these tokens, without an end token, is complete; nothing is consumed."""
        copy = self._matcher.deep_copy()
        return copy.try_consume_tokens(list(tokens)) == len(tokens) and bool(copy.is_accepting())

    def copy(self) -> Matcher:
        """A matcher of its own at the same place."""
        other = Matcher(self._matcher.deep_copy(), self._what, self.vocab_size, self.end_token_ids)
        other.is_finished = self.is_finished
        return other

    def _end_mask(self) -> bytes:
        bits = bytearray((self.vocab_size + 31) // 32 * 4)
        for token in self.end_token_ids:
            bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ChatError(f"{self._what} cannot be followed any further: {self._matcher.get_error()}")


class GrammarCompiler:
    """Grammars for one tokenizer.

    Args:
        tokenizer: of the model.
        vocab_size: of the model, if it is larger than the tokenizer's; ids without a token never come next.
        end_token_ids: which end a text; the tokenizer's own if not given.
        keep: grammars that are kept compiled, the latest ones.

    Raises:
        MissingPackageError: `llguidance` is not installed.
        InputError: an id is outside the vocabulary, or there is no end token.
    """

    def __init__(
        self,
        tokenizer: CohereTokenizerFast,
        *,
        vocab_size: int | None = None,
        end_token_ids: Sequence[int] | None = None,
        keep: int = 32,
    ) -> None:
        try:
            self._library = import_module("llguidance")
        except ModuleNotFoundError as error:
            raise MissingPackageError("llguidance", "grammar", "constrained decoding") from error
        ends = [tokenizer.eos_token_id] if end_token_ids is None else list(end_token_ids)
        self.vocab_size = max(len(tokenizer), vocab_size or 0)
        self.end_token_ids = tuple(end for end in ends if end is not None)
        if not self.end_token_ids or not all(0 <= end < self.vocab_size for end in self.end_token_ids):
            raise InputError(f"a grammar needs end tokens within the vocabulary of {self.vocab_size}, not {ends}")
        self._tokens: _Tokens | None = _Tokens(tokenizer, self.end_token_ids[0])
        self._vocabulary: Any = None
        self._keep = keep
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Reads the vocabulary, which the first grammar would do otherwise; may run in a thread of its own."""
        with self._lock:
            self._prepare()

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
            ChatError: a pattern in the grammar is none that can be enforced, or nothing satisfies it.
        """
        with self._lock:
            self._prepare()
            if grammar not in self._compiled:
                self._compiled[grammar] = self._new(grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > self._keep:
                self._compiled.popitem(last=False)
            fresh = self._compiled[grammar].deep_copy()
        return Matcher(fresh, grammar.what, self.vocab_size, self.end_token_ids)

    def _prepare(self) -> None:
        if self._tokens is not None:
            self._vocabulary = self._library.LLTokenizer(
                self._library.TokenizerWrapper(self._tokens),
                n_vocab=self.vocab_size,
                eos_token=list(self.end_token_ids),
            )
            self._tokens = None

    def _new(self, grammar: Grammar) -> Any:
        matcher = self._library.LLMatcher(
            self._vocabulary, self._library.LLMatcher.grammar_from_lark(grammar.text), log_level=0
        )
        if matcher.is_error():
            reason = str(matcher.get_error()).split("\n")[0]
            raise ChatError(f"{grammar.what} cannot be enforced: {reason}")
        return matcher


class _Tokens:
    """A tokenizer as `llguidance` wants to see it: the bytes of every token, and which are control tokens.

    It encodes texts that a grammar forces, so nothing in them is normalised or taken for a control token.
    """

    def __init__(self, tokenizer: CohereTokenizerFast, end: int) -> None:
        original = tokenizer.backend_tokenizer
        self._plain = type(original)(original.model)
        if original.pre_tokenizer is not None:
            self._plain.pre_tokenizer = original.pre_tokenizer
        added = original.get_added_tokens_decoder()
        controls = set(control_tokens())
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(
            {index for index, token in added.items() if token.special or token.content in controls} | {end}
        )
        learned = original.get_vocab(with_added_tokens=False)
        self.tokens = [b""] * (max([*learned.values(), *added]) + 1)
        bytes_of = _byte_of_character()
        alphabet = frozenset(map(chr, bytes_of))
        for text, index in learned.items():
            is_bytes = alphabet.issuperset(text)  # a token that is not in the alphabet stands for itself
            self.tokens[index] = text.translate(bytes_of).encode("latin-1") if is_bytes else text.encode()
        for index, token in added.items():
            self.tokens[index] = token.content.encode()

    def __call__(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            TypeError: it is bytes; by this the library learns that it must give text.
        """
        if not isinstance(text, str):
            raise TypeError("only text can be encoded")
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _byte_of_character() -> dict[int, int]:
    """GPT-2's alphabet for bytes: printable ones of Latin-1 stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {**{byte: byte for byte in printable}, **{0x100 + place: byte for place, byte in enumerate(others)}}
