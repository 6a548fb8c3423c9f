"""The trainer: packing, batches, schedule, optimizer, and above all exact resumption."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, InputError
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.batches import LocalBatches, WorkerBatches
from quarterdeck.training.checkpoint import delete, exists, load, save
from quarterdeck.training.curves import draw, read_log, to_csv, write_curves
from quarterdeck.training.muon import Muon, orthogonalize
from quarterdeck.training.packing import pack
from quarterdeck.training.schedule import Budget, learning_rate_factor
from quarterdeck.training.trainer import DeviceRows, Trainer, TrainingOptions, supervised_loss
from training_rows import BOS, build_rows, rows_of


def tiny_model() -> CohereForCausalLM:
    torch.manual_seed(0)
    return CohereForCausalLM(
        CohereConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            logit_scale=0.5,
            bos_token_id=BOS,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def trainer(folder: Path, steps: int = 12, **options: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    chosen = TrainingOptions(Budget(steps=steps), warmup=2, log_every=2, evaluate_every=4, **options)  # type: ignore[arg-type]
    return Trainer(tiny_model(), LocalBatches(rows_of), {"plain": rows_of(99, 0.0)}, chosen, folder / "run")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_short_run_learns_and_logs(tmp_path: Path, optimizer: str) -> None:
    run = trainer(tmp_path, steps=40, matrix_optimizer=optimizer, matrix_lr=0.01, other_lr=0.02)
    before = run.evaluate()["plain"][0]
    run.run()
    after, right = run.evaluate()["plain"]
    assert after < 0.8 * before
    assert right > 0.3
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 41, 2))
    assert [line["step"] for line in lines if "held_out" in line] == list(range(4, 41, 4))
    assert lines[-1]["tokens"] == sum(rows_of(step, step / 40).used for step in range(40))
    assert {"loss", "supervised", "documents"} <= set(lines[0])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_run_equals_uninterrupted_run_exactly(tmp_path: Path, optimizer: str) -> None:
    whole = trainer(tmp_path / "whole", matrix_optimizer=optimizer)
    whole.run()
    first = trainer(tmp_path / "parts", matrix_optimizer=optimizer)
    first.run(stop_after=5)
    second = trainer(tmp_path / "parts", matrix_optimizer=optimizer)
    second.resume()
    assert second.progress.step == 5
    second.run()
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(second.model)[name]), name
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "elapsed"}
            for line in (tmp_path / name / "run/log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_the_last_steps_are_logged_even_if_they_fill_no_line(tmp_path: Path) -> None:
    trainer(tmp_path, steps=3).run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert "held_out" in lines[-1]


@pytest.mark.parametrize("steps", [4, 6])
def test_the_last_line_of_a_finished_run_has_an_evaluation_and_no_step_is_there_twice(
    tmp_path: Path, steps: int
) -> None:
    def log() -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]

    trainer(tmp_path, steps).run()  # a line at every second step, an evaluation at every fourth
    assert [line["step"] for line in log()] == list(range(2, steps + 1, 2))
    assert set(log()[-1]["held_out"]) == set(log()[-1]["accuracy"]) == {"plain"}
    before = log()
    again = trainer(tmp_path, steps)
    again.resume()
    again.run()
    assert log() == before


def test_a_run_that_a_smaller_budget_ends_is_evaluated(tmp_path: Path) -> None:
    trainer(tmp_path, steps=12).run(stop_after=6)
    last = trainer(tmp_path, steps=6)
    last.resume()
    last.run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert "held_out" in lines[-1]


def test_a_new_run_spares_what_another_has_left(tmp_path: Path) -> None:
    trainer(tmp_path).run(stop_after=4)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for act in (Trainer.run, Trainer.save):
        with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}/run holds .*--resume.*--run"):
            act(trainer(tmp_path))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    delete(tmp_path / "run/checkpoint")
    with pytest.raises(InputError, match=r"log\.jsonl is the log of a run that has left no checkpoint"):
        trainer(tmp_path).run()
    (tmp_path / "run/log.jsonl").unlink()
    trainer(tmp_path).run(stop_after=1)


def test_log_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(stop_after=4)
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n")
    again = trainer(tmp_path)
    again.resume()
    assert [json.loads(x)["step"] for x in (tmp_path / "run/log.jsonl").read_text().splitlines()] == [2, 4]


def test_a_line_that_a_killed_process_has_half_written_is_dropped(tmp_path: Path) -> None:
    trainer(tmp_path).run(stop_after=4)
    log = tmp_path / "run/log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_log(log)] == [2, 4]
    trainer(tmp_path).resume()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4]


def test_any_other_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n{"st\n{"step": 6}\n')
    with pytest.raises(CheckpointCorruptError, match=r"line 2 of 3 in .*log\.jsonl is no JSON"):
        read_log(tmp_path / "log.jsonl")


def test_a_log_without_lines_has_no_curves() -> None:
    with pytest.raises(InputError, match="0 lines"):
        draw([])


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no training checkpoint"):
        trainer(tmp_path).resume()


def test_checkpoint_survives_a_crash_between_the_two_renames(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, {"x": torch.ones(2)}, {"step": 1})
    folder.rename(tmp_path / "checkpoint.old")
    tensors, state = load(folder)
    assert state == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(2))


def test_what_such_a_crash_has_left_stays_until_the_next_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, {"x": torch.ones(2)}, {"step": 1})
    folder.rename(tmp_path / "checkpoint.old")
    with monkeypatch.context() as patch:
        patch.setattr("quarterdeck.training.checkpoint.save_file", lambda *_: 1 / 0)  # killed while it writes
        with pytest.raises(ZeroDivisionError):
            save(folder, {"x": torch.zeros(2)}, {"step": 2})
    assert load(folder)[1] == {"step": 1}
    save(folder, {"x": torch.zeros(2)}, {"step": 2})
    assert load(folder)[1] == {"step": 2}


def test_a_deleted_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for place in ("", ".new", ".old"):
        save(folder, {"x": torch.ones(2)}, {})
        folder.rename(tmp_path / f"checkpoint{place}")
        assert exists(folder)
        delete(folder)
        assert not exists(folder)
        assert not list(tmp_path.iterdir())
    delete(folder)


def as_rows(*documents: list[int], supervised: int = 1, length: int = 12) -> DeviceRows:
    pairs = [(np.array(ids, dtype=np.uint16), np.arange(len(ids)) >= supervised) for ids in documents]
    return DeviceRows.of(pack(pairs, rows=1, length=length), torch.device("cpu"), multiple=8)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    model = tiny_model()
    one, two = [BOS, 5, 6, 7, 2], [BOS, 9, 8, 2]
    packed = supervised_loss(model, as_rows(one, two))
    single = [supervised_loss(model, as_rows(document)) for document in (one, two)]
    assert torch.allclose(packed, (single[0] * 4 + single[1] * 3) / 7, atol=1e-6)


def test_loss_is_the_models_own_loss_on_one_document() -> None:
    model = tiny_model()
    ids = [BOS, 5, 6, 7, 2]
    given = torch.tensor([ids])
    assert torch.allclose(supervised_loss(model, as_rows(ids)), model(input_ids=given, labels=given).loss, atol=1e-6)
    labels = torch.tensor([[-100, -100, -100, 7, 2]])
    masked = supervised_loss(model, as_rows(ids, supervised=3))
    assert torch.allclose(masked, model(input_ids=given, labels=labels).loss, atol=1e-6)


def test_rows_are_filled_in_order_and_positions_begin_again() -> None:
    documents = [
        (np.arange(n, n + size, dtype=np.uint16), np.arange(size) >= 2)
        for n, size in ((10, 5), (20, 6), (40, 4), (60, 90))
    ]
    rows = pack(documents, rows=2, length=8)
    assert rows.ids.tolist() == [[10, 11, 12, 13, 40, 41, 42, 0], [20, 21, 22, 23, 24, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 1, 2]]
    assert rows.asked.tolist() == [1, 2, 3, 5, 6, 9, 10, 11, 12]
    assert rows.targets.tolist() == [12, 13, 14, 42, 43, 22, 23, 24, 25]
    assert (rows.documents, rows.used) == (3, 12)


def test_packing_stops_when_nothing_fits_any_more() -> None:
    endless = ((np.arange(5, dtype=np.uint16), np.ones(5, dtype=np.bool_)) for _ in itertools.count())
    assert pack(endless, rows=2, length=9).documents == 4
    with pytest.raises(InputError, match="no document fits a row of 3"):
        pack([(np.arange(9, dtype=np.uint16), np.ones(9, dtype=np.bool_))], rows=1, length=3)


def test_workers_give_the_batches_that_one_process_gives() -> None:
    workers = WorkerBatches(build_rows, workers=2, ahead=2)
    try:
        for step in range(3, 8):
            made = workers.batch(step, lambda at: at / 10)
            assert made.ids.tolist() == rows_of(step, step / 10).ids.tolist()
    finally:
        workers.close()


def test_curves_hold_every_logged_step(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    write_curves(tmp_path / "run")
    rows = (tmp_path / "run/curves.csv").read_text().splitlines()
    assert rows[0].endswith(",loss,loss plain,accuracy plain")
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "4", "6", "8", "10", "12"]
    log = read_log(tmp_path / "run/log.jsonl")
    assert to_csv(log).splitlines() == rows
    assert draw(log).count('fill="none"') == 3


def test_wrong_settings_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either steps or minutes"):
        Budget()
    with pytest.raises(InputError, match="either steps or minutes"):
        Budget(steps=1, minutes=1.0)
    for budget in ({"steps": 0}, {"steps": -1}, {"minutes": 0.0}, {"minutes": -1.0}, {"minutes": float("nan")}):
        with pytest.raises(InputError, match=r"trains nothing; give (steps|minutes) above 0"):
            Budget(**budget)
    with pytest.raises(InputError, match="'muon' or 'adamw'"):
        trainer(tmp_path, matrix_optimizer="sgd")


def test_schedule_rises_holds_and_falls() -> None:
    factor = [learning_rate_factor(step, step / 100, warmup=10, hold=0.5, final=0.05) for step in range(101)]
    assert factor[0] == pytest.approx(0.1)
    assert factor[10:51] == [1.0] * 41
    assert all(a > b for a, b in itertools.pairwise(factor[50:]))
    assert factor[-1] == pytest.approx(0.05)


def test_budget_by_the_clock_counts_training_time() -> None:
    assert Budget(minutes=2.0).progress(step=10_000, elapsed=30.0) == 0.25
    assert Budget(minutes=2.0).progress(step=0, elapsed=500.0) == 1.0


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 6), (2, 6, 16)])
def test_orthogonalize_flattens_the_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_step_is_the_formula() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4))
    before, gradient = weight.detach().clone(), torch.randn(6, 4)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    direction = gradient.lerp(gradient * 0.1, 0.9)
    expected = before * (1 - 0.1 * 0.5) - 0.1 * (6 / 4) ** 0.5 * orthogonalize(direction[None])[0]
    assert torch.allclose(weight, expected, atol=1e-6)
