"""A stand-in for the hub's HTTP interface, on this machine only, for tests of downloads.

It knows what `huggingface_hub` asks for: the description of a revision and the files in it, with the headers that
its cache goes by, and the hub's error codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

MAIN = "a" * 40
OLDER = "b" * 40


@dataclass
class Repository:
    """Files by commit, names of commits, and who may read."""

    commits: dict[str, dict[str, bytes]]
    names: dict[str, str] = field(default_factory=lambda: {"main": MAIN})
    token: str | None = None  # only this token may read
    gated: bool = False  # nobody may read before accepting the terms
    refused: bool = False  # an error without a code

    def commit(self, revision: str) -> str | None:
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class HubStandIn:
    """The running stand-in: what it serves, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization

    def add_folder(self, name: str, folder: Path, **options: Any) -> Repository:
        """Serves the files of a folder as the main revision of ``name``."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[name] = Repository({MAIN: files}, **options)
        return self.repositories[name]

    def paths(self, method: str = "GET") -> list[str]:
        return [path for asked, path, _ in self.requests if asked == method]


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    """Starts a stand-in on a free port of the loopback interface."""
    hub = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub_in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The body of a fixture: `huggingface_hub` talks to a stand-in, and its connections are closed at the end."""
    with running_hub() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
        close = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils._http.reset_sessions
        close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""

    def _answer(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append((self.command, path, self.headers["Authorization"]))
        if path.startswith("/api/models/") and "/tree/" in path:
            self._list(*path.removeprefix("/api/models/").split("/tree/"))
        elif path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._describe(name, revision or "main")
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, filename = rest.partition("/")
            self._file(name, revision, filename)
        else:
            self._send(404, b"")

    def _readable(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None after having answered with an error."""
        repository = self.hub.repositories.get(name)
        allowed = repository is not None and self.headers["Authorization"] == f"Bearer {repository.token}"
        if repository is None or (repository.token is not None and not allowed):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.refused:
            self._send(403, b"")
        elif repository.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif (commit := repository.commit(revision)) is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return commit, repository.commits[commit]
        return None

    def _describe(self, name: str, revision: str) -> None:
        found = self._readable(name, revision)
        if found is not None:
            siblings = [{"rfilename": filename} for filename in found[1]]
            content = {"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []}
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _list(self, name: str, revision: str) -> None:
        found = self._readable(name, revision)
        if found is not None:
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in found[1].items()
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, filename: str) -> None:
        found = self._readable(name, revision)
        if found is None:
            return
        commit, files = found
        if filename not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        etag = hashlib.sha256(files[filename]).hexdigest()
        self._send(200, files[filename], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
