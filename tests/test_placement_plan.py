"""Device maps that are worked out, against those of transformers; on models without memory and devices that are not."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import transformers
from quarterdeck import CohereConfig, CohereForCausalLM, CohereModel
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.weights.placement import (
    STRATEGIES,
    check_device_map,
    checked_memory,
    place_model,
    plan_device_map,
)

FIELDS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 7,
}
LAYER = 4 * (4 * 64 * 64 + 3 * 64 * 256 + 64)  # bytes in float32
TABLE = 4 * 1000 * 64
ALL = 6 * LAYER + TABLE + 4 * 64
# of two accelerators, of one and a CPU, of a CPU alone, and such that nothing fits anywhere
MEMORIES: list[dict[int | str, int]] = [
    {0: ALL * 5 // 4, 1: ALL * 5 // 4, "cpu": ALL},
    {0: ALL * 3 // 4, 1: ALL * 3 // 4, "cpu": ALL},
    {0: ALL // 2, 1: ALL // 2, "cpu": ALL},
    {0: ALL // 2, 1: ALL // 2},
    {0: ALL // 2, "cpu": ALL},
    {0: 2 * ALL, 1: 0, "cpu": ALL},
    {0: LAYER * 3, "cpu": LAYER * 3},
    {0: LAYER, "cpu": ALL * 2},
    {"cpu": 2 * ALL},
    {"cpu": ALL // 2},
    {"cpu": 0},
]


def ours(kind: type[Any] = CohereForCausalLM, **fields: Any) -> Any:
    return kind._on_meta(CohereConfig(**FIELDS | fields))


@functools.cache
def kept(tie_word_embeddings: bool = True) -> Any:
    return ours(tie_word_embeddings=tie_word_embeddings)


@functools.cache
def theirs(dtype: torch.dtype, tie_word_embeddings: bool = True) -> Any:
    config = transformers.CohereConfig(**FIELDS, tie_word_embeddings=tie_word_embeddings)
    with torch.device("meta"):
        return transformers.CohereForCausalLM(config).to(dtype)


def theirs_planned(strategy: str, memory: dict[int | str, Any], dtype: torch.dtype, **fields: Any) -> Any:
    # 32 bytes of frequencies are a buffer there and not here: too little to matter where sizes are not that close
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*bytes of buffer for offloaded layers")
        return transformers.modeling_utils._get_device_map(theirs(dtype, **fields), strategy, memory, None, dtype, None)


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_maps_are_those_of_transformers(strategy: Any, memory: dict[int | str, int], tie_word_embeddings: bool) -> None:
    fields = {"tie_word_embeddings": tie_word_embeddings}
    planned = plan_device_map(kept(tie_word_embeddings), strategy, max_memory=memory, dtype=torch.float32)
    assert planned == theirs_planned(strategy, dict(memory), torch.float32, **fields)


@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_what_torch_holds_in_reserve_is_free_but_not_above_the_limit(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: dict[int | str, int] = {0: ALL // 2, "cpu": ALL}
    plain = plan_device_map(ours(), strategy, max_memory=memory, dtype=torch.float32)
    assert set(plain.values()) == {0, "cpu"}
    monkeypatch.setattr("quarterdeck.weights.placement._reserved", lambda place: 0 if place == "cpu" else ALL)
    assert plan_device_map(ours(), strategy, max_memory=memory, dtype=torch.float32) == plain
    free = {0: ALL // 2, "cpu": ALL}
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda max_memory=None: dict(free))
    monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda *args, **options: dict(free))
    assert plan_device_map(ours(), strategy, dtype=torch.float32) == {"": 0}


def test_the_type_counts() -> None:
    memory: dict[int | str, int] = {0: ALL // 2, 1: ALL // 2, "cpu": ALL}
    full, half = (plan_device_map(ours(), "auto", max_memory=memory, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert half == theirs_planned("auto", dict(memory), torch.bfloat16) != full
    double = plan_device_map(
        ours(), "auto", max_memory={key: 2 * value for key, value in memory.items()}, dtype=torch.float64
    )
    assert double == full


def test_memory_as_text_is_memory_in_bytes() -> None:
    text = {0: "600KB", "cpu": "0.01GiB"}
    planned = plan_device_map(ours(), "sequential", max_memory=text, dtype=torch.float32)
    assert planned == theirs_planned("sequential", dict(text), torch.float32)
    assert text == {0: "600KB", "cpu": "0.01GiB"}  # which accelerate changes
    assert checked_memory({1: "1MB", "cpu": "2MiB", "disk": 5}) == {1: 10**6, "cpu": 2**21, "disk": 5}
    assert len(set(planned.values())) > 1


def test_a_layer_is_never_divided_and_ties_are_together() -> None:
    for share in range(1, 20, 3):
        memory: dict[int | str, int] = {0: ALL * share // 20, 1: ALL // 3, "cpu": ALL // 3}
        planned = plan_device_map(kept(), "sequential", max_memory=memory, dtype=torch.float32)
        assert not [name for name in planned if name.startswith("model.layers.") and name.count(".") > 2]
        placement = place_model(kept(), dict.fromkeys(planned, "cpu"))
        assert placement.is_divided is False
        table = planned.get("model.embed_tokens", planned.get("model", planned.get("")))
        assert table == planned.get("lm_head", planned.get(""))


def test_the_decoder_alone() -> None:
    planned = plan_device_map(
        ours(CohereModel), "sequential", max_memory={0: ALL // 2, "cpu": ALL}, dtype=torch.float32
    )
    assert set(planned.values()) == {0, "cpu"}
    assert planned["embed_tokens"] == 0


def test_what_is_free_is_used_where_nothing_is_said() -> None:
    if not torch.accelerator.is_available():
        for strategy in STRATEGIES:
            assert plan_device_map(ours(), strategy, dtype=torch.float32) == {"": "cpu"}


class Quarter(nn.Module):
    """Stands for a linear that has full weights until it is loaded, and then a quarter of their bytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def placed_bytes(self) -> int:
        return self.weight.nbytes // 4

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_modules_say_how_many_bytes_they_will_take() -> None:
    model = ours()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                setattr(part, name, Quarter(child))
    memory: dict[int | str, int] = {0: ALL - TABLE, "cpu": ALL}
    assert set(plan_device_map(ours(), "sequential", max_memory=memory, dtype=torch.float32).values()) == {0, "cpu"}
    assert plan_device_map(model, "sequential", max_memory=memory, dtype=torch.float32) == {"": 0}
    assert isinstance(model.model.layers[0].mlp.up_proj, Quarter)  # the model itself is as it was
    assert model.model.layers[0].mlp.up_proj.weight.shape == (256, 64)


