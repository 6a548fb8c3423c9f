"""Models that are divided among places compute what whole ones do; they are saved, and refuse to be moved."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from parity import TINY, Pair, make_pair, padding_mask, random_ids, transformers
from quarterdeck import LLM, CohereForCausalLM, CohereModel, CompileConfig, DynamicCache, StaticCache, pipeline
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.weights.load import LoadReport
from quarterdeck.weights.offload import OffloadedWeights, dispatch, offload_weights
from quarterdeck.weights.placement import Placement, place_model
from quarterdeck.weights.reader import MemoryTensors

FIELDS = {"num_hidden_layers": 4, "num_key_value_heads": 2, "use_qk_norm": True}
IDS = random_ids(2, 9)
MAPS: dict[str, dict[str, Any]] = {
    "all on the disk": {"": "disk"},
    "two layers on the disk": {"": "cpu", "model.layers.1": "disk", "model.layers.3": "disk"},
    "tables on the disk": {"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"},
    "every part named": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.layers.2": "disk",
        "model.layers.3": "disk",
        "model.norm": "disk",
        "lm_head": "cpu",
    },
    "a layer divided": {"": "cpu", "model.layers.0.mlp": "disk", "model.layers.1.self_attn.k_proj": "disk"},
    "a piece kept": {"": "cpu", "model.layers": "disk", "model.layers.2.mlp.up_proj": "cpu"},
}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair("sdpa", **FIELDS)


@pytest.fixture(scope="module")
def folder(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float32."""
    folder = tmp_path_factory.mktemp("whole")
    pair.ours.save_pretrained(folder, max_shard_size="40KB")
    return folder


def load(folder: Path, **options: Any) -> CohereForCausalLM:
    return CohereForCausalLM.from_pretrained(folder, **options)


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **options: Any) -> Tensor:
    result: Tensor = model(ids, **options).logits
    return result


