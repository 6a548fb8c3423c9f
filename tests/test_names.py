"""docs/names.md lists every name that transformers documents, and a test that exists for each.

The names are read off the signatures of the installed transformers, so that the page cannot forget one.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import quarterdeck
from parity import transformers
from quarterdeck.cli.main import build_parser

ROOT = Path(__file__).parents[1]
# what transformers 5 documents besides
FIVE = {
    "CohereConfig": "rope_parameters architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id "
    "output_hidden_states problem_type return_dict transformers_version",
    "CohereTokenizerFast": "vocab merges",
}


@dataclass(frozen=True)
class Row:
    names: tuple[str, ...]
    state: str
    test: str


@cache
def sections() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for heading, body in re.findall(r"^## (.*)\n((?:(?!^## ).*\n?)*)", (ROOT / "docs/names.md").read_text(), re.M):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines() if "`" in line]
        found[heading] = [
            Row(tuple(re.findall(r"`([^`]+)`", names)), state, test.strip(" `|")) for names, state, test in rows
        ]
    return found


def rows() -> list[Row]:
    return [row for section in sections().values() for row in section]


def names_of(heading: str) -> list[str]:
    return [name for row in sections()[heading] for name in row.names]


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls", "deprecated_kwargs"}


def members(kind: type, without: type = object) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_") and not hasattr(without, name)}


def documented() -> dict[str, set[str]]:
    """The names that each section of the page must hold."""
    tf = transformers
    loading = re.findall(r"^ {12}(\w+) \(", tf.PreTrainedModel.from_pretrained.__doc__, re.M)
    inner = {"from_text_audio_configs", "from_text_vision_configs", "has_no_defaults_at_init", "dict_dtype_to_str"}
    plans = {"base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan"}
    config = (
        members(tf.CohereConfig)
        - inner
        - plans
        - {
            *("attribute_map", "base_config_key", "sub_configs", "get_config_dict", "update_from_string"),
            *("push_to_hub", "register_for_auto_class"),
        }
    )
    return {
        "CohereConfig": arguments(tf.CohereConfig.__init__) | config | set(FIVE["CohereConfig"].split()),
        "CohereTokenizerFast": arguments(tf.CohereTokenizerFast.__init__)
        | members(tf.CohereTokenizerFast)
        | set(FIVE["CohereTokenizerFast"].split()),
        "Calling a tokenizer": arguments(tf.PreTrainedTokenizerFast.__call__),
        "apply_chat_template": arguments(tf.PreTrainedTokenizerFast.apply_chat_template),
        "forward": arguments(tf.CohereForCausalLM.forward),
        "from_pretrained of models": set(loading) | arguments(tf.PreTrainedModel.from_pretrained),
        "save_pretrained of models": arguments(tf.PreTrainedModel.save_pretrained)
        - {"token", "save_peft_format", "kwargs"},
        "Models": members(tf.CohereForCausalLM, torch.nn.Module),
        "generate": arguments(tf.GenerationMixin.generate),
        "GenerationConfig": set(tf.GenerationConfig().to_dict()) - {"_from_model_config"},
        "pipeline": arguments(tf.pipeline) | arguments(tf.TextGenerationPipeline._sanitize_parameters),
        "BitsAndBytesConfig": arguments(tf.BitsAndBytesConfig.__init__),
        "Caches, streamers, visualizer": {name for name in dir(tf) if name.endswith("Cache")}
        | {"TextStreamer", "TextIteratorStreamer", "AttentionMaskVisualizer"},
        "Commands": {"chat", "run", "env", "download", "serve", "convert", "add-new-model-like"},
    }


@pytest.mark.parametrize("heading", sections())
def test_no_documented_name_is_missing(heading: str) -> None:
    assert documented()[heading] <= set(names_of(heading))


def test_no_name_is_listed_twice() -> None:
    for heading in sections():
        listed = names_of(heading)
        assert sorted(listed) == sorted(set(listed)), heading


def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.names[0]) for row in rows()])
def test_behind_each_name_stands_a_test(row: Row) -> None:
    file, _, function = row.test.partition("::")
    assert function in _tests_in(ROOT / "tests" / file)


def _absent(states: Iterable[str] = ("not here",)) -> list[tuple[str, str]]:
    return [
        (heading, name)
        for heading, section in sections().items()
        for row in section
        if row.state.startswith(tuple(states))
        for name in row.names
    ]


def test_what_is_said_not_to_be_here_is_not() -> None:
    homes = {
        "CohereTokenizerFast": quarterdeck.CohereTokenizerFast,
        "Models": quarterdeck.CohereForCausalLM,
        "Caches, streamers, visualizer": quarterdeck,
    }
    commands = build_parser().format_help()
    for heading, name in _absent():
        if heading == "Commands":
            assert f"    {name} " not in commands
        else:
            assert not hasattr(homes[heading], name), name


def test_what_is_said_to_be_here_is() -> None:
    absent = set(_absent())
    homes = {"Models": quarterdeck.CohereForCausalLM, "CohereConfig": quarterdeck.CohereConfig()}
    for heading, home in homes.items():
        for name in set(names_of(heading)) - {"kwargs"}:
            if (heading, name) not in absent and "kept as attributes" not in _state(heading, name):
                assert hasattr(home, name), name
    for name in names_of("Caches, streamers, visualizer"):
        assert ("Caches, streamers, visualizer", name) in absent or hasattr(quarterdeck, name), name


def _state(heading: str, name: str) -> str:
    return next(row.state for row in sections()[heading] if name in row.names)
