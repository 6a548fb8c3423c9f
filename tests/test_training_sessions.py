"""Sessions of training/midshipman/train.py: what is refused before anything is written, and what is kept of each."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, InputError
from quarterdeck.training.midshipman import evaluate as evaluation
from quarterdeck.training.script import run_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which is no part of the installed package; it makes no batches here."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("training.midshipman.train")
    monkeypatch.setattr(module, "make_batches", lambda args: FewSteps())
    monkeypatch.setattr(module, "make_trainer", lambda args, options, batches: FewSteps(args.run))
    return module


class FewSteps:
    """Stands for the batches and for a trainer whose sessions have three steps each."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.progress, self.step = folder, self, 0

    def close(self) -> None:
        pass

    def resume(self) -> None:
        assert self.folder
        self.step = json.loads((self.folder / "checkpoint/state.json").read_text())["step"]

    def run(self, stop_seconds: float | None) -> None:
        assert self.folder
        self.step += 3
        (self.folder / "checkpoint").mkdir(exist_ok=True)
        (self.folder / "checkpoint/state.json").write_text(json.dumps({"step": self.step}))


@pytest.fixture
def arguments(train: ModuleType, tmp_path: Path) -> list[str]:
    """Of a run whose data is there."""
    (tmp_path / "data").mkdir()
    for name in train.DATA_FILES:
        (tmp_path / "data" / name).touch()
    (tmp_path / "run").mkdir()
    return ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--size", "tiny", "--steps", "9"]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/settings.json").read_text())
    return found


def test_settings_keep_the_command_of_every_session(train: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    train.main(arguments)
    train.main([*arguments, "--resume", "--matrix-lr", "0.01", "--workers", "0", "--steps", "12"])
    train.main([*arguments[:-2], "--resume", "--minutes", "5", "--tokens", "4096"])
    found = settings(tmp_path)
    assert [one["step"] for one in found["sessions"]] == [0, 3, 6]
    told = [[one["command"][name] for name in ("matrix_lr", "steps", "minutes")] for one in found["sessions"]]
    assert told == [["0.02", "9", None], ["0.01", "12", None], ["0.02", None, "5.0"]]
    assert found["command"] == found["sessions"][-1]["command"]
    assert found["architecture"] == train.architecture("tiny", 0.5)


def test_settings_from_before_sessions_were_listed_are_taken_on(
    train: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    train.main(arguments)
    older = settings(tmp_path)
    del older["sessions"]
    (tmp_path / "run/settings.json").write_text(json.dumps(older))
    train.main([*arguments, "--resume"])
    assert [one["step"] for one in settings(tmp_path)["sessions"]] == [None, 3]
    assert settings(tmp_path)["sessions"][0]["command"] == older["command"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"/run holds the checkpoint of a run.*\(--resume\).*\(--run\)"),
        (["--resume", "--size", "small"], "hidden_size 64, now 192; .*give --size.*another --run"),
        (["--resume", "--logit-scale", "1"], "logit_scale 0.5, now 1.0"),
        (["--resume", "--seed", "2"], "seed 1, now 2"),
        (["--resume", "--matrix-optimizer", "adamw"], "matrix_optimizer muon, now adamw"),
        (["--resume", "--steps", "0"], "steps=0 trains nothing"),
        (["--resume", "--data", "nowhere"], "nowhere has no passages.jsonl, .*prepare --out nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_spoil_a_run_is_refused_before_anything_is_written(
    train: ModuleType, arguments: list[str], tmp_path: Path, more: list[str], message: str
) -> None:
    train.main(arguments)
    (tmp_path / "run/log.jsonl").write_text('{"step": 2}\n')
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        train.main([*arguments, *more])
    assert files(tmp_path) == before


def test_nothing_to_resume_is_said_before_anything_is_written(
    train: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no training checkpoint in .*/run/checkpoint"):
        train.main([*arguments, "--resume"])
    assert not files(tmp_path / "run")
    train.main(arguments)
    (tmp_path / "run/settings.json").write_text('{"arch')
    with pytest.raises(CheckpointCorruptError, match=r"settings\.json is no JSON"):
        train.main([*arguments, "--resume"])
    (tmp_path / "run/settings.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"settings\.json is missing"):
        train.main([*arguments, "--resume"])


def test_a_run_that_no_checkpoint_is_left_of_may_be_begun_again(
    train: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run/settings.json").write_text("{}")
    train.main(arguments)
    assert [one["step"] for one in settings(tmp_path)["sessions"]] == [0]


def test_a_session_that_is_too_short_to_log_says_how_many_steps_were_done(
    train: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(arguments)  # leaves no log
    assert "steps done in this session: 3; in all: 3\nlog.jsonl has no line yet" in capsys.readouterr().out
    (tmp_path / "run/log.jsonl").write_text('{"st')  # of a process that was killed
    train.main([*arguments, "--resume"])
    assert "steps done in this session: 3; in all: 6\nlog.jsonl has no line yet" in capsys.readouterr().out
    (tmp_path / "run/log.jsonl").write_text('{"step": 6, "tokens": 9, "loss": 1.0}\n')
    train.main([*arguments, "--resume"])
    assert capsys.readouterr().out.endswith('in all: 9\n{"step": 6, "tokens": 9, "loss": 1.0}\n')
    assert (tmp_path / "run/curves.csv").is_file()


def test_a_sweep_runs_again_where_it_has_run(
    train: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = importlib.import_module("training.midshipman.sweep")
    line = {"step": 3, "tokens": 9, "loss": 1.0, "held_out": {"a": 2.0}, "accuracy": {"a": 0.5}}

    class Logged(FewSteps):
        def run(self, stop_seconds: float | None) -> None:
            super().run(stop_seconds)
            assert self.folder
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def make_trainer(args: Any, options: Any, batches: Any) -> Logged:
        args.run.mkdir(parents=True, exist_ok=True)
        return Logged(args.run)

    monkeypatch.setattr(train, "make_trainer", make_trainer)
    for _ in range(2):
        sweep.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "sweep"), "--grid", "seed=2"])
        for name in ("defaults", "seed-2"):
            assert len((tmp_path / "sweep" / name / "log.jsonl").read_text().splitlines()) == 1
            assert name in (tmp_path / "sweep/sweep.md").read_text()


def test_what_would_be_compiled_at_every_step_is_refused(train: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--compile does not go with --attention packed"):
        train.main(["--run", str(tmp_path / "run"), "--data", str(tmp_path), "--steps", "2", "--compile"])
    assert not (tmp_path / "run").exists()


def test_a_sweep_without_data_says_how_to_make_it(train: ModuleType, tmp_path: Path) -> None:
    sweep = importlib.import_module("training.midshipman.sweep")
    with pytest.raises(InputError, match=r"python -m training\.midshipman\.prepare --out"):
        sweep.main(["--data", str(tmp_path), "--out", str(tmp_path / "sweep")])
    assert not (tmp_path / "sweep").exists()


def test_the_help_says_how_many_workers_there_are(
    train: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert train.parse(["--device", "cpu"]).workers == 1
    assert train.parse(["--device", "cuda"]).workers == 7
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    assert "default: 1, on a GPU all cores but 1" in " ".join(capsys.readouterr().out.split())


def test_an_error_of_ours_is_one_line_and_no_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "no model"
    empty.mkdir()
    assert run_script(lambda: evaluation.main([str(empty)])) == 2  # 1 would say that a gate is missed
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "no model" in said
    assert run_script(lambda: None) == 0
    assert run_script(lambda: 1) == 1
