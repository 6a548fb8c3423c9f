"""Compiled whole, without breaks: no look at a value, one program for all steps, the numbers of the plain model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from parity import assert_close, make_ours, padding_mask, random_ids
from quarterdeck import CohereForCausalLM, StaticCache

B, T, ROOM, STEPS = 2, 6, 20, 10


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: CohereForCausalLM) -> tuple[Any, CompileCounterWithBackend]:
    """The model's forward, and what counts its programs."""
    counter = CompileCounterWithBackend("eager")
    return torch.compile(model.forward, fullgraph=True, backend=counter), counter


CALLS: dict[str, dict[str, Any]] = {
    "bare": {},
    "padded": {"attention_mask": padding_mask(B, T, "left")},
    "ones": {"attention_mask": torch.ones(B, T, dtype=torch.long)},
    "no_padding": {"attention_mask": torch.ones(B, T, dtype=torch.long), "has_padding": False},
    "mask_4d": {"attention_mask": torch.ones(1, 1, T, T, dtype=torch.bool).tril()},
    "positions": {"position_ids": torch.arange(3, 3 + T)[None].expand(B, -1), "use_cache": False},
    "packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": False},
    "tuple": {"return_dict": False, "use_cache": False},
}


@pytest.mark.parametrize("case", CALLS)
@torch.no_grad()
def test_one_program_whatever_is_given(case: str) -> None:
    model = make_ours(num_key_value_heads=2)
    program, counter = compiled(model)
    ids = random_ids(B, T)
    for shift in (0, 1):  # other values, same program
        ours = program(ids + shift - 1, **CALLS[case])
        plain = model(ids + shift - 1, **CALLS[case])
        assert type(ours) is type(plain)
        assert_close(ours[0], plain[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", [None, "left"])
@torch.no_grad()
def test_one_program_for_all_steps(side: str | None, attention: str) -> None:
    model = make_ours(attention, num_key_value_heads=2, use_qk_norm=True)
    program, counter = compiled(model)
    ids = random_ids(B, T + STEPS)
    mask = torch.ones(B, ROOM, dtype=torch.long)
    if side is not None:
        mask[:, :T] = padding_mask(B, T, side)
    given = {} if side is None else {"attention_mask": mask}
    caches = [StaticCache(model.config, ROOM, max_batch_size=B) for _ in range(2)]
    for cache in caches:
        model(ids[:, :T], past_key_values=cache, **({} if side is None else {"attention_mask": mask[:, :T]}))
    for at in range(T, T + STEPS):
        place = torch.tensor([at])
        token = ids[:, at : at + 1]
        ours = program(token, past_key_values=caches[0], cache_position=place, position_ids=place[None], **given)
        plain = model(token, past_key_values=caches[1], cache_position=place, position_ids=place[None], **given)
        assert_close(ours.logits, plain.logits)
    assert counter.frame_count == 1
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == T + STEPS
    caches[0].crop(T)
    assert caches[0].get_seq_length() == T
    assert_close(
        model(ids[:, T:], past_key_values=caches[0]).logits, model(ids).logits[:, T:]
    ) if side is None else None


@torch.no_grad()
def test_export() -> None:
    model = make_ours()
    ids = random_ids(1, T)
    program = torch.export.export(model, (ids,), {"use_cache": False}).module()
    output = program(ids, use_cache=False)
    assert list(output) == ["logits"]
    assert_close(output.logits, model(ids).logits)


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Counts the numbers that the host reads out of tensors: on an accelerator it would wait for each."""
    counts: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield counts
    counts.append(sum(event.name == "aten::_local_scalar_dense" for event in profile.events()))


def reads_of(model: CohereForCausalLM, *args: Any, **kwargs: Any) -> int:
    with counted_reads() as reads:
        model(*args, **kwargs)
    return reads[0]


@torch.no_grad()
def test_a_run_reads_at_most_one_number() -> None:
    model = make_ours(num_hidden_layers=8)
    token, ones = random_ids(B, 1), torch.ones(B, T + 1, dtype=torch.long)
    padded = ones.clone()
    padded[0, 0] = 0
    for mask in (None, ones, padded, torch.cat([padded, padded], dim=1)):
        cache = StaticCache(model.config, 2 * T + 2)
        model(random_ids(B, T), past_key_values=cache)
        at = {"cache_position": torch.tensor([T])}
        assert reads_of(model, token, attention_mask=mask, past_key_values=cache, **at) == 1
    cache = model(random_ids(B, T)).past_key_values
    assert reads_of(model, token, past_key_values=cache) == 0
    cache.crop(T)
    assert reads_of(model, token, attention_mask=padded, past_key_values=cache) == 1
    cache.crop(T)
    assert reads_of(model, token, attention_mask=padded, past_key_values=cache, has_padding=True) == 0


@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_the_model_reads_nothing_in_a_step_of_generation_padded_or_not(cache: str | None) -> None:
    model = make_ours(eos_token_id=None, pad_token_id=0)
    ids = random_ids(B, T)
    counts = []
    for mask in (None, padding_mask(B, T, "left")):
        steps = model.generate_steps(
            ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, cache_implementation=cache
        )
        next(steps)
        with counted_reads() as reads:
            for _ in range(4):
                next(steps)
        counts += reads
    # whether all rows are finished is one list, which does not count here: the model adds nothing
    assert counts == [0, 0]
