"""The command line: run, env, download, help, errors and exit codes. ``chat`` has a file of its own."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub_stand_in import HubStandIn, Repository, hub_in_place
from quarterdeck import AutoModelForCausalLM, AutoTokenizer, CohereTokenizerFast, __version__
from quarterdeck.cli import download as download_command
from quarterdeck.cli import env as env_command
from quarterdeck.cli import run as run_command
from quarterdeck.cli.main import main
from quarterdeck.errors import CheckpointNotFoundError
from quarterdeck.generation.text import ModelText

pytest_plugins = ["checkpoint_fixtures"]

QUESTION = "Where do the tallest penguins live?"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    yield from hub_in_place(monkeypatch)


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def expected(checkpoint: Path, ids: Any, tokens: int) -> str:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = torch.tensor([ids])
    output = model.generate(prompt, max_new_tokens=tokens, do_sample=False)
    text: str = AutoTokenizer.from_pretrained(checkpoint).decode(output[0, len(ids) :], skip_special_tokens=True)
    return text


# -- run -------------------------------------------------------------------------------------------------


def test_run_answers_through_the_chat_template(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", QUESTION, "--model", str(checkpoint), "--system", "Be brief.", "--max-tokens", "12"]) == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    captured = capsys.readouterr()
    assert captured.out == expected(checkpoint, ids, 12).strip() + "\n"
    assert captured.err == ""


def test_run_continues_text_as_it_is(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "  Plants create energy\nthrough "
    assert main(["run", "--task", "text-generation", "--model", str(checkpoint), "--max-tokens", "12", text]) == 0
    ids = AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"]
    assert capsys.readouterr().out.removesuffix("\n") == expected(checkpoint, ids, 12).removesuffix("\n")


@pytest.mark.parametrize("argument", [[], ["-"]], ids=["absent", "dash"])
def test_run_reads_the_prompt_from_standard_input(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argument: list[str]
) -> None:
    options = ["--model", str(checkpoint), "--max-tokens", "8", "--task", "text-generation"]
    stdin(monkeypatch, "The tallest\n")
    assert main(["run", *argument, *options]) == 0
    piped = capsys.readouterr().out
    assert main(["run", "The tallest", *options]) == 0
    assert piped == capsys.readouterr().out


def test_run_prints_one_json_object(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", QUESTION, "--model", str(checkpoint), "--max-tokens", "9"]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert main(["run", QUESTION, "--model", str(checkpoint), "--max-tokens", "9", "--json"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    assert json.loads(capsys.readouterr().out) == {
        "text": text,
        "citations": [],
        "tool_plan": "",
        "tool_calls": [],
        "finish_reason": "MAX_TOKENS",
        "usage": {"input_tokens": len(prompt), "output_tokens": 9, "cached_tokens": 0},
    }


def test_run_ends_at_an_end_token(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = AutoTokenizer.from_pretrained(checkpoint)("The tallest")["input_ids"]
    output = AutoModelForCausalLM.from_pretrained(checkpoint).generate(torch.tensor([ids]), max_new_tokens=6)
    shutil.copytree(checkpoint, tmp_path / "model")
    settings = {"eos_token_id": [int(output[0, -1]), 1], "bos_token_id": 5, "max_new_tokens": 3, "do_sample": True}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    options = ["--model", str(tmp_path / "model"), "--task", "text-generation", "--json"]
    assert main(["run", "The tallest", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["finish_reason"], answer["usage"]["output_tokens"]) == ("COMPLETE", 6)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert answer["text"] == tokenizer.decode(output[0, len(ids) : -1], skip_special_tokens=True)


def test_run_draws_with_a_temperature_and_repeats_with_a_seed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*options: str) -> str:
        assert main(["run", QUESTION, "--model", str(checkpoint), "--max-tokens", "20", *options]) == 0
        return capsys.readouterr().out

    greedy = answer()
    assert answer("--temperature", "0", "--seed", "1") == greedy
    drawn = answer("--temperature", "1.5", "--seed", "1")
    assert drawn == answer("--temperature", "1.5", "--seed", "1") != greedy
    assert drawn != answer("--temperature", "1.5", "--seed", "2")
    assert answer("--temperature", "1.5", "--top-k", "1", "--top-p", "1.0") == greedy


def test_run_writes_up_to_the_end_of_the_context(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"max_position_embeddings": 16}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    options = ["--model", str(tmp_path / "model"), "--task", "text-generation", "--json"]
    assert main(["run", "1 2 3", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sum(answer["usage"].values()) == 16
    assert answer["finish_reason"] == "MAX_TOKENS"
    assert main(["run", "1 2 3 4 5 6 7 8 9", *options]) == 1
    assert "context" in capsys.readouterr().err


def test_run_takes_backend_type_and_device(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(checkpoint), "--max-tokens", "5"]
    assert main(["run", QUESTION, *options]) == 0
    plain = capsys.readouterr().out
    more = ["--attn_implementation", "eager", "--dtype", "float32", "--device", "cpu"]
    assert main(["run", QUESTION, *options, *more]) == 0
    assert capsys.readouterr().out == plain
    assert main(["run", QUESTION, *options, "--device", "-1", "--dtype", "bfloat16"]) == 0


def test_run_of_a_model_on_the_hub(
    checkpoint: Path,
    hub: HubStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = hub.add_folder("crew/ship", checkpoint)
    repository.names = {"v1": next(iter(repository.commits))}
    assert main(["run", QUESTION, "--model", "crew/ship", "--revision", "v1", "--max-tokens", "5"]) == 0
    downloaded = capsys.readouterr().out
    assert main(["run", QUESTION, "--model", str(checkpoint), "--max-tokens", "5"]) == 0
    assert downloaded == capsys.readouterr().out
    assert main(["run", QUESTION, "--model", "crew/ship", "--revision", "v2"]) == 1
    assert "v2" in capsys.readouterr().err


def test_a_model_without_template_gets_the_prompt_that_its_family_was_trained_with(
    checkpoint: Path, checkpoint_without_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CohereTokenizerFast.from_pretrained(checkpoint_without_template).chat_template is None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    ids = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(messages, add_generation_prompt=True)
    line = ["run", QUESTION, "--system", "Be brief.", "--model", str(checkpoint_without_template), "--json"]
    assert main([*line, "--max-tokens", "6"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == expected(checkpoint, ids, 6).strip()
    assert answer["usage"]["input_tokens"] == len(ids)


# -- wrong usage and failures ----------------------------------------------------------------------------

WRONG = {
    "unknown command": ["sail"],
    "unknown option": ["run", "x", "--bogus"],
    "shortened option": ["run", "x", "--temp", "1"],
    "empty prompt": ["run", ""],
    "blank prompt": ["run", " \n"],
    "max-tokens 0": ["run", "x", "--max-tokens", "0"],
    "max-tokens text": ["run", "x", "--max-tokens", "many"],
    "negative temperature": ["run", "x", "--temperature", "-1"],
    "temperature nan": ["run", "x", "--temperature", "nan"],
    "top-p 0": ["run", "x", "--temperature", "1", "--top-p", "0"],
    "top-p without temperature": ["run", "x", "--top-p", "0.5"],
    "top-k without temperature": ["run", "x", "--top-k", "5", "--temperature", "0"],
    "seed": ["run", "x", "--seed", "-3"],
    "dtype": ["run", "x", "--dtype", "int8"],
    "task": ["run", "x", "--task", "summarization"],
    "system without turns": ["run", "x", "--task", "text-generation", "--system", "y"],
    "chat top-p, greedy": ["chat", "--temperature", "0", "--top-p", "0.5"],
    "download of nothing": ["download"],
    "download of an empty name": ["download", ""],
    "env with an argument": ["env", "x"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_gives_2_and_a_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip()


def test_empty_standard_input_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, "\n")
    assert main(["run"]) == 2
    assert "prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--attn_implementation", "flash_attention_2"], ["--device", "nowhere"]], ids=str)
def test_failures_give_1_and_one_message(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["run", "x", "--model", str(checkpoint), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert options[1] in captured.err
    assert "Traceback" not in captured.err


def test_a_missing_model_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x", "--model", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err.startswith("quarterdeck: there is no folder")


def test_bytes_that_are_no_text_are_a_failure(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("chat", "text-generation"):
        assert main(["run", "caf\udce9", "--task", task, "--model", str(checkpoint)]) == 1
        assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (RuntimeError("out of memory"), 1, "quarterdeck: RuntimeError: out of memory\n"),
        (MemoryError(), 1, "quarterdeck: MemoryError\n"),
        (CheckpointNotFoundError("not there"), 1, "quarterdeck: not there\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(run_command, "_check", fail)
    assert main(["run", "x"]) == code
    assert capsys.readouterr().err == message


def test_mistakes_of_our_own_show_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_command, "_check", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["run", "x"])


# -- help, version, weight -------------------------------------------------------------------------------


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    for command in ("run", "chat", "env", "download"):
        assert f"\n    {command} " in without


@pytest.mark.parametrize("command", ["run", "chat", "env", "download"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: quarterdeck {command}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == __version__ + "\n"


def test_help_and_wrong_usage_import_nothing_heavy() -> None:
    lines = [["--help"], ["--version"], [], *([command, "--help"] for command in ("run", "chat", "env", "download"))]
    lines += [["run", ""], ["run", "x", "--top-p", "0.5"], ["chat", "--bogus"], ["download", ""]]
    code = f"""
