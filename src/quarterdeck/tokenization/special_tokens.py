"""Tokens that have a name: ``bos_token``, ``eos_token`` and so on, each with its id.

A name is only a pointer to a token. Whether ``decode(skip_special_tokens=True)`` leaves a token out is a property of
the token in the vocabulary (`AddedToken.special`), not of its having a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.vocabulary import Token, Vocabulary

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDITIONAL = "additional_special_tokens"


class NamedToken:
    """A property such as ``bos_token``: the text of the token, or None. Set to a str, an AddedToken or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tokenizer: SpecialTokens, owner: type) -> str | None:
        token = tokenizer._named_tokens.get(self._name)
        return None if token is None else str(token)

    def __set__(self, tokenizer: SpecialTokens, token: Token | None) -> None:
        tokenizer._name_token(self._name, token)


class NamedTokenId:
    """A property such as ``bos_token_id``: the id of the named token, or None. Setting it names another token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, tokenizer: SpecialTokens, owner: type) -> int | None:
        token = tokenizer._named_tokens.get(self._name)
        return None if token is None else tokenizer.convert_tokens_to_ids(str(token))

    def __set__(self, tokenizer: SpecialTokens, index: int | None) -> None:
        tokenizer._name_token(self._name, None if index is None else tokenizer._existing_token(index))


class SpecialTokens(Vocabulary):
    """A vocabulary some of whose tokens have names."""

    SPECIAL_TOKENS_ATTRIBUTES = (*NAMED_TOKENS, ADDITIONAL)

    bos_token = NamedToken()
    eos_token = NamedToken()
    unk_token = NamedToken()
    sep_token = NamedToken()
    pad_token = NamedToken()
    cls_token = NamedToken()
    mask_token = NamedToken()
    bos_token_id = NamedTokenId()
    eos_token_id = NamedTokenId()
    unk_token_id = NamedTokenId()
    sep_token_id = NamedTokenId()
    pad_token_id = NamedTokenId()
    cls_token_id = NamedTokenId()
    mask_token_id = NamedTokenId()
    pad_token_type_id = 0

    def __init__(
        self,
        backend: Tokenizer,
        named_tokens: Mapping[str, Token | None],
        additional_special_tokens: Sequence[Token],
        extra_special_tokens: Mapping[str, Token],
    ) -> None:
        super().__init__(backend)
        self._named_tokens: dict[str, Token | None] = dict.fromkeys(NAMED_TOKENS)
        self._additional: list[Token] = []
        for name, token in named_tokens.items():
            self._name_token(name, token)
        self.additional_special_tokens = additional_special_tokens
        for name, token in extra_special_tokens.items():
            self._name_model_token(name, token)

    # ── names of this model's own, such as "image_token" ──────────────────────────────────────────────────────────

    def __getattr__(self, name: str) -> str | int | None:
        own = self.__dict__.get("_named_tokens", {})
        if name in own:
            return None if own[name] is None else str(own[name])
        if name.removesuffix("_id") in own:
            return self.convert_tokens_to_ids(str(own[name.removesuffix("_id")]))
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @property
    def extra_special_tokens(self) -> dict[str, str]:
        """Tokens with names of this model's own, by name; each is an attribute too, as is its id (``name_id``)."""
        return {name: str(token) for name, token in self._named_tokens.items() if name not in NAMED_TOKENS}

    def _name_model_token(self, name: str, token: Token) -> None:
        if hasattr(type(self), name) or not name.isidentifier():
            raise TokenizerError(f"extra_special_tokens has '{name}', which is no free attribute name; choose another")
        self._name_token(name, token)

    def _name_token(self, name: str, token: Token | None) -> None:
        if token is not None and not isinstance(token, str | AddedToken):
            raise TokenizerError(f"{name} is {token!r}; give a str, a tokenizers.AddedToken or None")
        self._named_tokens[name] = token

    def _existing_token(self, index: int) -> str:
        token = self._token_of(index)
        if token is None:
            raise TokenizerError(f"no token has the id {index}; ids go from 0 to {len(self) - 1}")
        return token

    def _unknown_id(self) -> int | None:
        token = self._named_tokens["unk_token"]
        index: int | None = None if token is None else self._backend.token_to_id(str(token))
        return index

    def _named_ids(self) -> set[int]:
        return {index for index in self.all_special_ids if index is not None}

    # ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a name of their own."""
        return [str(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[Token] | None) -> None:
        wrong = isinstance(tokens, str) or not all(isinstance(token, str | AddedToken) for token in tokens or ())
        if wrong:
            raise TokenizerError(
                f"additional_special_tokens is {tokens!r}; give a list of str or tokenizers.AddedToken"
            )
        self._additional = list(tokens or ())

    @property
    def additional_special_tokens_ids(self) -> list[int | None]:
        """Ids of the special tokens without a name of their own."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int]) -> None:
        self.additional_special_tokens = [self._existing_token(index) for index in ids]

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """What is set, by name, as text. Chat templates see these as variables."""
        extended = self.special_tokens_map_extended
        return {k: [str(t) for t in v] if isinstance(v, list) else str(v) for k, v in extended.items()}

    @property
    def special_tokens_map_extended(self) -> dict[str, Token | list[Token]]:
        """What is set, by name, as it was given: str or AddedToken."""
        standard = {name: self._named_tokens[name] for name in NAMED_TOKENS}
        everything = {**standard, ADDITIONAL: list(self._additional), **self._named_tokens}
        return {name: token for name, token in everything.items() if token}

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every token with a name and every additional special token, once each, as it was given."""
        found: dict[str, Token] = {}
        for value in self.special_tokens_map_extended.values():
            for token in value if isinstance(value, list) else [value]:
                found.setdefault(str(token), token)
        return list(found.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every token with a name and every additional special token, once each, as text."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int | None]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Names tokens and adds to the vocabulary those that are not there; see also `add_tokens`.

        Example: ``tokenizer.add_special_tokens({"pad_token": "<PAD>"})``.

        Args:
            special_tokens_dict: by attribute name; ``additional_special_tokens`` takes a list.
            replace_additional_special_tokens: whether that list replaces the present one or extends it.

        Returns:
            How many tokens were really added to the vocabulary.
        """
        if not isinstance(special_tokens_dict, Mapping):
            raise TokenizerError(
                f"add_special_tokens is given {special_tokens_dict!r}; give a dictionary from names to tokens, such as "
                f"{{'pad_token': '<PAD>'}} or {{'{ADDITIONAL}': [...]}}"
            )
        new: list[Token] = []
        for name, value in special_tokens_dict.items():
            if name == ADDITIONAL:
                new += self._set_additional(value, replace_additional_special_tokens)
            elif name in self._named_tokens:
                token = _as_special(name, value)
                self._name_token(name, token)
                new.append(token)
            else:
                known = ", ".join((*self._named_tokens, ADDITIONAL))
                raise TokenizerError(f"'{name}' is not the name of a special token; the names are {known}")
        return self.add_tokens(new, special_tokens=True)

    def _set_additional(self, tokens: Token | Sequence[Token], replace: bool) -> list[AddedToken]:
        if isinstance(tokens, str | AddedToken):
            raise TokenizerError(f"{ADDITIONAL} is {tokens!r}; give a list of tokens")
        known = set() if replace else set(self.additional_special_tokens)
        new = [_as_special(ADDITIONAL, token) for token in tokens if str(token) not in known]
        if not replace:
            self._additional.extend(new)
        elif new:
            self._additional = list(new)
        return new


def _as_special(name: str, token: Token | Sequence[Token]) -> AddedToken:
    """The token as it is added to the vocabulary: a plain text becomes a special token matched as it stands."""
    if isinstance(token, AddedToken):
        return token
    if not isinstance(token, str):
        raise TokenizerError(f"{name} is {token!r}; give a str or a tokenizers.AddedToken")
    return AddedToken(token, normalized=False, special=True)
