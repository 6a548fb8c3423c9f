"""Options of the commands beyond the first: generation flags, files of settings, quantization, saved conversations."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quarterdeck import BitsAndBytesConfig, GenerationConfig
from quarterdeck.cli.flags import FLAGS, NOT_HERE, parse_flags
from quarterdeck.cli.loading import load_options
from quarterdeck.cli.main import build_parser, main
from quarterdeck.errors import InputError
from quarterdeck.generation.options import IMPLEMENTED

pytest_plugins = ["checkpoint_fixtures"]


@pytest.fixture
def talk(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(lines: str, *words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", str(checkpoint), *words]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def settings(talk: Any, *words: str) -> set[str]:
    return set(talk("!set\n", *words)[0].splitlines())


# -- generation flags ------------------------------------------------------------------------------------


def test_flags_reach_the_settings_wherever_they_stand(talk: Any) -> None:
    line = [
        "repetition_penalty=1.1",
        "--dtype",
        "float32",
        "temperature=0.6",
        "--system",
        "x=y",
        'stop_strings=["a b"]',
    ]
    assert {
        "repetition_penalty=1.1", "temperature=0.6", "do_sample=True", "top_p=0.75", "top_k=0", "stop_strings=['a b']",
        "max_new_tokens=256",
    } == settings(talk, *line)  # fmt: skip
    assert "do_sample=False" in settings(talk, "do_sample=False", "max_new_tokens=9")
    assert {"do_sample=False", "max_new_tokens=9"} <= settings(talk, "temperature=0", "max_new_tokens=9")


def test_values_are_read_as_transformers_chat_reads_them() -> None:
    words = ["do_sample=True", "max_new_tokens=10", "temperature=0.5", "eos_token_id=[1,2]", "top_p=None", "seed"]
    assert parse_flags(words[:-1]) == {
        "do_sample": True, "max_new_tokens": 10, "temperature": 0.5, "eos_token_id": [1, 2], "top_p": None,
    }  # fmt: skip
    with pytest.raises(InputError, match="name=value"):
        parse_flags(words)
    assert parse_flags(["stop_strings=a b"]) == {"stop_strings": "a b"}  # quoted in the shell


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["temperatur=1"], "temperature"),
        (["num_beams=2"], "num_beams=2 is refused"),
        (["cache_implementation=static"], "cache_implementation"),
        (["max_length=20", "max_length=30"], "twice"),
        (["max_length=30"], "max_new_tokens"),
        (["temperature=hot"], "temperature"),
        (["top_p=2"], "top_p"),
        (["penalty_alpha=0.6"], "penalty_alpha"),
        (["temperature=0.5", "--temperature", "0.4"], "--temperature"),
        (["streamer=x"], "streamer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [["chat", "no/model"], ["run", "x", "--model", "no/model"]], ids=["chat", "run"])
def test_flags_that_cannot_be_are_refused_before_the_model_loads(
    command: list[str], line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *line]) in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors
    assert "no/model" not in errors


def test_flags_without_effect_are_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x", "top_k=5", "--model", str(checkpoint)]) == 2
    assert "do_sample" in capsys.readouterr().err


def test_every_option_of_generation_is_a_flag_or_has_a_reason() -> None:
    assert set(FLAGS) | set(NOT_HERE) == set(IMPLEMENTED)


def test_a_flag_is_no_prompt_and_no_model(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi"))
    assert main(["run", "max_new_tokens=3", "--model", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["output_tokens"] == 3
    assert main(["run", "x=3", "max_new_tokens=4", "--model", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["output_tokens"] == 4
    assert main(["chat", "temperatur=1"]) == 1
    assert "temperature" in capsys.readouterr().err


def test_a_file_of_settings(talk: Any, tmp_path: Path) -> None:
    GenerationConfig(do_sample=True, temperature=0.9, top_k=7, max_new_tokens=5, num_beams=2).save_pretrained(tmp_path)
    own = {"do_sample=True", "temperature=0.9", "top_k=7", "top_p=1.0"}
    for name in (tmp_path, tmp_path / "generation_config.json"):
        assert settings(talk, "--generation_config", str(name)) == own | {"max_new_tokens=5"}
    changed = settings(talk, "--generation_config", str(tmp_path), "--max-tokens", "6", "top_k=8")
    assert changed == {"do_sample=True", "temperature=0.9", "top_k=8", "top_p=1.0", "max_new_tokens=6"}
    assert talk("", "--generation_config", str(tmp_path / "no.json"), code=1)[1]


# -- loading ---------------------------------------------------------------------------------------------


def options(checkpoint: Path, *words: str) -> dict[str, Any]:
    arguments: argparse.Namespace = build_parser().parse_args(["chat", str(checkpoint), *words])
    return load_options(str(checkpoint), arguments)


def test_names_of_transformers_mean_the_same(checkpoint: Path) -> None:
    line = ["--torch_dtype", "bfloat16", "--model_revision", "v1", "--device", "auto", "--attn_implementation", "eager"]
    assert options(checkpoint, *line) == {
        "revision": "v1", "dtype": "bfloat16", "attn_implementation": "eager", "quantization_config": None,
        "device_map": options(checkpoint)["device_map"],
    }  # fmt: skip
    assert options(checkpoint, "--device_map", "auto")["device_map"] == "auto"
    assert options(checkpoint, "--device_map", '{"": "cpu"}')["device_map"] == {"": "cpu"}


def test_flags_of_bitsandbytes(checkpoint: Path) -> None:
    four = options(checkpoint, "--load_in_4bit", "--use_bnb_nested_quant")["quantization_config"]
    assert four == BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    named = options(checkpoint, "--load_in_4bit", "--bnb_4bit_quant_type", "fp4", "--dtype", "bfloat16")
    assert named["quantization_config"].bnb_4bit_compute_dtype is torch.bfloat16
    assert named["quantization_config"].bnb_4bit_quant_type == "fp4"
    assert options(checkpoint, "--load_in_8bit")["quantization_config"].load_in_8bit


@pytest.mark.parametrize("way", ["int8", "int4"])
def test_quantized_models_talk(talk: Any, way: str) -> None:
    shown, errors = talk("Hi\n!status\n", "--quantization", way, "--max-tokens", "3")
    assert errors == ""
    assert f"quantization: {way} (quarterdeck)" in " ".join(shown.split())


def test_status_tells_what_runs(talk: Any, checkpoint: Path) -> None:
    shown, _ = talk("!status\nHi\n!status\n", "--system", "Be brief.", "--max-tokens", "3", "--device", "cpu")
    facts = " ".join(shown.split())
    for fact in (
        f"model: {checkpoint} on cpu",
        "type: float32",
        "questions: 0",
        "questions: 1",
        "Be brief.",
        "of 2048",
    ):
        assert fact in facts


@pytest.mark.parametrize(
    "line",
    [
        ["--trust_remote_code"],
        ["--load_in_4bit", "--load_in_8bit"],
        ["--quantization", "int4", "--load_in_4bit"],
        ["--bnb_4bit_quant_type", "nf4"],
        ["--use_bnb_nested_quant"],
        ["--device", "cpu", "--device_map", "auto"],
    ],
    ids=" ".join,
)
def test_loading_options_that_do_not_go_together(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["chat", "no/model"], ["run", "x", "--model", "no/model"]):
        assert main([*command, *line]) == 2
        assert line[0] in capsys.readouterr().err


# -- conversations that go on ----------------------------------------------------------------------------

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy."}]


@pytest.mark.parametrize("layout", [SAID, {"settings": {"user": None}, "chat_history": SAID}, {"messages": SAID}])
def test_saved_conversations_go_on(talk: Any, tmp_path: Path, layout: Any) -> None:
    (tmp_path / "saved.json").write_text(json.dumps(layout))
    greedy = ["--temperature", "0", "--max-tokens", "6", "--system", "Be brief."]
    first = talk(f"!load {tmp_path}/saved.json\nGo on\n!save {tmp_path}/a.json\n", *greedy)
    second = talk(f"Go on\n!save {tmp_path}/b.json\n", *greedy, "--history", f"{tmp_path}/saved.json")
    assert first[1] == second[1] == ""
    found = json.loads((tmp_path / "a.json").read_text())
    assert found[:-1] == [{"role": "system", "content": "Be brief."}, *SAID, {"role": "user", "content": "Go on"}]
    assert json.loads((tmp_path / "b.json").read_text()) == found


def test_a_system_message_of_the_file_counts(talk: Any, tmp_path: Path) -> None:
    saved = [{"role": "system", "content": "Old."}, *SAID, {"role": "user", "content": "And?"}]
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    shown, errors = talk(f"!load {tmp_path}/saved.json\n!retry\n!undo\n!save {tmp_path}/a.json\n", "--system", "New.")
    assert errors == ""
    assert "!retry asks it" in shown
    assert "forgotten: And?" in shown
    assert json.loads((tmp_path / "a.json").read_text()) == saved[:-1]


@pytest.mark.parametrize("content", ["", "{}", "[]", "7", '[{"role": "pirate", "content": "x"}]', '{"messages": 3}'])
def test_what_is_no_conversation(talk: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "saved.json").write_text(content)
    shown, errors = talk(f"!load {tmp_path}/saved.json\n!load\n!load missing.json\nHi\n", "--max-tokens", "3")
    assert len(errors.splitlines()) == 3
    assert shown.strip()
    assert talk("", "--history", f"{tmp_path}/saved.json", code=1)[1]


def test_retry_and_undo(talk: Any, tmp_path: Path) -> None:
    greedy = ["--temperature", "0", "--max-tokens", "6"]
    answer = talk("Hi\n", *greedy)[0]
    shown, errors = talk(f"!retry\n!undo\nHi\n!retry\nBye\n!undo\n!save {tmp_path}/a.json\n", *greedy)
    assert errors.count("nothing was asked yet") == 2
    assert shown.startswith(answer * 2)
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer.removesuffix("\n")},
    ]  # fmt: skip


def test_unnamed_files_go_to_the_folder(talk: Any, tmp_path: Path) -> None:
    talk("Hi\n!save\n", "--max-tokens", "3", "--save_folder", str(tmp_path / "logs" / "today"))
    (saved,) = (tmp_path / "logs" / "today").iterdir()
    assert json.loads(saved.read_text())[0] == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.yaml", "tides:\n  text: Why two?\nknots: How?\n"),
        ("e.json", '{"tides": {"text": "Why two?"}, "knots": "How?"}'),
    ],
)
def test_examples_are_asked_with_the_system_message(talk: Any, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    line = ["--examples_path", str(tmp_path / name), "--system", "Be brief.", "--max-tokens", "3"]
    shown, errors = talk(f"!example\n!example none\n!example tides\n!save {tmp_path}/a.json\n", *line)
    assert "tides: Why two?\nknots: How?\n" in shown
    assert "'none'; there are tides, knots" in errors
    said = json.loads((tmp_path / "a.json").read_text())
    assert [message["content"] for message in said[:2]] == ["Be brief.", "Why two?"]


@pytest.mark.parametrize(("name", "text"), [("e.yaml", "a: ["), ("e.json", "["), ("e.yaml", "- a"), ("e.yaml", "a: 3")])
def test_examples_that_are_none(talk: Any, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert name in talk("", "--examples_path", str(tmp_path / name), code=1)[1]


def test_verbose_tells_what_answers_take(talk: Any) -> None:
    shown, _ = talk("Hi\n", "--verbose", "--max-tokens", "3")
    assert "tokens read, 3 written" in shown


def test_a_backslash_joins_lines_without_a_terminal(talk: Any, tmp_path: Path) -> None:
    talk(f"one\\\ntwo\n!save {tmp_path}/a.json\n", "--max-tokens", "3")
    assert json.loads((tmp_path / "a.json").read_text())[0]["content"] == "one\ntwo"


def test_a_flag_is_the_option_of_that_name(talk: Any) -> None:
    assert talk("Hi\n", "--seed", "1", "temperature=2.0") == talk("Hi\n", "--seed", "1", "--temperature", "2")
