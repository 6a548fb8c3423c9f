"""The published examples of both versions of the page "Cohere", with only the import and the model's name changed.

The blocks are kept in ``tests/pages`` as they were published. Every block of Python runs here on Quarterdeck, each
alone with the few names that the page assumes; those of the page of transformers 4.56.2 run on transformers as well,
from the same seeds, and print the same. The model is the embedded one under the templates of Command-R.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from parity import transformers
from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereConfig, CohereTokenizer
from quarterdeck.chat.prompts.families import builtin_templates
from quarterdeck.cli.main import build_parser, main

PAGES = Path(__file__).parent / "pages"
NAME = "CohereForAI/c4ai-command-r-v01"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_PROMPT = re.compile(r"^>>>? ?", re.M)


def blocks(page: str, language: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return [_PROMPT.sub("", code) for kind, code in _BLOCK.findall(text) if kind == language]


def as_quarterdeck(code: str) -> str:
    return re.sub(r"from transformers(\.utils\.attention_visualizer)? import", "from quarterdeck import", code)


@pytest.fixture(scope="module")
def command_r(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model in a folder of its own, with the three templates of Command-R."""
    folder = tmp_path_factory.mktemp("pages") / "c4ai-command-r-v01"
    AutoModelForCausalLM.from_pretrained("midshipman", dtype="auto").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained("midshipman", chat_template=builtin_templates("c4ai-command-r-v01"))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def assumed(command_r: str) -> dict[str, Any]:
    """Names that examples of the page use without saying where they come from."""
    return {
        "CohereTokenizer": CohereTokenizer,
        "model": AutoModelForCausalLM.from_pretrained(command_r),
        "prompt": "<BOS_TOKEN>What's the biggest penguin in the world?",
        "grounded_generation_prompt": "<BOS_TOKEN>What's the biggest penguin in the world?",
    }


def run(code: str, folder: str, names: dict[str, Any]) -> tuple[str, list[Any]]:
    """Runs a block line by line as at Python's prompt: what it prints, and the values that it shows."""
    torch.manual_seed(0)
    printed, shown = io.StringIO(), []
    tree = ast.parse(code.replace(NAME, folder))
    with contextlib.redirect_stdout(printed), mock.patch.object(sys, "displayhook", shown.append):
        for node in tree.body:
            exec(compile(ast.Interactive([node]), "page", "single"), names)
    return printed.getvalue(), [value for value in shown if value is not None]


def cases(page: str) -> list[Any]:
    codes = blocks(page, "python")
    return [pytest.param(code, id=f"{page.removesuffix('.md')}-{index}") for index, code in enumerate(codes)]


@pytest.mark.parametrize("code", [*cases("transformers-4.56.2.md"), *cases("transformers-5.15.1.md")])
def test_an_example_of_the_page_runs(code: str, command_r: str, assumed: dict[str, Any]) -> None:
    whole_size = "CohereModel(configuration)" in code  # 35 billion parameters, of which the page uses no value
    with torch.device("meta") if whole_size else contextlib.nullcontext():
        printed, shown = run(as_quarterdeck(code), command_r, dict(assumed))
    assert printed or shown or whole_size


@pytest.mark.parametrize("code", cases("transformers-4.56.2.md"))
def test_an_example_prints_what_transformers_prints(code: str, command_r: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CohereModel(configuration)" in code:
        ours, theirs = CohereConfig().to_dict(), transformers.CohereConfig().to_dict()
        assert {name: value for name, value in theirs.items() if name in ours} == ours
        return
    code = code.replace("torch.float16", "torch.float32")  # a sum rounded differently may change what is drawn
    monkeypatch.setitem(sys.modules, "PIL", mock.MagicMock())  # their visualizer wants it for pictures
    theirs = run(code.replace("device=0", 'device="cpu"'), command_r, {})
    assert run(as_quarterdeck(code), command_r, {}) == theirs


@pytest.mark.parametrize("page", ["transformers-4.56.2.md", "transformers-5.15.1.md"])
def test_the_command_of_the_page(page: str, command_r: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(page, "bash")
    line = block.splitlines()[-1].replace("transformers chat", "quarterdeck chat").replace(NAME, command_r)
    words = shlex.split(line)[1:]
    assert build_parser().parse_args(words).attn_implementation == "flash_attention_2"
    assert main(words) == 1  # on a machine without flash-attn or a GPU it says so
    assert "flash" in capsys.readouterr().err