# -- checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["lots", "-1GB", -5, 2.5, True, None, ""])
def test_amounts_that_are_none(amount: Any) -> None:
    with pytest.raises(InputError, match=r"max_memory\[0\] is .*, but must be a number of bytes"):
        checked_memory({0: amount})


@pytest.mark.parametrize("place", ["cuda:0", -1, "engine room", True, 1.5])
def test_memory_of_what_is_no_device(place: Any) -> None:
    with pytest.raises(InputError, match=r"max_memory names .* the numbers of accelerators, 'cpu' and 'disk'"):
        checked_memory({place: 5})


def test_memory_that_is_no_mapping_or_has_no_use() -> None:
    with pytest.raises(InputError, match="max_memory is '10GB', but must be a dictionary"):
        check_device_map("auto", "10GB")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedOptionError, match=r"max_memory=.* is refused: .*device_map='cpu' says all places"):
        check_device_map("cpu", {"cpu": "10GB"})


def test_ways_to_write_one_place() -> None:
    for place in ("cpu", torch.device("cpu"), "cpu:0", {"": "cpu"}, {"": torch.device("cpu", 0)}):
        assert check_device_map(place, None) == {"": "cpu"}
    assert check_device_map(None, None) == {"": "cpu"} or torch.get_default_device().type != "cpu"
    assert check_device_map("disk", None) == {"": "disk"}
    assert check_device_map("auto", None) == "auto"
    with pytest.raises(InputError, match="device_map is empty"):
        check_device_map({}, None)


