"""The training loop: packed rows in, a logged and resumable run out.

    trainer = Trainer(model, batches, held_out, options, folder)
    trainer.resume()          # optional: continue the run in `folder`
    trainer.run()

One step: a batch of packed rows, cross entropy on the supervised tokens, gradients clipped to norm 1, one optimizer
step. Matrices inside the layers are trained by Muon (orthogonalised momentum) or AdamW, embeddings and norms by AdamW.
Where the processor has products of bfloat16, the passes are computed in it; weights and optimizer stay in float32.
Every `save_every` seconds the whole state goes to ``folder/checkpoint``; ``folder/log.jsonl`` has one line per
`log_every` steps, and the last line of a finished run has an evaluation. A run that is stopped and resumed takes the
same steps as one that was not (by the clock, as far as clocks allow).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from quarterdeck.errors import InputError
from quarterdeck.kernels.native import levels
from quarterdeck.kernels.packed_attention import PackedLayout
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.attention import PackedAttention
from quarterdeck.training.batches import Batches
from quarterdeck.training.checkpoint import exists, load, optimizer_tensors, restore_optimizer, save
from quarterdeck.training.cross_entropy import IGNORED, linear_cross_entropy
from quarterdeck.training.curves import read_log
from quarterdeck.training.muon import Muon
from quarterdeck.training.packing import PackedRows, PackedStream
from quarterdeck.training.schedule import Budget, learning_rate_factor


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides how a run goes, besides model and data."""

    budget: Budget
    matrix_optimizer: str = "muon"
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 60
    hold: float = 0.3
    final: float = 0.05
    clip: float = 1.0
    log_every: int = 20
    evaluate_every: int = 200
    save_every: float = 120.0
    compile: bool = False
    bfloat16: bool | None = None
    """Whether the passes are computed in bfloat16; None: where the device is fast at it."""


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 have units of their own: tensor cores, or AMX where our kernels use it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and "amx" in levels()


def make_optimizers(model: nn.Module, options: TrainingOptions, dtype: torch.dtype) -> dict[str, Optimizer]:
    """One optimizer for the matrices of the layers, one for embeddings and norms (which do not decay).

    Muon computes its directions in ``dtype``.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    if options.matrix_optimizer == "muon":
        first: Optimizer = Muon(matrices, lr=options.matrix_lr, weight_decay=options.weight_decay, dtype=dtype)
    elif options.matrix_optimizer == "adamw":
        first = AdamW(
            matrices, lr=options.matrix_lr, weight_decay=options.weight_decay, betas=options.betas, foreach=True
        )
    else:
        raise InputError(f"matrix_optimizer is 'muon' or 'adamw', not {options.matrix_optimizer!r}")
    second = AdamW(others, lr=options.other_lr, weight_decay=0.0, betas=options.betas, foreach=True)
    return {"matrices": first, "others": second}


@dataclass(frozen=True)
class DeviceRows:
    """`PackedRows` as tensors on the model's device."""

    ids: Tensor
    positions: Tensor
    asked: Tensor
    targets: Tensor

    @classmethod
    def of(cls, rows: PackedRows, device: torch.device, multiple: int = 512) -> DeviceRows:
        """The tensors; the supervised places are filled up to a multiple with places that are not counted.

        So few shapes come up, and a compiled program fits them.
        """
        more = -len(rows.asked) % multiple
        pinned = device.type == "cuda"
        tensors = (
            torch.from_numpy(rows.ids.astype("int64")),
            torch.from_numpy(rows.positions.astype("int64")),
            functional.pad(torch.from_numpy(rows.asked), (0, more)),
            functional.pad(torch.from_numpy(rows.targets), (0, more), value=IGNORED),
        )
        return cls(*((one.pin_memory() if pinned else one).to(device, non_blocking=pinned) for one in tensors))


def supervised_states(model: CohereForCausalLM, rows: DeviceRows) -> tuple[Tensor, Tensor]:
    """Of the supervised places alone: final states ``[K, E]`` times `logit_scale`, and the head ``[V, E]``.

    Both in the type in which products are computed; their product is the logits, scaled.
    """
    states = model.model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False).last_hidden_state
    picked = states.flatten(0, 1).index_select(0, rows.asked) * model.config.logit_scale
    kind = picked.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else picked.dtype
    return picked.to(dtype), model.lm_head.weight.to(dtype)


