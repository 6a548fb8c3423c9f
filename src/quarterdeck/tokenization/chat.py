"""Conversations to prompts, with the template that comes with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from quarterdeck.errors import ChatTemplateError, TokenizerError
from quarterdeck.tokenization.decoder import Decoder
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenization.tensors import to_python

if TYPE_CHECKING:
    from quarterdeck.tokenization.jinja import Span

ChatTemplate = str | dict[str, str]
"""One template, or several by name; the one called "default" is used when nothing else is asked for."""

Message = Mapping[str, Any]
Conversation = Sequence[Message]


class ChatTemplating(Decoder):
    """A tokenizer with chat templates."""

    chat_template: ChatTemplate | None = None

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text of the template that `apply_chat_template` would use.

        Args:
            chat_template: name of one of the tokenizer's templates, or the text of another. None: "tool_use" if
                there are tools and a template of that name, otherwise "default".
            tools: only whether they are given matters.

        Raises:
            ChatTemplateError: there is no template, or none of that name.
        """
        own = {"default": self.chat_template} if isinstance(self.chat_template, str) else self.chat_template or {}
        name = chat_template
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in own else "default"
        if name in own:
            return own[name]
        if chat_template is not None and _is_template_text(chat_template):
            return chat_template
        if not own:
            raise ChatTemplateError(
                f"this tokenizer has no chat template (asked for '{name}'): pass chat_template=... or set "
                "tokenizer.chat_template to a Jinja template"
            )
        raise ChatTemplateError(
            f"this tokenizer has no chat template named '{name}'; it has {', '.join(sorted(own))}. Pass one of "
            "these names, or the text of a Jinja template, as chat_template"
        )

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **template_variables: Any,
    ) -> Any:
        """The prompt for a conversation, as ids or as text.

        Args:
            conversation: messages, each with ``role`` and ``content``; or a list of conversations.
            tools: JSON schemas of what the model may call, for templates that know tools.
            documents: what the answer is to be grounded in, for templates that know documents.
            chat_template: name or text of a template; see `get_chat_template`.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: end inside the last message, for the model to go on with it.
            tokenize: ids if True, text if False.
            padding, truncation, max_length, return_tensors: as in `__call__`; only with ``tokenize``.
            return_dict: all inputs of the model instead of the ids alone.
            return_assistant_tokens_mask: add ``assistant_masks``, 1 for tokens that the assistant said; the template
                must mark them with ``{% generation %}``.
            tokenizer_kwargs: further options of `__call__`.
            template_variables: seen by the template, as are the special tokens (``bos_token``, ...).

        Returns:
            Text or list of ids; a list of them for several conversations; a tensor; or a `BatchEncoding`.

        Raises:
            ChatTemplateError: no such template, one that cannot be rendered, or options that exclude each other.
        """
        _check_options(
            tokenize=tokenize,
            return_dict=return_dict,
            masks=return_assistant_tokens_mask,
            continues=continue_final_message,
            begins=add_generation_prompt,
            variables=template_variables,
        )
        source = self.get_chat_template(chat_template, tools)
        batched = _is_batch(conversation)
        variables = {
            **self.special_tokens_map,
            **template_variables,
            "tools": _checked_tools(tools),
            "documents": _checked_documents(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        texts, spans = [], []
        for chat in conversation if batched else [conversation]:
            messages: Any = getattr(chat, "messages", chat)
            text, found = _render(source, {**variables, "messages": messages}, return_assistant_tokens_mask)
            texts.append(_cut_after_final_message(text, messages) if continue_final_message else text)
            spans.append(found)
        if not tokenize:
            return texts if batched else texts[0]
        options = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
            **(tokenizer_kwargs or {}),
        }
        options.setdefault("add_special_tokens", False)  # the template writes them itself
        encoded = self(texts if batched else texts[0], **options)
        if return_assistant_tokens_mask:
            _add_assistant_masks(encoded, spans, batched or return_tensors is not None, return_tensors)
        return encoded if return_dict else encoded["input_ids"]

    def apply_tool_use_template(
        self, conversation: Conversation | Sequence[Conversation], tools: Sequence[Mapping[str, Any]], **options: Any
    ) -> Any:
        """The prompt that makes the model choose among tools: `apply_chat_template` with the "tool_use" template.

        Args:
            conversation: messages, each with ``role`` and ``content``.
            tools: each with ``name``, ``description`` and ``parameter_definitions``, or a JSON schema if the
                checkpoint's template takes those.
            options: as of `apply_chat_template`.
        """
        return self.apply_chat_template(conversation, tools=tools, chat_template="tool_use", **options)

    def apply_grounded_generation_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        documents: Sequence[Mapping[str, Any]],
        citation_mode: Literal["fast", "accurate"] = "accurate",
        **options: Any,
    ) -> Any:
        """The prompt for an answer with citations: `apply_chat_template` with the "rag" template.

        Args:
            conversation: messages, each with ``role`` and ``content``.
            documents: what to answer from; by custom each with ``title`` and ``text``.
            citation_mode: ``"accurate"``: answer first, then the answer with citations; ``"fast"``: only the latter.
            options: as of `apply_chat_template`.
        """
        if citation_mode not in ("fast", "accurate"):
            raise ChatTemplateError(f"citation_mode={citation_mode!r} is neither 'fast' nor 'accurate'")
        return self.apply_chat_template(
            conversation, documents=documents, chat_template="rag", citation_mode=citation_mode, **options
        )