def on_meta(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


# -- the same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_outputs_are_those_of_the_whole_model(pair: Pair, folder: Path, name: str) -> None:
    model = load(folder, device_map=MAPS[name])
    assert model.hf_device_map == MAPS[name]
    assert model.device == torch.device("cpu")
    away = on_meta(model)
    assert away
    for _ in range(2):
        assert torch.equal(logits(model), logits(pair.ours))
        mask = padding_mask(2, 9, "left")
        assert torch.equal(logits(model, attention_mask=mask), logits(pair.ours, attention_mask=mask))
        assert on_meta(model) == away | ({"lm_head.weight"} if "model.embed_tokens.weight" in away else set())


@pytest.mark.parametrize("name", MAPS)
def test_generation(pair: Pair, folder: Path, name: str) -> None:
    model = load(folder, device_map=MAPS[name])
    for options in ({}, {"cache_implementation": "static"}, {"do_sample": True, "seed": 5}, {"num_beams": 2}):
        options = {"max_new_tokens": 6, **options}
        assert torch.equal(model.generate(IDS, **options), pair.ours.generate(IDS, **options)), options


@pytest.mark.parametrize("percent", [0.5, 0.7, 0.8])
@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_what_does_not_fit_goes_to_the_disk(pair: Pair, folder: Path, percent: float, strategy: str) -> None:
    """transformers' test_disk_offload_safetensors."""
    size = pair.ours.get_memory_footprint()
    model = load(folder, device_map=strategy, max_memory={"cpu": int(percent * size)})
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert on_meta(model)
    assert torch.equal(logits(model), logits(pair.ours))
    peer = transformers.CohereForCausalLM.from_pretrained(
        folder, device_map=strategy, max_memory={"cpu": int(percent * size)}, attn_implementation="sdpa"
    )
    assert {k: v for k, v in peer.hf_device_map.items() if k != "model.rotary_emb"} == {
        k: v for k, v in model.hf_device_map.items() if k != "model.rotary_emb"
    }
    torch.testing.assert_close(logits(model), logits(peer), rtol=1e-5, atol=1e-5)


def test_what_fits_is_not_divided(pair: Pair, folder: Path) -> None:
    for place in ("cpu", "auto", "balanced", "balanced_low_0", "sequential", {"model": "cpu", "lm_head": "cpu"}):
        model = load(folder, device_map=place)
        whole = place if isinstance(place, dict) else {"": "cpu"}
        assert model.hf_device_map == whole or torch.accelerator.is_available()
        assert not on_meta(model)
        if not torch.accelerator.is_available():
            model.to(torch.float32)  # is free to go where it will
    assert not hasattr(load(folder), "hf_device_map")
    assert not hasattr(pair.ours, "hf_device_map")


def test_the_decoder_alone(pair: Pair, folder: Path) -> None:
    model = CohereModel.from_pretrained(folder, device_map={"": "cpu", "layers.2": "disk", "norm": "disk"})
    assert on_meta(model) == {n for n, _ in model.named_parameters() if n.startswith(("layers.2.", "norm."))}
    with torch.no_grad():
        assert torch.equal(model(IDS).last_hidden_state, pair.ours.model(IDS).last_hidden_state)


def test_what_the_caller_gets_besides(pair: Pair, folder: Path) -> None:
    model = load(folder, device_map=MAPS["every part named"])
    options = {"output_hidden_states": True, "output_attentions": True, "labels": IDS}
    with torch.no_grad():
        ours, whole = model(IDS, **options), pair.ours(IDS, **options)
    assert type(ours) is type(whole)
    assert torch.equal(ours.loss, whole.loss)
    assert all(map(torch.equal, ours.hidden_states, whole.hidden_states))
    assert all(map(torch.equal, ours.attentions, whole.attentions))
    assert isinstance(ours.past_key_values, DynamicCache)
    assert torch.equal(
        logits(model, logits_to_keep=torch.tensor([3])), logits(pair.ours, logits_to_keep=torch.tensor([3]))
    )


def test_sizes_are_those_of_the_whole_model(pair: Pair, folder: Path) -> None:
    for device_map in MAPS.values():
        model = load(folder, device_map=device_map)
        for _ in range(2):
            assert model.get_memory_footprint() == pair.ours.get_memory_footprint()
            assert model.num_parameters() == pair.ours.num_parameters()
            assert model.dtype == torch.float32
            logits(model)


# -- where weights are read from ---------------------------------------------------------------------------


def test_weights_are_read_from_the_checkpoint_itself(folder: Path, tmp_path: Path) -> None:
    model = load(folder, device_map={"": "disk"}, offload_folder=tmp_path / "hold")
    assert not (tmp_path / "hold").exists()
    assert model._offloaded is not None
    assert {path.parent for path in model._offloaded.paths()} == {folder}
    assert len(model._offloaded.paths()) == len(list(folder.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("with_folder", [True, False])
def test_another_type_is_written_or_converted_at_each_use(folder: Path, tmp_path: Path, with_folder: bool) -> None:
    options: dict[str, Any] = {"offload_folder": tmp_path / "hold"} if with_folder else {}
    model = load(folder, dtype=torch.bfloat16, device_map=MAPS["a piece kept"], **options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(load(folder, dtype=torch.bfloat16)))
    files = list((tmp_path / "hold").rglob("*.safetensors"))
    assert len(files) == (len(on_meta(model)) if with_folder else 0)
    assert all(tensor.dtype == torch.bfloat16 for file in files for tensor in load_file(file).values())
    twin = copy.deepcopy(model)
    del model
    gc.collect()
    assert torch.equal(logits(twin), logits(load(folder, dtype=torch.bfloat16)))
    del twin
    gc.collect()
    assert not list((tmp_path / "hold").rglob("*.safetensors"))


def test_two_models_may_share_a_folder(folder: Path, pair: Pair, tmp_path: Path) -> None:
    models = [load(folder, dtype=d, device_map={"": "disk"}, offload_folder=tmp_path) for d in ("bfloat16", "float64")]
    for model, dtype in zip(models, (torch.bfloat16, torch.float64), strict=True):
        assert torch.equal(logits(model), logits(load(folder, dtype=dtype)))


def test_weights_that_are_in_no_file(pair: Pair, tmp_path: Path) -> None:
    """transformers' test_disk_offload_bin: what cannot be read from the checkpoint needs a folder."""
    options: dict[str, Any] = {"config": pair.ours.config, "state_dict": pair.ours.state_dict()}
    options["device_map"] = MAPS["every part named"]
    with pytest.raises(
        InputError, match=r"model.layers.0.self_attn.q_proj.weight is to be on the disk, .*offload_folder"
    ):
        CohereForCausalLM.from_pretrained(None, **options)
    model = CohereForCausalLM.from_pretrained(None, **options, offload_folder=tmp_path)
    assert torch.equal(logits(model), logits(pair.ours))


def test_missing_weights_are_made_and_put_away(pair: Pair, folder: Path, tmp_path: Path) -> None:
    bare = {n: t for n, t in pair.ours.state_dict().items() if n != "model.layers.1.mlp.up_proj.weight"}
    options: dict[str, Any] = {"state_dict": bare, "strict": False, "offload_folder": tmp_path}
    model = load(folder, device_map={"": "cpu", "model.layers.1": "disk"}, **options)
    assert "model.layers.1.mlp.up_proj.weight" in on_meta(model)
    assert logits(model).isfinite().all()
    assert not torch.equal(logits(model), logits(pair.ours))


# -- what can be done with it ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_saving(pair: Pair, folder: Path, tmp_path: Path, name: str) -> None:
    model = load(folder, device_map=MAPS[name])
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert torch.equal(logits(load(tmp_path)), logits(pair.ours))
    peer = transformers.CohereForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    torch.testing.assert_close(logits(peer), logits(pair.theirs))
    stored = {n: t for file in tmp_path.glob("*.safetensors") for n, t in load_file(file).items()}
    whole = pair.ours.state_dict()
    assert stored.keys() == whole.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, whole[n]) for n, tensor in stored.items())


def test_saving_over_what_is_read(folder: Path) -> None:
    model = load(folder, device_map={"": "disk"})
    with pytest.raises(InputError, match=r"parts of this model are on the disk in .*: save it into another folder"):
        model.save_pretrained(folder)


def test_a_divided_model_is_not_moved_or_converted(folder: Path) -> None:
    model = load(folder, device_map=MAPS["two layers on the disk"])
    before = logits(model)
    for move in (lambda: model.to("cpu"), model.cpu, model.half, lambda: model.to(torch.float64), model.model.double):
        with pytest.raises(InputError, match=r"divided among several places .* load it again with another device_map"):
            move()
    with pytest.raises(InputError, match="resize it on one device"):
        model.resize_token_embeddings(200)
    assert torch.equal(logits(model), before)


def test_threads_take_turns(pair: Pair, folder: Path) -> None:
    model = load(folder, device_map={"": "disk"})
    expected, seen = logits(pair.ours), []

    def work() -> None:
        for _ in range(5):
            with contextlib.suppress(InputError):
                model(IDS + 1000)  # an error gives the turn back
            seen.append(torch.equal(logits(model), expected))

    for one in (threads := [threading.Thread(target=work) for _ in range(4)]):
        one.start()
    for one in threads:
        one.join(timeout=60)
    assert seen == [True] * 20
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    assert twin._forward_pre_hooks != model._forward_pre_hooks


def test_compiling_is_refused(folder: Path) -> None:
    model = load(folder, device_map={"": "disk"})
    with pytest.raises(InputError, match=r"cannot be compiled: parts of the model are on different devices \(disk\)"):
        model.generate(IDS, max_new_tokens=3, cache_implementation="static", compile_config=CompileConfig())


def test_pipeline_and_llm_take_maps(tmp_path: Path) -> None:
    device_map = {"": "cpu", "model.layers.2": "disk"}
    whole, divided = pipeline(device="cpu"), pipeline(device_map=device_map)
    assert divided.model.hf_device_map == device_map
    assert divided.device == torch.device("cpu")
    options = {"max_new_tokens": 4, "do_sample": False}
    assert divided("Plants", **options) == whole("Plants", **options)
    kwargs = {"max_memory": {"cpu": "6MB"}, "offload_folder": str(tmp_path)}
    assert "disk" in pipeline(device_map="auto", model_kwargs=kwargs).model.hf_device_map.values()
    llm = LLM(device_map=device_map)
    assert llm.model.hf_device_map == device_map
    assert llm.generate("Plants").text == LLM(device="cpu").generate("Plants").text
    assert set(LLM(device_map="auto", max_memory={"cpu": "6MB"}).model.hf_device_map.values()) == {"cpu", "disk"}
    with pytest.raises(InputError, match="give one of them"):
        LLM(device="cpu", device_map="auto")
    with pytest.raises(InputError, match="device_map would only matter for loading"):
        LLM(llm.model, tokenizer=llm.tokenizer, device_map="auto")
    with pytest.raises(InputError, match="device_map would only matter for loading"):
        pipeline(model=llm.model, tokenizer=llm.tokenizer, device_map="auto")


def test_options_that_ask_for_what_is_so(folder: Path) -> None:
    load(folder, device_map="auto", offload_state_dict=True, offload_buffers=True)
    with pytest.raises(UnsupportedOptionError, match="offload_folder='hold' is refused: nothing goes to the disk"):
        load(folder, offload_folder="hold")


# -- several devices ---------------------------------------------------------------------------------------


def spread_over_meta(**fields: Any) -> CohereForCausalLM:
    """A model with its second half on the meta device, which stands for another device: mixing the two is an error."""
    model = make_pair("eager", **FIELDS, tie_word_embeddings=False, **fields).ours
    parts: dict[str, Any] = {f"model.layers.{i}": "cpu" if i < 2 else "meta" for i in range(4)}
    parts |= {"model.embed_tokens": "cpu", "model.norm": "meta", "lm_head": "meta", "model.rotary_emb": "cpu"}
    dispatch(model, Placement(parts, parts, "cpu"), OffloadedWeights())
    model._hf_hook.io_same_device = False  # type: ignore[union-attr]  # nothing comes back from there
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["plain", "padding", "explicit", "packed", "static"])
def test_what_layers_share_follows_them(attention: str, kind: str) -> None:
    model = spread_over_meta()
    model.set_attn_implementation(attention)
    options: dict[str, Any] = {
        "plain": {},
        "padding": {"attention_mask": padding_mask(2, 9, "left")},
        "explicit": {"attention_mask": torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()},
        "packed": {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]]).expand(2, -1), "use_cache": False},
        "static": {"past_key_values": StaticCache(model.config, 16), "cache_position": torch.arange(9)},
    }[kind]
    output = model(IDS, **options, output_hidden_states=True)
    assert [state.device.type for state in output.hidden_states] == ["cpu", "cpu", "cpu", "meta", "meta"]
    assert output.logits.device.type == "meta"
    if output.past_key_values is not None:
        devices = [keys.device.type for keys, _ in output.past_key_values if keys is not None]
        assert devices == ["cpu", "cpu", "meta", "meta"]


