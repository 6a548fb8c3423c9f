"""Questions with names, for ``!example``: some of our own, or those of a file.

tides: Why are there two tides a day?          # YAML, or the same as JSON
knots:
text: How do I tie a bowline?                # as in the files for `transformers chat`
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quarterdeck.errors import InputError, MissingPackageError

EXAMPLES: Mapping[str, str] = {
    "penguins": "Where do the tallest penguins live?",
    "tides": "Explain in three sentences why there are two high tides a day.",
    "code": "Write a Python function that gives the n-th prime number, with a docstring and an example.",
    "table": "Compare a sloop, a ketch and a schooner in a Markdown table with three rows.",
    "letter": "Write a short, polite letter that asks a neighbour to practise the trombone before nine.",
    "translate": "Translate into French, Spanish and German: The harbour lies quiet under the snow.",
}


def read_examples(name: str | None) -> dict[str, str]:
    """Name and question of each example.

    Raises:
        InputError: the file is not there, or not as above.
        MissingPackageError: it is YAML, and PyYAML is not installed.
    """
    if name is None:
        return dict(EXAMPLES)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"--examples_path: there is no file {path}")
    found = _parsed(path)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} must map names to questions, such as 'tides: Why are there two tides a day?'")
    return {str(key): _question(path, key, value) for key, value in found.items()}


def _question(path: Path, key: Any, value: Any) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{path}: the example {key!r} must be a text, or have one called 'text'")
    return text


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from error
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise MissingPackageError("PyYAML", None, f"reading {path}") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