def _check_options(
    *, tokenize: bool, return_dict: bool, masks: bool, continues: bool, begins: bool, variables: Mapping[str, Any]
) -> None:
    """Refuses combinations one half of which would be ignored.

    Raises:
        ChatTemplateError: naming both options.
    """
    contradictions = (
        (return_dict and not tokenize, "return_dict=True needs tokenize=True"),
        (masks and not return_dict, "return_assistant_tokens_mask=True needs return_dict=True"),
        (
            continues and begins,
            "continue_final_message=True goes on with the last message, add_generation_prompt=True begins a new one",
        ),
        (continues and masks, "return_assistant_tokens_mask=True does not go with continue_final_message=True"),
        ("messages" in variables, "the conversation is 'messages' to the template already"),
    )
    for is_wrong, message in contradictions:
        if is_wrong:
            raise ChatTemplateError(f"{message}: drop one of the two")


def _is_template_text(text: str) -> bool:
    """Whether a text is a template rather than the name of one: only a template has a Jinja tag (or line breaks)."""
    return any(mark in text for mark in ("{{", "{%", "{#", "\n"))


def _is_batch(conversation: Any) -> bool:
    """Whether these are several conversations: lists of messages, or objects that have ``messages``."""
    first = conversation[0] if isinstance(conversation, list | tuple) and conversation else None
    return isinstance(first, list | tuple) or hasattr(first, "messages")


def _checked_tools(tools: Iterable[Any] | None) -> list[Mapping[str, Any]] | None:
    for tool in tools or ():
        if not isinstance(tool, Mapping):
            kind = f"the function '{tool.__name__}'" if hasattr(tool, "__name__") else repr(tool)
            raise ChatTemplateError(f"tools holds {kind}: describe each tool by a JSON schema (a dictionary)")
    return None if tools is None else list(tools)


def _checked_documents(documents: Iterable[Any] | None) -> list[Mapping[str, Any]] | None:
    for document in documents or ():
        if not isinstance(document, Mapping):
            raise ChatTemplateError(
                f"documents holds {document!r}: give dictionaries, such as {{'title': ..., 'text': ...}}"
            )
    return None if documents is None else list(documents)


def _render(source: str, variables: Mapping[str, Any], with_spans: bool) -> tuple[str, list[Span]]:
    from quarterdeck.tokenization import jinja  # here, so that tokenizing alone does not import Jinja

    if not with_spans:
        return jinja.render(source, variables), []
    if not jinja.has_generation_block(source):
        raise ChatTemplateError(
            "return_assistant_tokens_mask=True needs a chat template that marks what the assistant says with "
            "{% generation %} ... {% endgeneration %}; this one does not"
        )
    return jinja.render_with_spans(source, variables)


def _cut_after_final_message(text: str, messages: Conversation) -> str:
    """The prompt without what the template puts after the last message.

    Raises:
        ChatTemplateError: the template changed the last message, or dropped it.
    """
    final = _final_text(messages)
    start = text.rfind(final.strip())
    if start < 0:
        raise ChatTemplateError(
            f"continue_final_message: the last message, {final[:60]!r}, is not in the prompt as it stands; the chat "
            "template changes or drops it"
        )
    is_kept_whole = text.startswith(final, start)  # otherwise the template stripped it
    return text[: start + len(final if is_kept_whole else final.strip())]


def _final_text(messages: Conversation) -> str:
    """The text of the last message, or the last text among its parts."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list | tuple):
        content = next((part["text"] for part in reversed(content) if "text" in part), None)
    if not isinstance(content, str):
        raise ChatTemplateError("continue_final_message needs a last message with text, and there is none")
    return content


def _add_assistant_masks(
    encoded: BatchEncoding, spans: Sequence[Sequence[Span]], has_rows: bool, return_tensors: str | None
) -> None:
    """Adds ``assistant_masks``: 1 for each token of the spans (in characters of each text), 0 for the others."""
    ids = to_python(encoded["input_ids"])
    rows = ids if has_rows else [ids]
    if len(rows) != len(spans):
        raise TokenizerError("return_assistant_tokens_mask does not go with return_overflowing_tokens")
    masks = [_mask(encoded, number, len(row), spans[number]) for number, row in enumerate(rows)]
    encoded["assistant_masks"] = masks if has_rows else masks[0]
    encoded.convert_to_tensors(return_tensors)


def _mask(encoded: BatchEncoding, number: int, length: int, spans: Sequence[Span]) -> list[int]:
    mask = [0] * length
    for start, end in spans:
        if start == end:
            continue
        first, last = encoded.char_to_token(number, start), encoded.char_to_token(number, end - 1)
        if first is None:  # cut off
            break
        stop = length if last is None else last + 1
        mask[first:stop] = [1] * (stop - first)
    return mask