def test_what_is_shared_is_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, moves = spread_over_meta(), []
    original = Tensor.to

    def counted(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        moved = original(self, *arguments, **options)
        if moved.device != self.device and self.shape[-1:] == (model.config.head_dim // 2,):
            moves.append(self.shape)
        return moved

    monkeypatch.setattr(Tensor, "to", counted)
    model(IDS)
    assert len(moves) == 2  # cos and sin


def test_hooks_run_each_part_where_it_is() -> None:
    model = spread_over_meta()
    assert str(model._hf_hook.execution_device) == "cpu"  # type: ignore[union-attr]
    for name, module in model.named_modules():
        if name and list(module.parameters()) and name not in ("model", "model.layers"):
            place = "meta" if name.startswith(("model.layers.2", "model.layers.3", "model.norm", "lm_head")) else "cpu"
            hook: Any = module._hf_hook
            assert str(hook.execution_device) == place, name
            assert not hook.offload
            assert not hook.io_same_device, name


def test_weights_beside_an_accelerator_visit_it() -> None:
    """The meta device stands for the accelerator: all of the model is on the CPU but for its last norm."""
    model = make_pair("eager", **FIELDS).ours
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
    parts: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "model.layers", "lm_head"), "cpu")
    placement = Placement(parts | {"model.norm": "meta"}, parts | {"model.norm": "meta"}, "meta")
    offloaded = OffloadedWeights()
    offload_weights(model, placement, MemoryTensors({}), LoadReport(), offloaded, tied=model.tied_weights())
    assert set(offloaded) == set(whole)
    dispatch(model, placement, offloaded)
    for name, module in model.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if hook is not None and name != "model.norm" and list(module.parameters(recurse=False)):
            assert (hook.offload, str(hook.execution_device)) == (True, "meta"), name
    assert on_meta(model) >= set(whole) - {"lm_head.weight"}
    assert model(IDS.to("meta")).logits.device.type == "meta"
    assert all(torch.equal(offloaded[name], tensor) for name, tensor in whole.items())


