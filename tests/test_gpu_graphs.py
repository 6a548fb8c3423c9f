"""Recorded steps: what is copied, when a recording is good and when another is made, with a stand-in for CUDA's graphs.

The stand-in does what a graph does: what it plays reads the buffers that were there when it was recorded and writes to
the same memory, and no Python of the caller's runs again but that.
"""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch

from parity import make_ours, padding_mask, random_ids, relative_error
from quarterdeck import CohereForCausalLM, CompileConfig, StaticCache
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.graphs import KEPT, RecordedSteps, recordings_of

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
GRAPH: dict[str, Any] = {"cache_implementation": "static", "compile_config": CompileConfig(backend="cuda_graph")}


class StandIn:
    """Runs what it recorded again, into the tensors that it returned."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, run: Any) -> Any:
        for _ in range(2):
            output = run()
        self.run, self.output = run, output
        return output

    def replay(self) -> None:
        self.replays += 1
        fresh = self.run()
        self.output.logits.copy_(fresh.logits)
        for mine, its in zip(self.output.hidden_states or (), fresh.hidden_states or (), strict=True):
            mine.copy_(its)


def recording_on_cpu(model: CohereForCausalLM) -> RecordedSteps:
    steps = RecordedSteps(StandIn, "cpu")
    vars(model)["_recorded_steps"] = steps
    return steps


@pytest.fixture
def model() -> CohereForCausalLM:
    model = make_ours(num_hidden_layers=2, num_key_value_heads=2)
    recording_on_cpu(model)
    return model


@pytest.mark.parametrize("side", [None, "left"])
def test_tokens_are_those_of_the_model_and_one_recording_serves_many_calls(
    model: CohereForCausalLM, side: str | None
) -> None:
    for length in (9, 12, 10):
        ids, mask = random_ids(3, length), padding_mask(3, length, side)
        plain = model.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, **GRAPH), plain)
        gc.collect()
    assert len(recordings_of(model)) == 1
    assert recordings_of(model)._kept[0].graph.replays == 3 * 5


def test_logits_and_states_stand_in_memory_of_their_own(model: CohereForCausalLM) -> None:
    ids = random_ids(2, 7)
    wanted = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    ours, plain = model.generate(ids, **GREEDY, **GRAPH, **wanted), model.generate(ids, **GREEDY, **wanted)
    for mine, its in zip(ours.logits, plain.logits, strict=True):
        assert relative_error(mine, its) < 1e-5
    for mine, its in zip(ours.hidden_states[3], plain.hidden_states[3], strict=True):
        assert relative_error(mine, its) < 1e-5
    assert ours.past_key_values.get_seq_length() == 12


def test_a_cache_that_is_kept_is_not_written_to(model: CohereForCausalLM) -> None:
    first = model.generate(random_ids(1, 7), **GREEDY, **GRAPH, return_dict_in_generate=True).past_key_values
    keys = first.layers[0].keys.clone()
    second = model.generate(random_ids(1, 8, seed=5), **GREEDY, **GRAPH, return_dict_in_generate=True).past_key_values
    assert torch.equal(first.layers[0].keys, keys)
    assert first.layers[0].keys.data_ptr() != second.layers[0].keys.data_ptr()
    assert len(recordings_of(model)) == 2


def test_buffers_that_nobody_has_go_to_the_next_call(model: CohereForCausalLM) -> None:
    first = model.generate(random_ids(1, 7), **GREEDY, **GRAPH, return_dict_in_generate=True).past_key_values
    place = first.layers[0].keys.data_ptr()
    del first
    gc.collect()
    second = model.generate(random_ids(1, 9), **GREEDY, **GRAPH, return_dict_in_generate=True).past_key_values
    assert second.layers[0].keys.data_ptr() == place
    assert second.get_seq_length() == 14
    assert not second.layers[0].keys[:, :, 14:].any(), "what the first call wrote is gone"


def test_a_cache_of_ones_own_goes_on(model: CohereForCausalLM) -> None:
    ids, cache = random_ids(1, 7), StaticCache(model.config, 64)
    options = GREEDY | {"compile_config": GRAPH["compile_config"]}
    once = model.generate(ids, past_key_values=cache, **options)
    twice = model.generate(once, past_key_values=cache, **options)
    assert torch.equal(twice, model.generate(ids, **(GREEDY | {"max_new_tokens": 12})))
    assert len(recordings_of(model)) == 1


def test_other_shapes_make_other_recordings_and_the_oldest_goes(model: CohereForCausalLM) -> None:
    for rows in (1, 2, 3):
        ids = random_ids(rows, 7)
        assert torch.equal(model.generate(ids, **GREEDY, **GRAPH), model.generate(ids, **GREEDY))
    assert [kept.inputs.tokens.shape[0] for kept in recordings_of(model)._kept] == [2, 3]
    assert KEPT == 2


def test_other_weights_make_another_recording(model: CohereForCausalLM) -> None:
    ids = random_ids(1, 7)
    before = model.generate(ids, **GREEDY, **GRAPH)
    layer = model.model.layers[0].mlp
    layer.down_proj.weight = torch.nn.Parameter(-layer.down_proj.weight.detach())
    after = model.generate(ids, **GREEDY, **GRAPH)
    assert torch.equal(after, model.generate(ids, **GREEDY))
    assert not torch.equal(before, after)
    layer.down_proj = torch.nn.Sequential(layer.down_proj, torch.nn.Tanh())
    assert torch.equal(model.generate(ids, **GREEDY, **GRAPH), model.generate(ids, **GREEDY))


def test_two_calls_that_take_turns_do_not_disturb_each_other(model: CohereForCausalLM) -> None:
    prompts = [random_ids(1, 7), random_ids(1, 7, seed=9)]
    steps = [model.generate_steps(ids, **GREEDY, **GRAPH) for ids in prompts]
    last = list(zip(*steps, strict=True))[-1]
    for ids, step in zip(prompts, last, strict=True):
        assert torch.equal(step.input_ids, model.generate(ids, **GREEDY))


def test_copies_have_no_recordings(model: CohereForCausalLM) -> None:
    model.generate(random_ids(1, 7), **GREEDY, **GRAPH)
    assert len(recordings_of(copy.deepcopy(model))) == 0
    assert len(pickle.loads(pickle.dumps(recordings_of(model)))) == 0
    recordings_of(model).clear()
    assert len(recordings_of(model)) == 0


def test_what_cannot_be_recorded_is_refused(model: CohereForCausalLM) -> None:
    ids = random_ids(1, 7)
    handle = model.model.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedOptionError, match="CohereLayerNorm has hooks, which would not be called"):
        model.generate(ids, **GREEDY, **GRAPH)
    handle.remove()
    with pytest.raises(UnsupportedOptionError, match="not of fixed size"):
        model.generate(ids, **GREEDY, compile_config=GRAPH["compile_config"])
    with pytest.raises(UnsupportedOptionError, match="on cpu, and graphs are recorded on cuda"):
        make_ours().generate(ids, **GREEDY, **GRAPH)
    with pytest.raises(InputError, match=r"fullgraph=True.*is none"):
        CompileConfig(backend="cuda_graph", fullgraph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [None, "left"])
def test_real_graphs(side: str | None) -> None:
    model = make_ours(hidden_size=64, num_key_value_heads=2).to("cuda", torch.bfloat16)
    for length in (9, 12):
        ids, mask = random_ids(2, length).cuda(), padding_mask(2, length, side)
        mask = None if mask is None else mask.cuda()
        options = GREEDY | {"attention_mask": mask, "cache_implementation": "static"}
        plain = model.generate(ids, **options, disable_compile=True)
        assert torch.equal(model.generate(ids, **(options | GRAPH)), plain)
    assert len(recordings_of(model)) == 1
