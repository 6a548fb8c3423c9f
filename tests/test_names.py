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


# tests that walk over all names themselves, so that no name stands in them
WALKS = {
    "test_config.py::test_every_documented_parameter_has_its_default": "over the parameters of the peer's constructor",
    "test_names.py::test_what_is_said_not_to_be_here_is_not": "over the rows of the page",
    "test_generation_config.py::test_arguments_that_are_not_there_are_refused_by_name": "over the arguments refused",
}
# what stands for arguments without names of their own
NAMELESS = {"kwargs", "generate_kwargs", "model_args"}


@dataclass(frozen=True)
class Source:
    """The definitions of a file of tests: source by name, and which of them each refers to."""

    texts: dict[str, str]
    uses: dict[str, set[str]]

    def behind(self, name: str) -> str:
        """What a test is made of: itself, and the tables, fixtures and functions of its file that it refers to."""
        found, waiting = {name}, [name]
        while waiting:
            new = self.uses[waiting.pop()] - found
            found |= new
            waiting += new
        return "\n".join(self.texts[one] for one in found)


@cache
def source_of(file: str) -> Source:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    lines, nodes = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes[node.name] = (min([node.lineno, *(one.lineno for one in node.decorator_list)]), node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                nodes |= {one.id: (node.lineno, node) for one in ast.walk(target) if isinstance(one, ast.Name)}
    texts = {name: "\n".join(lines[first - 1 : node.end_lineno]) for name, (first, node) in nodes.items()}
    return Source(texts, {name: _names_in(node) & set(nodes) for name, (_, node) in nodes.items()})


def _names_in(node: ast.AST) -> set[str]:
    """Names that are used, and arguments, which may be fixtures."""
    return {
        one.id if isinstance(one, ast.Name) else one.arg
        for one in ast.walk(node)
        if isinstance(one, ast.Name | ast.arg)
    }


@pytest.mark.parametrize("row", [pytest.param(row, id=row.names[0]) for row in rows()])
def test_behind_each_name_stands_a_test(row: Row) -> None:
    file, _, function = row.test.partition("::")
    source = source_of(file)
    assert function.startswith("test_")
    assert function in source.texts
    if row.test not in WALKS:
        code = source.behind(function)
        if file == "test_documentation_pages.py":
            code += "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "tests/pages").glob("*.md")))
        missing = [name for name in row.names if name not in NAMELESS and not re.search(rf"(?<!\w){name}(?!\w)", code)]
        assert not missing, f"{row.test} says nothing of {missing}"


def test_only_tests_that_are_cited_may_leave_out_names() -> None:
    assert set(WALKS) <= {row.test for row in rows()}


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
