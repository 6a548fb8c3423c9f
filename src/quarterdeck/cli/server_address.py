"""Which server to talk to, as a command line says it. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from quarterdeck.cli.arguments import UsageError, positive_int

DEFAULT_HOST, DEFAULT_PORT = "localhost", 8000
KEY_VARIABLE = "OPENAI_API_KEY"

_ADDRESS = re.compile(r"https?://.+|localhost(:[0-9]+)?(/.*)?|[\w.-]+:[0-9]+(/.*)?|\[[0-9a-fA-F:]+\]:[0-9]+(/.*)?")


@dataclass(frozen=True)
class Server:
    """A server and what to ask it for.

    Args:
        url: where its API begins, without a slash at the end: ``http://localhost:8000/v1``.
        model: the model's name there; None asks the server.
        key: what goes into the ``Authorization`` header.
    """

    url: str
    model: str | None = None
    key: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and what the model is called there."""
    group = parser.add_argument_group("server", "instead of a model, the address of an OpenAI-compatible server")
    group.add_argument("--host", metavar="H", help=f"name or address of the server (default: {DEFAULT_HOST})")
    group.add_argument("--port", type=positive_int, metavar="P", help=f"its port (default: {DEFAULT_PORT})")
    group.add_argument(
        "--model_name_or_path",
        "--model-name-or-path",
        metavar="NAME",
        help="the model's name at the server (default: the only one that it has); without a server, another way to "
        "name MODEL",
    )
    group.add_argument(
        "--api_key_env",
        "--api-key-env",
        metavar="VARIABLE",
        help=f"environment variable that holds the server's API key (default: {KEY_VARIABLE}, if it is set and the "
        "connection is encrypted or stays on this machine)",
    )


def is_address(name: str) -> bool:
    """Whether a name is the address of a server; a folder of that name is meant before."""
    return _ADDRESS.fullmatch(name) is not None and not os.path.exists(name)


def server_of(arguments: argparse.Namespace) -> Server | None:
    """The server that a command line asks for; None if it asks for a model.

    Raises:
        UsageError: it asks for both, or twice, or for a key that is not there.
    """
    is_placed = arguments.host is not None or arguments.port is not None
    if arguments.model is not None and not is_address(arguments.model):
        if is_placed:
            raise UsageError(
                f"--host and --port say where a server is, and {arguments.model} is a model that needs none: leave "
                f"them out, or give --model_name_or_path {arguments.model} in place of MODEL to talk to a server"
            )
        return None
    if arguments.model is None and not is_placed:
        return None
    if arguments.model is not None and is_placed:
        raise UsageError(f"{arguments.model} is an address already: leave out --host and --port")
    url = _url(arguments.model or _joined(arguments.host or DEFAULT_HOST, arguments.port or DEFAULT_PORT))
    server = Server(url, arguments.model_name_or_path)
    return Server(url, server.model, _key(server, arguments.api_key_env))


def _joined(host: str, port: int) -> str:
    if "//" in host:
        return f"{host}:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(address: str) -> str:
    """With a scheme, and with the path where such APIs usually begin if there is none."""
    parts = urlsplit(address if "//" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{address} has no port that can be right: {error}") from error
    if not parts.hostname:
        raise UsageError(f"{address} names no server; write, say, http://{DEFAULT_HOST}:{DEFAULT_PORT}/v1")
    if parts.username or parts.password:
        raise UsageError("an address with a password in it is refused: put the key into the environment, --api_key_env")
    if parts.hostname == "localhost" and port is None and parts.scheme == "http":
        parts = parts._replace(netloc=f"localhost:{DEFAULT_PORT}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _key(server: Server, variable: str | None) -> str | None:
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise UsageError(f"--api_key_env {variable}: there is no such environment variable, or it is empty")
        return key
    is_safe = server.is_local or server.url.startswith("https://")
    return os.environ.get(KEY_VARIABLE) or None if is_safe else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