def test_pieces_of_a_layer_give_their_results_back(folder: Path) -> None:
    """What a layer adds up must be in one place, wherever its pieces are."""
    given = {"": "cpu", "model.layers.1.mlp": "disk", "model.layers.2.self_attn.q_proj": "disk"}
    model = load(folder, device_map=given)
    for name in place_model(model, given).parts:
        hook: Any = getattr(model.get_submodule(name), "_hf_hook", None)
        assert hook is None or hook.io_same_device == name.startswith(("model.layers.1.", "model.layers.2."))
        assert hook is not None or not list(model.get_submodule(name).parameters())


@needs_gpu
@pytest.mark.parametrize("percent", [0.5, 0.7, 0.9])
def test_a_gpu_and_the_cpu(pair: Pair, folder: Path, percent: float) -> None:
    """transformers' test_cpu_offload and, on one GPU, test_model_parallelism."""
    size = pair.ours.get_memory_footprint()
    model = load(folder, device_map="auto", max_memory={0: int(percent * size), "cpu": size * 2})
    assert set(model.hf_device_map.values()) == {0, "cpu"}
    assert model.device == torch.device("cuda:0")
    expected = logits(load(folder, device_map=0), IDS.cuda())
    torch.testing.assert_close(logits(model, IDS.cuda()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(IDS.cuda(), max_new_tokens=6).cpu(), pair.ours.generate(IDS, max_new_tokens=6))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(pair: Pair, folder: Path) -> None:
    """transformers' test_model_parallelism."""
    size = pair.ours.get_memory_footprint()
    model = load(folder, device_map="balanced", max_memory={0: int(0.7 * size), 1: int(0.7 * size)})
    assert set(model.hf_device_map.values()) == {0, 1}
    torch.testing.assert_close(logits(model, IDS.cuda()).cpu(), logits(pair.ours), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(IDS.cuda(), max_new_tokens=6).cpu(), pair.ours.generate(IDS, max_new_tokens=6))


def test_shapes_only(folder: Path) -> None:
    assert TINY["hidden_size"] == load(folder, device_map="meta").lm_head.weight.shape[1]
    with pytest.raises(InputError, match="places a part on 'meta'"):
        load(folder, device_map={"": "cpu", "model.norm": "meta"})
