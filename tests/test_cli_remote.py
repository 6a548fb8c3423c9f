"""``quarterdeck chat`` with a server: what is asked, what is shown, what is kept when it breaks off."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quarterdeck.cli.event_stream import event_data
from quarterdeck.cli.main import main
from quarterdeck.cli.remote import RemoteConversation, ServerError
from quarterdeck.cli.server_address import Server, is_address


class ServerStandIn:
    """Answers with what a test prepared, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.models: list[str] = ["ship"]
        self.status = 200
        self.body = b""
        self.kind = "text/event-stream"
        self.breaks_off = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def says(self, *pieces: str, reason: str | None = "stop", done: bool = True, **usage: int) -> None:
        chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
        chunks += [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        if reason:
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if usage:
            chunks.append({"choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)
        self.body = (text + "data: [DONE]\n\n" * done).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.asked.append((self.path, {}, dict(self.headers)))
                listed = {"data": [{"id": name} for name in stand_in.models]}
                self._reply(200, "application/json", json.dumps(listed).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append((self.path, body, dict(self.headers)))
                self._reply(stand_in.status, stand_in.kind, stand_in.body)

            def _reply(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Connection", "close")
                self.send_header("Content-Length", str(len(body) + stand_in.breaks_off * (kind != "application/json")))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerStandIn]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    stand_in = ServerStandIn()
    thread = threading.Thread(target=stand_in.http.serve_forever, args=(0.01,))
    thread.start()
    yield stand_in
    stand_in.http.shutdown()
    thread.join()
    stand_in.http.server_close()


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(lines: str, *words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", *words]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_a_conversation_goes_to_the_server_and_back(server: ServerStandIn, talk: Any) -> None:
    server.says("Ahoy", " 企鵝\u2028", "!")
    shown, errors = talk("Hi\nAnd you?\n", server.url, "--model_name_or_path", "x", "--system_prompt", "Be brief.")
    assert shown == "Ahoy 企鵝\u2028!\n" * 2
    assert errors == ""
    path, body, headers = server.asked[-1]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "x",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ahoy 企鵝\u2028!"},
            {"role": "user", "content": "And you?"},
        ],
    }
    assert "Authorization" not in headers


def test_only_settings_that_were_said_are_sent(server: ServerStandIn, talk: Any) -> None:
    server.says("a")
    line = [server.url, "--max-tokens", "7", "top_p=0.5", "--seed", "3", 'stop_strings=["x y"]', "do_sample=False"]
    talk("Hi\n!set do_sample=None temperature=0.5 max_new_tokens=9 seed=None\nHi\n", *line)
    assert [path for path, *_ in server.asked] == ["/v1/models", *["/v1/chat/completions"] * 2]
    fields = [{k: v for k, v in body.items() if k not in ("messages", "stream")} for _, body, _ in server.asked[1:]]
    assert fields == [
        {"model": "ship", "max_tokens": 7, "top_p": 0.5, "seed": 3, "stop": ["x y"], "temperature": 0},
        {"model": "ship", "max_tokens": 9, "top_p": 0.5, "stop": ["x y"], "temperature": 0.5},
    ]
    _, errors = talk("!set num_beams=2\n!set do_sample=False temperature=1\n", server.url)
    assert "'num_beams' has no place in a request" in errors
    assert "do_sample=False" in errors


@pytest.mark.parametrize("models", [[], ["ship", "raft"]])
def test_the_model_has_to_be_named_unless_there_is_only_one(
    server: ServerStandIn, talk: Any, models: list[str]
) -> None:
    server.models = models
    _, errors = talk("Hi\n", server.url, code=1)
    assert "--model_name_or_path" in errors
    assert all(name in errors for name in models)


def test_host_and_port(server: ServerStandIn, talk: Any) -> None:
    server.says("a")
    port = server.url.rpartition(":")[2]
    for line in (
        ["--host", "127.0.0.1", "--port", port],
        [f"127.0.0.1:{port}/v1/"],
        [f"{server.url}/v1/chat/completions"],
    ):
        assert talk("Hi\n", *line)[0] == "a\n"
    assert {path for path, *_ in server.asked} == {"/v1/models", "/v1/chat/completions"}


def test_keys_come_from_the_environment(server: ServerStandIn, talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.says("a")
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("MY_KEY", "two")
    talk("Hi\n", server.url)
    talk("Hi\n", server.url, "--api_key_env", "MY_KEY")
    keys = [headers["Authorization"] for path, _, headers in server.asked if path != "/v1/models"]
    assert keys == ["Bearer one", "Bearer two"]
    assert "NO_KEY" in talk("Hi\n", server.url, "--api_key_env", "NO_KEY", code=2)[1]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, '{"error": {"message": "too long", "type": "x"}}', "400: too long"),
        (401, '{"error": "who?"}', "--api_key_env"),
        (422, '{"detail": [{"loc": ["top_k"]}]}', "top_k"),
        (500, "Internal Server Error", "500: Internal Server Error"),
        (307, "", "it points to"),
    ],
)
def test_errors_of_the_server_are_shown_and_the_session_goes_on(
    server: ServerStandIn, talk: Any, status: int, body: str, message: str
) -> None:
    server.status, server.body, server.kind = status, body.encode(), "text/html"
    shown, errors = talk("Hi\n!retry\n!status\n", server.url)
    assert errors.count(message) == 2  # the question is not lost
    assert "questions: 0" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"", "without saying why"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b"data: nonsense\n\n", "nonsense"),
        (None, "broke off"),
    ],
)
def test_a_broken_stream_keeps_what_came(server: ServerStandIn, talk: Any, tail: bytes | None, message: str) -> None:
    server.says("Half", " an", reason=None, done=False)
    server.body += tail or b""
    server.breaks_off = tail is None
    shown, errors = talk("Hi\nGo on\n", server.url, "--model_name_or_path", "x")
    assert message in errors
    assert shown == "Half an\n" * 2
    assert server.asked[-1][1]["messages"][1] == {"role": "assistant", "content": "Half an"}


