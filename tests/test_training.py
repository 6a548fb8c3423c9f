"""The trainer: packing, mixture, schedule, optimizer, and above all exact resumption."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.errors import CheckpointNotFoundError, InputError
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.checkpoint import load, save
from quarterdeck.training.data import Mixture, TokenStream, packed_positions
from quarterdeck.training.muon import Muon, orthogonalize
from quarterdeck.training.schedule import Budget, learning_rate_factor
from quarterdeck.training.trainer import Trainer, TrainingOptions, next_token_loss

BOS, LENGTH = 1, 17


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


def write_tokens(path: Path, seed: int, count: int = 900) -> Path:
    """Documents in which every token is followed by its successor, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < count:
        start = int(rng.integers(3, 12))
        tokens += [BOS, *range(start, start + int(rng.integers(5, 20))), 2]
    np.asarray(tokens, dtype="<u2").tofile(path)
    return path


def mixture(folder: Path) -> Mixture:
    streams = {
        name: TokenStream(write_tokens(folder / f"{name}.bin", seed), LENGTH, seed=3)
        for seed, name in enumerate(("plain", "chat"))
    }
    return Mixture(streams, {"plain": 0.9, "chat": 0.1}, {"plain": 0.2, "chat": 0.8}, seed=4)


def trainer(folder: Path, steps: int = 12, **options: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    chosen = TrainingOptions(Budget(steps=steps), rows=4, warmup=2, bos=BOS, log_every=2, evaluate_every=4, **options)  # type: ignore[arg-type]
    held_out = {"plain": np.fromfile(write_tokens(folder / "held_out.bin", 9), dtype="<u2")}
    return Trainer(tiny_model(), mixture(folder), held_out, chosen, folder / "run")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_short_run_learns_and_logs(tmp_path: Path, optimizer: str) -> None:
    run = trainer(tmp_path, steps=40, matrix_optimizer=optimizer, matrix_lr=0.01, other_lr=0.02)
    before = run.evaluate()["plain"]
    run.run()
    assert run.evaluate()["plain"] < 0.8 * before
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 41, 2))
    assert [line["step"] for line in lines if "held_out" in line] == list(range(4, 41, 4))
    assert lines[-1]["tokens"] == 40 * 4 * (LENGTH - 1)


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
    assert second.mixture.state() == whole.mixture.state()
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


def test_log_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(stop_after=4)
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n")
    again = trainer(tmp_path)
    again.resume()
    assert [json.loads(x)["step"] for x in (tmp_path / "run/log.jsonl").read_text().splitlines()] == [2, 4]


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


def test_loss_counts_neither_starts_of_documents_nor_other_documents() -> None:
    model = tiny_model()
    one, two = [BOS, 5, 6, 7, 2], [BOS, 9, 8, 2]
    packed = next_token_loss(model, torch.tensor([one + two]), BOS)
    single = [next_token_loss(model, torch.tensor([document]), BOS) for document in (one, two)]
    assert torch.allclose(packed, (single[0] * 4 + single[1] * 3) / 7, atol=1e-6)


def test_loss_is_the_models_own_loss_on_one_document() -> None:
    model = tiny_model()
    ids = torch.tensor([[BOS, 5, 6, 7, 2]])
    assert torch.allclose(next_token_loss(model, ids, BOS), model(input_ids=ids, labels=ids).loss, atol=1e-6)


def test_packed_positions_start_again_at_every_document() -> None:
    ids = torch.tensor([[4, 5, BOS, 6, 7, BOS, BOS]])
    assert packed_positions(ids, BOS).tolist() == [[0, 1, 0, 1, 2, 0, 0]]


def test_stream_gives_every_block_once_per_epoch(tmp_path: Path) -> None:
    np.arange(100, dtype="<u2").tofile(tmp_path / "x.bin")
    stream = TokenStream(tmp_path / "x.bin", 10, seed=0)
    blocks = [stream.next().tolist() for _ in range(len(stream.order))]
    assert sorted(block[0] for block in blocks) == list(range(stream.offset, 91, 10))
    assert all(block == list(range(block[0], block[0] + 10)) for block in blocks)
    stream.next()
    assert stream.epoch == 1


def test_mixture_moves_from_the_first_to_the_last_shares(tmp_path: Path) -> None:
    mix = mixture(tmp_path)
    mix.batch(400, progress=0.0)
    early = dict(mix.drawn)
    mix.batch(400, progress=1.0)
    assert early["plain"] > 320
    assert mix.drawn["chat"] - early["chat"] > 280


def test_wrong_settings_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either steps or minutes"):
        Budget()
    with pytest.raises(InputError, match="either steps or minutes"):
        Budget(steps=1, minutes=1.0)
    with pytest.raises(InputError, match="'muon' or 'adamw'"):
        trainer(tmp_path, matrix_optimizer="sgd")
    np.arange(10, dtype="<u2").tofile(tmp_path / "short.bin")
    with pytest.raises(InputError, match="holds 10 tokens"):
        TokenStream(tmp_path / "short.bin", 8, seed=0)
    with pytest.raises(InputError, match="same families"):
        Mixture(mixture(tmp_path).streams, {"plain": 1.0}, {"plain": 1.0}, seed=0)


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
