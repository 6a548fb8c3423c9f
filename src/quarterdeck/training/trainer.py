"""The training loop: packed rows in, a logged and resumable run out.

    trainer = Trainer(model, mixture, held_out, options, folder)
    trainer.resume()          # optional: continue the run in `folder`
    trainer.run()

One step: a batch of rows ``[B, T + 1]`` from the mixture, next-token cross entropy on the first T positions of each
row, gradients clipped to norm 1, one optimizer step. Matrices inside the layers are trained by Muon (orthogonalised
momentum) or AdamW, embeddings and norms by AdamW. Every `save_every` seconds the whole state goes to
``folder/checkpoint``; ``folder/log.jsonl`` has one line per `log_every` steps. A run that is stopped and resumed
takes the same steps as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from quarterdeck.errors import InputError
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.checkpoint import load, optimizer_tensors, restore_optimizer, save
from quarterdeck.training.data import Mixture, packed_positions
from quarterdeck.training.muon import Muon
from quarterdeck.training.schedule import Budget, learning_rate_factor


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides how a run goes, besides model and data."""

    budget: Budget
    rows: int = 16
    matrix_optimizer: str = "muon"
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 60
    hold: float = 0.3
    final: float = 0.05
    clip: float = 1.0
    bos: int = 5
    log_every: int = 20
    evaluate_every: int = 200
    save_every: float = 120.0


def make_optimizers(model: nn.Module, options: TrainingOptions) -> dict[str, Optimizer]:
    """One optimizer for the matrices of the layers, one for embeddings and norms (which do not decay)."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    if options.matrix_optimizer == "muon":
        first: Optimizer = Muon(matrices, lr=options.matrix_lr, weight_decay=options.weight_decay)
    elif options.matrix_optimizer == "adamw":
        first = AdamW(
            matrices, lr=options.matrix_lr, weight_decay=options.weight_decay, betas=options.betas, foreach=True
        )
    else:
        raise InputError(f"matrix_optimizer is 'muon' or 'adamw', not {options.matrix_optimizer!r}")
    second = AdamW(others, lr=options.other_lr, weight_decay=0.0, betas=options.betas, foreach=True)
    return {"matrices": first, "others": second}


def next_token_loss(model: CohereForCausalLM, rows: Tensor, bos: int) -> Tensor:
    """Mean cross entropy in nats over ``rows[:, 1:]``, on logits that the model's `logit_scale` has scaled.

    The start of a document is given, so it is not asked for: those positions get no logits at all. The scale is
    applied to the hidden states, which is the same product and touches 40 times less memory than the logits.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    states = model.model(input_ids=inputs, position_ids=packed_positions(inputs, bos), use_cache=False)
    asked = targets != bos
    hidden = states.last_hidden_state[asked] * model.config.logit_scale
    return functional.cross_entropy(model.lm_head(hidden).float(), targets[asked])


@dataclass
class Progress:
    """Where a run stands; `elapsed` counts seconds of training over all sessions."""

    step: int = 0
    elapsed: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


class Trainer:
    """One training run in one folder."""

    def __init__(
        self,
        model: CohereForCausalLM,
        mixture: Mixture,
        held_out: Mapping[str, NDArray[np.uint16]],
        options: TrainingOptions,
        folder: Path,
    ) -> None:
        self.model, self.mixture, self.held_out, self.options, self.folder = model, mixture, held_out, options, folder
        self.optimizers = make_optimizers(model, options)
        self.progress = Progress()
        folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ one step

    def _set_learning_rate(self, done: float) -> float:
        o = self.options
        factor = learning_rate_factor(self.progress.step, done, warmup=o.warmup, hold=o.hold, final=o.final)
        for name, lr in (("matrices", o.matrix_lr), ("others", o.other_lr)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = lr * factor
        return factor

    def step(self) -> float:
        """One update; its loss in nats per token."""
        done = self._done()
        self._set_learning_rate(done)
        rows = self.mixture.batch(self.options.rows, done)
        loss = next_token_loss(self.model, rows, self.options.bos)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip, foreach=True)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += rows[:, 1:].numel()
        return float(loss.detach())

    # ------------------------------------------------------------ the run

    def run(self, stop_after: int | None = None) -> None:
        """Train to the end of the budget, or for `stop_after` steps of this session."""
        self.model.train()
        saved = time.monotonic()
        first = self.progress.step
        while self._done() < 1.0:
            if stop_after is not None and self.progress.step - first >= stop_after:
                break
            began = time.monotonic()
            self.progress.losses.append(self.step())
            self.progress.elapsed += time.monotonic() - began
            if self.progress.step % self.options.log_every == 0:
                self._log()
            if time.monotonic() - saved >= self.options.save_every:
                self.save()
                saved = time.monotonic()
        if self.progress.losses and self._done() >= 1.0:
            self._log(last=True)
        self.save()

    def _done(self) -> float:
        return self.options.budget.progress(self.progress.step, self.progress.elapsed)

    def _log(self, last: bool = False) -> None:
        p, o = self.progress, self.options
        line: dict[str, Any] = {
            "step": p.step,
            "tokens": p.tokens,
            "elapsed": round(p.elapsed, 1),
            "progress": round(self._done(), 4),
            "loss": round(sum(p.losses) / len(p.losses), 4),
        }
        p.losses.clear()
        if last or p.step % o.evaluate_every == 0:
            line["held_out"] = {name: round(value, 4) for name, value in self.evaluate().items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    @torch.no_grad()
    def evaluate(self, rows: int = 16) -> dict[str, float]:
        """Loss on the beginning of every held-out family, in nats per token."""
        self.model.eval()
        length = next(iter(self.mixture.streams.values())).length
        losses = {}
        for name, tokens in self.held_out.items():
            count = min(rows, len(tokens) // length)
            block = torch.from_numpy(tokens[: count * length].astype(np.int64).reshape(count, length))
            losses[name] = float(next_token_loss(self.model, block, self.options.bos))
        self.model.train()
        return losses

    # ------------------------------------------------------------ stop and continue

    def save(self) -> None:
        """Write the whole state to ``folder/checkpoint``."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(optimizer, f"optimizer.{name}")
        tensors["rng"] = torch.get_rng_state()
        save(self.folder / "checkpoint", tensors, {"progress": asdict(self.progress), "data": self.mixture.state()})

    def resume(self) -> None:
        """Continue from ``folder/checkpoint``; log lines that are later than it are dropped."""
        tensors, state = load(self.folder / "checkpoint")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, tensors, f"optimizer.{name}")
        torch.set_rng_state(tensors["rng"])
        self.mixture.restore(state["data"])
        self.progress = Progress(**state["progress"])
        self._trim_log()

    def _trim_log(self) -> None:
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.progress.step]
        path.write_text("".join(line + "\n" for line in kept))