def supervised_logits(model: CohereForCausalLM, rows: DeviceRows) -> Tensor:
    """Logits ``[K, V]`` of the supervised places alone, scaled by the model's `logit_scale`, in float32."""
    states, head = supervised_states(model, rows)
    return (states @ head.T).float()


def supervised_loss(model: CohereForCausalLM, rows: DeviceRows) -> Tensor:
    """Mean cross entropy in nats over the supervised tokens."""
    states, head = supervised_states(model, rows)
    if states.device.type == "cpu":
        return linear_cross_entropy(states, head, rows.targets)
    return functional.cross_entropy((states @ head.T).float(), rows.targets, ignore_index=IGNORED)


@dataclass
class Progress:
    """Where a run stands; `elapsed` counts seconds of training over all sessions."""

    step: int = 0
    elapsed: float = 0.0
    tokens: int = 0
    supervised: int = 0
    documents: int = 0
    losses: list[float] = field(default_factory=list)


def check_unused(folder: Path) -> None:
    """A new run goes into a folder in which no other one has been begun.

    Raises:
        InputError: there is a checkpoint, or a log, which the new run would overwrite or lengthen.
    """
    if exists(folder / "checkpoint"):
        raise InputError(
            f"{folder} holds the checkpoint of a run, which a new run would overwrite: continue it (--resume), or "
            "choose another folder (--run)"
        )
    log = folder / "log.jsonl"
    if log.is_file() and log.stat().st_size:
        raise InputError(
            f"{log} is the log of a run that has left no checkpoint, and a new run would add its lines to it: move the "
            "log away, or choose another folder (--run)"
        )