@pytest.mark.parametrize("place", ["engine room", "cuda:99", 99, -1, True, None, 1.5, "xla", "auto"])
def test_places_that_there_are_not(place: Any) -> None:
    with pytest.raises(InputError, match=r"device_map\['lm_head'\] is .*(no device|device here|devices here)"):
        check_device_map({"": "cpu", "lm_head": place}, None)


def test_names_that_the_model_does_not_have() -> None:
    with pytest.raises(InputError, match=r"names 'model.layer', .*did you mean 'model.layers'"):
        place_model(ours(), {"": "cpu", "model.layer": "disk"})
    with pytest.raises(InputError, match=r"names 'model.norm.weight', and the model has no such module"):
        place_model(ours(), {"": "cpu", "model.norm.weight": "disk"})
    with pytest.raises(InputError, match=r"names 'periscope', .*named_modules\(\) lists them"):
        place_model(ours(), {"": "cpu", "periscope": "disk"})


def test_weights_that_have_no_place() -> None:
    layers = {f"model.layers.{i}": "cpu" for i in range(5)}
    with pytest.raises(
        InputError, match=r"no place for 11 weights: model.embed_tokens.weight, model.layers.5.*\.\.\.;"
    ):
        place_model(ours(), layers)
    with pytest.raises(InputError, match=r"no place for 1 weights: lm_head.weight; name their modules, or give ''"):
        place_model(ours(), {"model": "cpu"})


def test_one_tensor_has_one_place() -> None:
    with pytest.raises(
        InputError, match=r"lm_head.weight and model.embed_tokens.weight are one tensor .*'disk' and 'cpu'"
    ):
        place_model(ours(), {"": "cpu", "lm_head": "disk"})
    placement = place_model(ours(tie_word_embeddings=False), {"": "cpu", "lm_head": "disk"})
    assert placement.parts == {"model": "cpu", "lm_head": "disk"}


def test_the_most_specific_name_counts() -> None:
    given = {"": "cpu", "model.layers.1": "disk", "model.layers.1.mlp": "cpu", "model.layers.1.mlp.up_proj": "disk"}
    placement = place_model(ours(), given)
    assert placement.device_map == given
    assert placement.is_divided
    assert placement.main == "cpu"
    assert placement.where("model.layers.1.mlp.down_proj.weight") == "cpu"
    assert placement.where("model.layers.1.mlp.up_proj.weight") == "disk"
    assert placement.device("model.layers.1.self_attn.q_proj.weight").type == "meta"
    assert placement.where("model.layers.10.mlp") == "cpu"
    covered = {name: place for name, place in placement.parts.items() if name.startswith("model.layers.1.")}
    assert (
        covered
        == {
            "model.layers.1.self_attn": "disk",
            "model.layers.1.mlp.gate_proj": "cpu",
            "model.layers.1.mlp.up_proj": "disk",
            "model.layers.1.mlp.down_proj": "cpu",
            "model.layers.1.mlp.act_fn": "cpu",
            "model.layers.1.input_layernorm": "disk",
        }
        or "model.layers.1.mlp.act_fn" not in covered
    )


def test_inputs_go_to_the_first_accelerator() -> None:
    given: dict[str, Any] = {"": "cpu", "model.layers.1": 1, "model.layers.2": 0}
    assert place_model(ours(), given).main == 1
    assert place_model(ours(), {**given, "model.embed_tokens": 2, "lm_head": 2}).main == 2