def test_a_server_that_does_not_stream_or_says_no_done(server: ServerStandIn, talk: Any) -> None:
    server.says("a", done=False)
    assert talk("Hi\n", server.url)[0] == "a\n"
    server.kind = "application/json"
    server.body = json.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}).encode()
    assert talk("Hi\n", server.url) == ("whole\n", "")


def test_what_an_answer_took(server: ServerStandIn, talk: Any) -> None:
    server.says("a", prompt_tokens=11, completion_tokens=7)
    assert "11 tokens read, 7 written" in talk("Hi\n", server.url, "--verbose")[0]


def test_a_server_that_is_not_there(server: ServerStandIn, talk: Any) -> None:
    server.http.server_close()
    _, errors = talk("", server.url, code=1)
    assert "cannot be reached" in errors
    with pytest.raises(ServerError):
        RemoteConversation(Server(server.url))


@pytest.mark.parametrize(
    "line",
    [
        ["http://localhost:1", "--port", "2"],
        ["midshipman", "--host", "localhost"],
        ["http://localhost:1", "--dtype", "float32"],
        ["http://localhost:1", "--load_in_4bit"],
        ["http://localhost:1", "--documents", "x"],
        ["http://localhost:1", "--generation_config", "x"],
        ["http://me:secret@localhost:1"],
        ["http://localhost:port"],
        ["midshipman", "--model_name_or_path", "other"],
        ["--api_key_env", "X"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together(line: list[str], talk: Any) -> None:
    assert talk("", *line, code=2)[1]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http://h", "https://h:1/v1", "localhost", "localhost:8000", "h.example:80/v1", "[::1]:8000"):
        assert is_address(name)
    for name in ("CohereForAI/aya-23-8B", "midshipman", "./model", "C:", "a:b"):
        assert not is_address(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localhost").mkdir()
    assert not is_address("localhost")


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_events_come_out_of_any_pieces(size: int) -> None:
    stream = "data: é\u2028\x85\r\n\r\n: hello\nevent: x\ndata:a\ndata: b\n\ndata: last\r\n".encode()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert list(event_data(pieces)) == ["é\u2028\x85", "a\nb", "last"]