import sys
from quarterdeck.cli.main import main
for line in {lines!r}:
    main(line)
heavy = {{"torch", "tokenizers", "numpy", "safetensors", "huggingface_hub", "jinja2", "rich", "transformers"}}
sys.exit(", ".join(heavy & {{name.split(".")[0] for name in sys.modules}}) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- the program itself ----------------------------------------------------------------------------------


def test_the_module_is_the_program(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["run", "-", "--model", str(checkpoint), "--max-tokens", "6"]
    done = subprocess.run([sys.executable, "-m", "quarterdeck", *line], input=QUESTION.encode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert main(["run", QUESTION, *line[2:]]) == 0
    assert done.stdout.decode() == capsys.readouterr().out


def test_a_reader_that_leaves_is_no_mistake(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "quarterdeck", "download", str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors.splitlines()[1:] == []  # no traceback after the note that there is nothing to fetch


def test_characters_that_the_output_lacks_do_not_end_the_program(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(ModelText, "__iter__", lambda self: iter(["é\U0001f427"]))
    assert main(["run", "x", "--model", str(checkpoint)]) == 0
    output.seek(0)
    assert output.read() == "\\xe9\\U0001f427\n"


# -- env -------------------------------------------------------------------------------------------------


def test_env_prints_lines_of_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("- ") and ": " in line for line in lines)
    facts = dict(line[2:].split(": ", 1) for line in lines)
    assert facts["quarterdeck version"] == __version__
    assert facts["Python version"] == sys.version.split()[0]
    assert facts["PyTorch version"] == torch.__version__
    assert facts["CPU threads used by PyTorch"] == str(torch.get_num_threads())
    assert {"Platform", "CPU", "CPU cores", "CPU instruction sets used by PyTorch", "Accelerator"} <= set(facts)
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts


def test_env_names_what_is_missing_and_what_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert env_command._version("no-such-package-anywhere") == "not installed"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert main(["env"]) == 0
    assert "- Accelerator: cuda:0 (Card 0), cuda:1 (Card 1)\n" in capsys.readouterr().out


# -- download --------------------------------------------------------------------------------------------


def test_download_prints_the_folder(
    checkpoint: Path, hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_folder("crew/ship", checkpoint, token="secret")
    line = ["download", "crew/ship", "--cache-dir", str(tmp_path), "--token", "secret"]
    assert main(line) == 0
    folder = Path(capsys.readouterr().out.removesuffix("\n"))
    assert folder.is_relative_to(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    fetched = len(hub.paths())
    assert main(line) == 0
    again = len(hub.paths()) - fetched
    assert main([*line, "--force"]) == 0
    assert len(hub.paths()) - fetched - again > again


def test_download_takes_a_revision(hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commits = {"a" * 40: {"config.json": b"{}"}, "c" * 40: {"config.json": b"[]"}}
    hub.repositories["crew/ship"] = Repository(commits, {"main": "a" * 40, "old": "c" * 40})
    assert main(["download", "crew/ship", "--revision", "old", "--cache-dir", str(tmp_path)]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "config.json").read_text() == "[]"


def test_download_failures_are_messages(hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "crew/raft", "--cache-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "crew/raft" in captured.err


def test_download_of_what_is_here_already(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["download", str(checkpoint)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{checkpoint}\n"
    assert "nothing to fetch" in captured.err
    monkeypatch.setattr(download_command, "local_folder", lambda _: checkpoint)
    monkeypatch.setattr(download_command, "download", lambda *_, **__: checkpoint)
    assert main(["download", "midshipman"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{checkpoint}\n"
    assert "inside the package" in captured.err
    assert main(["download", "midshipman", "--revision", "v1", "--force"]) == 2
    assert "--revision, --force" in capsys.readouterr().err
