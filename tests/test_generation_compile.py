"""Generation with a compiled decode step: the numbers of the plain one, and one program for many calls."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from parity import assert_close, make_ours, padding_mask, random_ids
from quarterdeck import CohereForCausalLM, CompileConfig, GenerationConfig, StaticCache
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.caches import make_cache
from quarterdeck.generation.compiled import CompiledSteps, compiled_step, padded_room, steps_of
from quarterdeck.quantization.surgery import quantize_model

B = 2
GREEDY: dict[str, Any] = {
    "max_new_tokens": 6,
    "do_sample": False,
    "eos_token_id": None,
    "return_dict_in_generate": True,
}
ALL: dict[str, Any] = GREEDY | {
    "output_logits": True,
    "output_scores": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.fixture(autouse=True)
def fresh_compiler(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.WARNING, "torch.__trace")  # what the compiler tells pytest takes longer than compiling
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> CohereForCausalLM:
    return make_ours(num_hidden_layers=1, num_key_value_heads=2, use_qk_norm=True)


def counting() -> tuple[CompileCounterWithBackend, dict[str, Any]]:
    """What counts programs, and options that compile with it."""
    counter = CompileCounterWithBackend("eager")
    return counter, {
        "cache_implementation": "static",
        "compile_config": CompileConfig(fullgraph=True, backend=counter),
    }


def same(ours: Any, plain: Any) -> None:
    assert torch.equal(ours.sequences, plain.sequences)
    for mine, theirs in zip(ours.logits or (), plain.logits or (), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("side", [None, "left"])
def test_one_program_for_inputs_of_different_length(side: str | None) -> None:
    model = make_ours(num_key_value_heads=2, use_qk_norm=True)
    counter, options = counting()
    for length in (9, 5, 17, 9):
        mask = None if side is None else padding_mask(B, length, side)
        ids = random_ids(B, length)
        ours = model.generate(ids, attention_mask=mask, **GREEDY, **options, output_logits=True)
        same(ours, model.generate(ids, attention_mask=mask, **GREEDY, output_logits=True))
    assert counter.frame_count == 1
    assert len(steps_of(model)) == 1
    assert isinstance(ours.past_key_values, StaticCache)
    assert ours.past_key_values.get_seq_length() == 9 + 6 - 1


def test_the_prompt_is_not_compiled(model: CohereForCausalLM) -> None:
    lengths: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        lengths.extend(one.shape[1] for one in inputs if one.dtype == torch.int64 and one.ndim == 2)
        return graph.forward

    config = CompileConfig(backend=backend, fullgraph=True)
    model.generate(random_ids(B, 9), **GREEDY, cache_implementation="static", compile_config=config)
    assert set(lengths) == {1}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_everything_that_a_step_gives_is_right(attention: str) -> None:
    model = make_ours(attention, num_key_value_heads=2)
    counter, options = counting()
    ids = random_ids(B, 5)
    ours, plain = model.generate(ids, **ALL, **options), model.generate(ids, **ALL, cache_implementation="static")
    same(ours, plain)
    for number in range(6):
        assert_close(ours.scores[number], plain.scores[number])
        for mine, theirs in zip(ours.hidden_states[number], plain.hidden_states[number], strict=True):
            assert_close(mine, theirs)
        for mine, theirs in zip(ours.attentions[number], plain.attentions[number], strict=True):
            keys = theirs.shape[-1]
            assert_close(mine[..., :keys], theirs)
            assert not mine[..., keys:].any(), "the room that was added is not looked at"
    assert counter.frame_count == 1


def test_programs_are_of_a_kind_of_call(model: CohereForCausalLM) -> None:
    counter, options = counting()
    model.generate(random_ids(B, 5), **GREEDY, **options)
    model.generate(random_ids(1, 5), **GREEDY, **options)  # other rows
    model.set_attn_implementation("eager")
    model.generate(random_ids(B, 5), **GREEDY, **options)
    model.to(torch.bfloat16)
    model.generate(random_ids(B, 5), **GREEDY, **options)
    assert (counter.frame_count, len(steps_of(model))) == (4, 4)
    model.set_attn_implementation("sdpa")
    model.to(torch.float32)
    model.generate(random_ids(B, 7), **GREEDY, **options)
    assert (counter.frame_count, len(steps_of(model))) == (4, 4)


def test_more_kinds_of_calls_than_a_compiler_puts_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quarterdeck.generation.compiled.KEPT", 2)
    small = make_ours(num_hidden_layers=1)
    counter, options = counting()
    with torch._dynamo.config.patch(recompile_limit=2):  # of one function; it is 8 otherwise
        for rows in (1, 2, 3, 4):
            small.generate(random_ids(rows, 3), **(GREEDY | {"max_new_tokens": 2}), **options)
    assert (counter.frame_count, len(steps_of(small))) == (4, 2)


def test_surgery_is_noticed(model: CohereForCausalLM) -> None:
    _, options = counting()
    ids = random_ids(B, 5)
    model.generate(ids, **GREEDY, **options)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.neg_()
    mlp = model.model.layers[0].mlp
    mlp.up_proj = torch.nn.Sequential(mlp.up_proj, torch.nn.Tanh())
    same(
        model.generate(ids, **GREEDY, **options, output_logits=True), model.generate(ids, **GREEDY, output_logits=True)
    )


def test_a_cache_of_ones_own_goes_on(model: CohereForCausalLM) -> None:
    counter, options = counting()
    del options["cache_implementation"]
    ids = random_ids(B, 5)
    cache = StaticCache(model.config, 32)
    first = model.generate(ids, past_key_values=cache, **GREEDY, **options).sequences
    again = model.generate(first, past_key_values=cache, **GREEDY, **options).sequences
    plain = model.generate(ids, **(GREEDY | {"max_new_tokens": 12})).sequences
    assert torch.equal(again, plain)
    assert counter.frame_count == 1


def test_samples_are_the_same(model: CohereForCausalLM) -> None:
    _, options = counting()
    given: dict[str, Any] = GREEDY | {"do_sample": True, "seed": 3, "num_return_sequences": 3}
    ids = random_ids(1, 5)
    same(model.generate(ids, **given, **options), model.generate(ids, **given))


def test_copies_and_files_have_no_programs(model: CohereForCausalLM) -> None:
    counter, options = counting()
    ids = random_ids(B, 5)
    plain = model.generate(ids, **GREEDY, **options).sequences
    other = copy.deepcopy(model)
    assert (len(steps_of(model)), len(steps_of(other))) == (1, 0)
    with torch.no_grad():
        other.model.embed_tokens.weight.neg_()
    assert not torch.equal(other.generate(ids, **GREEDY, **options).sequences, plain)
    assert counter.frame_count == 2
    file = io.BytesIO()
    torch.save(steps_of(model), file)
    file.seek(0)
    assert len(torch.load(file, weights_only=False)) == 0
    assert isinstance(steps_of(model), CompiledSteps)


def test_nothing_is_compiled_unless_asked_for_on_the_cpu(model: CohereForCausalLM) -> None:
    ids = random_ids(B, 5)
    plain = model.generate(ids, **GREEDY, cache_implementation="static")
    assert plain.past_key_values.max_cache_len == 5 + 6 - 1
    _, options = counting()
    ours = model.generate(ids, **GREEDY, **options, disable_compile=True)
    assert ours.past_key_values.max_cache_len == 5 + 6 - 1
    assert len(steps_of(model)) == 0
    assert model.generate(ids, **GREEDY, **options).past_key_values.max_cache_len == 256


class Elsewhere:
    """As much of a model on an accelerator as the decision looks at."""

    device = torch.device("cuda")
    hf_device_map = None

    def __init__(self, model: CohereForCausalLM) -> None:
        self.config = model.config
        self.looks = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "hf_device_map":
            self.looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("options", "one_token", "compiled"),
    [
        ({"cache_implementation": "static"}, True, True),
        ({"cache_implementation": "static"}, False, False),  # beams, or guesses
        ({"cache_implementation": "static", "disable_compile": True}, True, False),
        ({"cache_implementation": "static", "use_cache": False}, True, False),
        ({"cache_implementation": "offloaded_static"}, True, False),
        ({}, True, False),
    ],
)
def test_one_decision_for_steps_and_cache(
    model: CohereForCausalLM, options: dict[str, Any], one_token: bool, compiled: bool
) -> None:
    elsewhere: Any = Elsewhere(model)
    config = GenerationConfig(**options)
    step = compiled_step(config, elsewhere, None, one_token=one_token)
    assert (step is not None) == compiled
    assert elsewhere.looks == compiled, "a model is looked at only if all else allows compiling"
    cache = make_cache(config, elsewhere, None, room=40, is_compiled=step is not None)
    if isinstance(cache, StaticCache):
        assert cache.max_cache_len == (256 if compiled else 40)


def test_a_model_is_not_looked_at_where_nobody_asks(model: CohereForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr("quarterdeck.generation.compiled.obstacle_of", looked.append)
    model.generate(random_ids(B, 5), **GREEDY, cache_implementation="static")
    assert not looked
    _, options = counting()
    model.generate(random_ids(B, 5), **GREEDY, **options)
    assert looked == [model]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # of its own modules
def test_the_real_compiler(model: CohereForCausalLM) -> None:
    ids = random_ids(B, 5)
    config = CompileConfig(fullgraph=True)
    ours = model.generate(ids, **GREEDY, cache_implementation="static", compile_config=config, output_logits=True)
    same(ours, model.generate(ids, **GREEDY, output_logits=True))


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_packed_weights_are_part_of_the_program(form: str) -> None:
    model = quantize_model(make_ours(num_hidden_layers=1, hidden_size=64, num_key_value_heads=2), form)
    counter, options = counting()
    for length in (5, 9):
        ids = random_ids(B, length)
        ours = model.generate(ids, **GREEDY, **options, output_logits=True)
        same(ours, model.generate(ids, **GREEDY, output_logits=True))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # of its own modules
def test_the_real_compiler_with_packed_weights() -> None:
    model = quantize_model(make_ours(num_hidden_layers=1, hidden_size=64), "int4")
    ids = random_ids(B, 5)
    options: dict[str, Any] = {"cache_implementation": "static", "compile_config": CompileConfig(fullgraph=True)}
    same(
        model.generate(ids, **GREEDY, **options, output_logits=True), model.generate(ids, **GREEDY, output_logits=True)
    )


# -- what cannot be compiled ---------------------------------------------------------------------------


class Native(torch.nn.Linear):
    is_compileable = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "its cache is not of fixed size.*cache_implementation='static'"),
        ({"cache_implementation": "quantized"}, "its cache is not of fixed size"),
        ({"cache_implementation": "offloaded_static"}, "its cache is not of fixed size"),
        ({"cache_implementation": "static", "num_beams": 2}, "beams and candidates"),
        ({"cache_implementation": "static", "prompt_lookup_num_tokens": 2}, "beams and candidates"),
        ({"use_cache": False}, "its cache is not of fixed size"),
    ],
)
def test_what_cannot_be_compiled_is_refused(model: CohereForCausalLM, options: dict[str, Any], message: str) -> None:
    rows = 1 if "prompt_lookup_num_tokens" in options else B
    with pytest.raises(UnsupportedOptionError, match=f"cannot be compiled: {message}.*disable_compile=True"):
        model.generate(random_ids(rows, 5), compile_config=CompileConfig(backend="eager"), max_new_tokens=2, **options)


def test_models_that_cannot_be_compiled(model: CohereForCausalLM) -> None:
    _, options = counting()
    model.model.layers[0].mlp.up_proj = Native(32, 37, bias=False)
    with pytest.raises(UnsupportedOptionError, match="it has a Native, which calls code outside PyTorch"):
        model.generate(random_ids(B, 5), **GREEDY, **options)
    scaled = make_ours(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedOptionError, match="rotary frequencies depend on the length"):
        scaled.generate(random_ids(B, 5), **GREEDY, **options)
    spread: Any = make_ours()
    spread.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    with pytest.raises(UnsupportedOptionError, match=r"on different devices \(cpu, disk\)"):
        spread.generate(random_ids(B, 5), **GREEDY, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fullgraph": "yes"}, "fullgraph='yes'"),
        ({"dynamic": 3}, "dynamic=3"),
        ({"backend": 3}, "backend=3: it must be the name of one, or a function"),
        ({"options": "fast"}, "options='fast': they must be a dictionary"),
        ({"backend": "eager", "mode": "max-autotune"}, "mode='max-autotune' has no effect with backend='eager'"),
        ({"options": {"max_autotune": True}, "mode": "default"}, "mode='default' has no effect"),
    ],
)
def test_settings_that_cannot_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompileConfig(**options)


def test_a_compile_config_in_files() -> None:
    config = GenerationConfig(compile_config=CompileConfig(dynamic=True, options={"max_autotune": True}))
    assert '"dynamic": true' in config.to_json_string()
    assert GenerationConfig.from_dict(config.to_diff_dict()) == config
    again = GenerationConfig.from_dict({"compile_config": {"dynamic": True, "options": {"max_autotune": True}}})
    assert again.compile_config == config.compile_config
    with pytest.raises(UnsupportedOptionError, match="compile_config has 'speed'; its fields are fullgraph, dynamic"):
        GenerationConfig(compile_config={"speed": 9})
    with pytest.raises(InputError, match="is a function: a file can hold a name only"):
        GenerationConfig(compile_config=CompileConfig(backend=print)).to_json_string()
    with pytest.raises(InputError, match="compile_config='fast': it must be a CompileConfig"):
        GenerationConfig(compile_config="fast")


def test_rooms_of_many_lengths_are_one() -> None:
    assert [padded_room(room) for room in (1, 256, 257, 4096, 5000, 100_000, 131_072)] == [
        256,
        256,
        512,
        4096,
        5120,
        106_496,
        131_072,
    ]
    assert all(room <= padded_room(room) <= max(256, room * 9 // 8 + 256) for room in range(1, 140_000, 37))