class Trainer:
    """One training run in one folder; a new one, or that of the folder if `resume` is called."""

    def __init__(
        self,
        model: CohereForCausalLM,
        batches: Batches,
        held_out: Mapping[str, PackedRows],
        options: TrainingOptions,
        folder: Path,
    ) -> None:
        self.model, self.batches, self.held_out, self.options, self.folder = model, batches, held_out, options, folder
        self.device = next(model.parameters()).device
        self._autocast = fast_bfloat16(self.device) if options.bfloat16 is None else options.bfloat16
        self._loss = torch.compile(supervised_loss) if options.compile else supervised_loss
        self.optimizers = make_optimizers(model, options, torch.bfloat16 if self._autocast else torch.float32)
        self.progress = Progress()
        self._fresh: list[Tensor] = []
        self._owns_folder = False
        folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ one step

    def _set_learning_rate(self, done: float) -> float:
        o = self.options
        factor = learning_rate_factor(self.progress.step, done, warmup=o.warmup, hold=o.hold, final=o.final)
        for name, lr in (("matrices", o.matrix_lr), ("others", o.other_lr)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = lr * factor
        return factor

    def step(self) -> Tensor:
        """One update; its loss in nats per token, still on the device."""
        done = self._done()
        self._set_learning_rate(done)
        packed = self.batches.batch(self.progress.step, self._progress_at)
        rows = self._rows(packed)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            loss = self._loss(self.model, rows)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip, foreach=True)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += packed.used
        self.progress.supervised += len(packed.asked)
        self.progress.documents += packed.documents
        return loss.detach()

    def _rows(self, packed: PackedRows, multiple: int = 512) -> DeviceRows:
        """The batch on the device; the attention of streams is told where the documents are."""
        attention = self.model.config.attn_implementation
        if isinstance(attention, PackedAttention):
            if not isinstance(packed, PackedStream):
                raise InputError("PackedAttention trains on what pack_stream makes; these are rows of one length")
            attention.layout = PackedLayout(torch.from_numpy(packed.layout))
        return DeviceRows.of(packed, self.device, multiple)

    # ------------------------------------------------------------ the run

    def run(self, stop_after: int | None = None, stop_seconds: float | None = None) -> None:
        """Train to the end of the budget, or for `stop_after` steps or `stop_seconds` seconds of this session.

        Raises:
            InputError: the folder holds another run, which was not resumed.
        """
        self._own_folder()
        self.model.train()
        saved = time.monotonic()
        first, begun, before = self.progress.step, time.monotonic(), self.progress.elapsed
        while self._done() < 1.0:
            if stop_after is not None and self.progress.step - first >= stop_after:
                break
            if stop_seconds is not None and time.monotonic() - begun >= stop_seconds:
                break
            self._fresh.append(self.step())
            if self.progress.step % self.options.log_every == 0:
                self._log()
            self.progress.elapsed = before + time.monotonic() - begun
            if time.monotonic() - saved >= self.options.save_every:
                self.save()
                saved = time.monotonic()
        if self._done() >= 1.0:
            self._log_end()
        self.save()

    def _own_folder(self) -> None:
        """Nothing is written where another run has been begun."""
        if not self._owns_folder:
            check_unused(self.folder)
        self._owns_folder = True

    def _done(self) -> float:
        return self._progress_at(self.progress.step)

    def _progress_at(self, step: int) -> float:
        return self.options.budget.progress(step, self.progress.elapsed)

    def _settle(self) -> None:
        """Fetch the losses of the last steps from the device."""
        self.progress.losses += [float(loss) for loss in self._fresh]
        self._fresh.clear()

    def _log(self, last: bool = False) -> None:
        self._settle()
        p, o = self.progress, self.options
        line: dict[str, Any] = {
            "step": p.step,
            "tokens": p.tokens,
            "supervised": p.supervised,
            "documents": p.documents,
            "elapsed": round(p.elapsed, 1),
            "progress": round(self._done(), 4),
            "loss": round(sum(p.losses) / len(p.losses), 4),
        }
        p.losses.clear()
        if last or p.step % o.evaluate_every == 0:
            line |= self._evaluation()
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _log_end(self) -> None:
        """The last line of a finished run has an evaluation: a line of the steps since the one before, or that one."""
        if self.progress.losses or self._fresh:
            self._log(last=True)
            return
        log = self._read_log()
        if log and log[-1]["step"] == self.progress.step and "held_out" not in log[-1]:
            self._write_log([*log[:-1], log[-1] | self._evaluation()])

    def _evaluation(self) -> dict[str, dict[str, float]]:
        """The scores as a line of the log has them."""
        scores = self.evaluate()
        return {
            "held_out": {name: round(loss, 4) for name, (loss, _) in scores.items()},
            "accuracy": {name: round(accuracy, 4) for name, (_, accuracy) in scores.items()},
        }

    def _read_log(self) -> list[dict[str, Any]]:
        path = self.folder / "log.jsonl"
        return read_log(path) if path.exists() else []

    def _write_log(self, log: Sequence[dict[str, Any]]) -> None:
        """All of it anew, in one step: a process that is killed loses no line."""
        fresh = self.folder / "log.jsonl.new"
        fresh.write_text("".join(json.dumps(line) + "\n" for line in log))
        fresh.replace(self.folder / "log.jsonl")

    @torch.no_grad()
    def evaluate(self) -> dict[str, tuple[float, float]]:
        """Of every held-out batch: loss in nats per supervised token, share of these tokens that are the likeliest."""
        self.model.eval()
        scores = {}
        for name, packed in self.held_out.items():
            rows = self._rows(packed, multiple=1)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
                logits = supervised_logits(self.model, rows)
            loss = float(functional.cross_entropy(logits, rows.targets))
            scores[name] = (loss, float((logits.argmax(-1) == rows.targets).float().mean()))
        self.model.train()
        return scores

    # ------------------------------------------------------------ stop and continue

    def save(self) -> None:
        """Write the whole state to ``folder/checkpoint``.

        Raises:
            InputError: the folder holds another run, which was not resumed.
        """
        self._own_folder()
        self._settle()
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(optimizer, f"optimizer.{name}")
        tensors["rng"] = torch.get_rng_state()
        save(self.folder / "checkpoint", tensors, {"progress": asdict(self.progress)})

    def resume(self) -> None:
        """Continue from ``folder/checkpoint``; log lines that are later than it are dropped.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        tensors, state = load(self.folder / "checkpoint")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, tensors, f"optimizer.{name}")
        torch.set_rng_state(tensors["rng"])
        self.progress = Progress(**state["progress"])
        self._owns_folder = True
        self._write_log([line for line in self._read_log() if line["step"] <= self.progress.step])
