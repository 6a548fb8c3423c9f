"""``quarterdeck download``: fetch a model once, use it offline afterwards."""

from __future__ import annotations

import argparse
import sys

from quarterdeck.cli.arguments import Commands, UsageError, add_command
from quarterdeck.locate import EMBEDDED_MODEL, download, local_folder


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "download", "fetch a model from the Hugging Face hub and print its folder", execute)
    parser.add_argument("model", metavar="MODEL", help="id on the hub, such as CohereForAI/c4ai-command-r-v01")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder for the files (default: the hub library's own)")
    parser.add_argument("--token", metavar="TOKEN", help="access token (default: the one stored by 'hf auth login')")
    parser.add_argument("--force", action="store_true", help="fetch again what is there already")


def execute(arguments: argparse.Namespace) -> int:
    """Fetch, with progress on stderr, and print the folder on stdout."""
    if not arguments.model:
        raise UsageError("MODEL is empty; give an id on the hub")
    if local_folder(arguments.model) is not None:
        _check_local(arguments)
    folder = download(
        arguments.model,
        revision=arguments.revision,
        token=arguments.token,
        cache_dir=arguments.cache_dir,
        force_download=arguments.force,
    )
    print(folder)
    return 0


def _check_local(arguments: argparse.Namespace) -> None:
    """Say why there is nothing to fetch; options about fetching are refused."""
    embedded = arguments.model == EMBEDDED_MODEL
    where = "inside the package" if embedded else "a folder on this machine"
    options = {"--revision": arguments.revision, "--cache-dir": arguments.cache_dir, "--token": arguments.token}
    given = [name for name, value in options.items() if value is not None] + ["--force"] * arguments.force
    if given:
        raise UsageError(f"{arguments.model} is {where}, so there is nothing to fetch: leave out {', '.join(given)}")
    print(f"{arguments.model} is {where}; there is nothing to fetch", file=sys.stderr)
