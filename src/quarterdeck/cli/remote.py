"""A conversation with a model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import httpx

from quarterdeck.chat.answers.response import ChatResponse, FinishReason
from quarterdeck.chat.messages import Event, MessageEnd, TextDelta, Usage
from quarterdeck.chat.template import Prompt
from quarterdeck.cli.dialogue import Dialogue
from quarterdeck.cli.event_stream import event_data
from quarterdeck.cli.server_address import Server
from quarterdeck.errors import InputError, QuarterdeckError, UnsupportedOptionError

_PARAMETERS = {
    "max_new_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop_strings": "stop",
    "stop": "stop",
    "logit_bias": "logit_bias",
}
"""From names here to the names of requests. ``top_k``, ``min_p``, ``repetition_penalty``: some servers have them."""

REMOTE_SETTINGS: tuple[str, ...] = (*_PARAMETERS, "do_sample")

_REASONS: Mapping[str, FinishReason] = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL"}
_TIMES = httpx.Timeout(10.0, read=600.0)
_LONGEST_MESSAGE = 500


class ServerError(QuarterdeckError):
    """A server cannot be reached, refuses a request, or breaks off."""


class RemoteConversation(Dialogue):
    """Messages back and forth with a server. Every request has the whole conversation in it.

    Args:
        server: where it is.
        system: message that stands before all others.
        settings: options of generation, by the names of `REMOTE_SETTINGS`; the server decides what is not said.

    Raises:
        ServerError: it cannot be reached, or it is not known which of its models is meant.
        InputError: a setting that requests have no place for.
    """

    def __init__(self, server: Server, system: str | None = None, settings: Mapping[str, Any] | None = None) -> None:
        headers = {} if server.key is None else {"Authorization": f"Bearer {server.key}"}
        self._server = server
        # variables about proxies are not for servers on this machine
        self._client = httpx.Client(headers=headers, timeout=_TIMES, trust_env=not server.is_local)
        self._settings: dict[str, Any] = {}
        super().__init__(system)
        try:
            self.set(settings or {})
            self.model = server.model or self._only_model()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def settings(self) -> dict[str, Any]:
        """Those that were set."""
        return dict(self._settings)

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change settings; None leaves one to the server again."""
        for name, value in changes.items():
            if name not in REMOTE_SETTINGS:
                raise UnsupportedOptionError(
                    f"{name!r} has no place in a request to a server; there are {', '.join(REMOTE_SETTINGS)}"
                )
            if name == "do_sample" and value not in (True, False, None):
                raise InputError(f"do_sample={value!r} must be True or False")
        changed = self._settings | dict(changes)
        if changed.get("do_sample") is False and changed.get("temperature"):
            raise InputError(
                f"do_sample=False asks for the most likely token, and temperature={changed['temperature']} for others"
            )
        self._settings = {name: value for name, value in changed.items() if value is not None}

    def status(self) -> dict[str, str]:
        """Where the model is."""
        return {"server": self._server.url}

    def _request(self) -> dict[str, Any]:
        settings = dict(self._settings)
        if settings.pop("do_sample", None) is False:
            settings["temperature"] = 0
        fields = {_PARAMETERS[name]: value for name, value in settings.items()}
        said = [{"role": message["role"], "content": message.get("content", "")} for message in self.messages]
        return {"model": self.model, "messages": said, "stream": True, **fields}

    def _stream(self) -> Generator[Event]:
        text, reason, tokens = "", None, Usage(0, 0)
        with (
            _failures(self._server.url),
            self._client.stream("POST", f"{self._server.url}/chat/completions", json=self._request()) as response,
        ):
            _check(response)
            for chunk in _chunks(response):
                tokens = _usage(chunk) or tokens
                for choice in chunk.get("choices") or ():
                    piece = _text(choice)
                    text += piece
                    reason = choice.get("finish_reason") or reason
                    if piece:
                        yield TextDelta(piece)
        if reason is None:
            raise ServerError(f"{self._server.url} ended the answer without saying why; what came of it is kept")
        yield MessageEnd(
            ChatResponse(
                uuid.uuid4().hex, text, (), "", (), _REASONS.get(reason, "ERROR"), tokens, None, Prompt((), "default")
            )
        )

    def _only_model(self) -> str:
        url = f"{self._server.url}/models"
        with _failures(self._server.url):
            response = self._client.get(url)
            _check(response)
        names = _model_names(response)
        if len(names) == 1:
            return names[0]
        found = f"has {len(names)} models: {', '.join(names)}" if names else f"names no models at {url}"
        raise ServerError(f"{self._server.url} {found}; say which one is meant by --model_name_or_path NAME")


class _failures:  # noqa: N801  # used as a function: `with _failures(url)`
    """Turns what goes wrong on the way to a server into `ServerError`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise ServerError(f"{self._url} cannot be reached ({error}): is the server running there?") from error
        if isinstance(error, httpx.HTTPError):
            what = str(error) or type(error).__name__
            raise ServerError(f"the connection to {self._url} broke off ({what}); what came is kept") from error


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    hint = ""
    if response.status_code in (401, 403):
        hint = "; give the API key in OPENAI_API_KEY, or in a variable named by --api_key_env"
    elif response.is_redirect:
        hint = f"; it points to {response.headers.get('location')}: give that address"
    message = _error_message(response.text) or response.reason_phrase
    raise ServerError(f"the server answered {response.status_code}: {message}{hint}")


def _error_message(text: str) -> str:
    """What a server says is wrong: OpenAI's ``error.message``, FastAPI's ``detail``, or its text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()[:_LONGEST_MESSAGE]
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:_LONGEST_MESSAGE]


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; of a server that does not stream, its answer as one."""
    if "json" in response.headers.get("content-type", ""):
        response.read()
        yield _object(response.text)
        return
    for data in event_data(response.iter_bytes()):
        if data.strip() == "[DONE]":
            return
        chunk = _object(data)
        if chunk.get("error"):
            raise ServerError(f"the server broke off: {_error_message(data)}; what came is kept")
        yield chunk


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"the server sent something else than an answer: {text.strip()[:_LONGEST_MESSAGE]}")
    return value


def _text(choice: Any) -> str:
    """The text that a choice adds; a refusal is text too."""
    part = choice.get("delta") or choice.get("message") or {}
    return str(part.get("content") or part.get("refusal") or "")


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    given = chunk.get("usage")
    if not isinstance(given, dict):
        return None
    cached = (given.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(given.get("prompt_tokens") or 0, given.get("completion_tokens") or 0, cached)


def _model_names(response: httpx.Response) -> list[str]:
    listed = _object(response.text).get("data")
    return [str(model.get("id")) for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
