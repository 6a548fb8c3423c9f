"""Linears that use the kernels: an ``nn.Linear`` in all that can be seen of it, and nearer to the truth."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from parity import make_ours, random_ids
from quarterdeck import CohereForCausalLM, QuantizationConfig
from quarterdeck.kernels import dense, native
from quarterdeck.kernels.linears import NativeLinear, use_native_linears
from quarterdeck.quantization import modules as quantized_modules
from quarterdeck.quantization.surgery import quantize_model

pytestmark = pytest.mark.skipif(not native.levels(), reason="the native library is not built")

ROWS, COLUMNS = 520, 512  # just more weights than are left to PyTorch
TYPES = [torch.bfloat16, torch.float16]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(dtype: torch.dtype = torch.bfloat16, *, bias: bool = True, native_one: bool = True) -> nn.Linear:
    made = nn.Linear(COLUMNS, ROWS, bias=bias)
    made.weight.data = drawn(ROWS, COLUMNS)
    if bias:
        made.bias.data = drawn(ROWS, seed=1)
    made.to(dtype)
    if native_one:
        assert use_native_linears(made) == [""]
    return made


class Calls:
    """Counts what goes to the library."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._product = 0, dense.packed_product
        monkeypatch.setattr(dense, "packed_product", self)

    def __call__(self, *arguments: Any) -> Tensor:
        self.count += 1
        return self._product(*arguments)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


# -- the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_at_least_as_near_to_the_truth_as_pytorch(dtype: torch.dtype, bias: bool, calls: Calls) -> None:
    ours, plain = linear(dtype, bias=bias), linear(dtype, bias=bias, native_one=False)
    for rows in (1, 2, 3):
        x = drawn(1, rows, COLUMNS, seed=rows).to(dtype)
        exact = nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
        output = ours(x)
        assert calls.count == rows
        assert output.dtype == dtype
        assert output.shape == (1, rows, ROWS)
        assert (output.double() - exact).abs().mean() <= (plain(x).double() - exact).abs().mean()
        nearest = exact.to(dtype)
        assert (output == nearest).double().mean() > 0.98, "one rounding, but for ties that float32 sums decide"


# -- when PyTorch computes -----------------------------------------------------------------------------------


@torch.no_grad()
def test_more_rows_other_types_and_empty_inputs_are_pytorchs(calls: Calls) -> None:
    ours, plain = linear(), linear(native_one=False)
    for x in (drawn(4, COLUMNS).bfloat16(), drawn(0, COLUMNS).bfloat16()):
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.float()(drawn(1, COLUMNS)), plain.float()(drawn(1, COLUMNS)))
    assert calls.count == 0
    ours.half()(drawn(1, COLUMNS).half())
    assert calls.count == 1, "it follows the type"


@pytest.mark.parametrize("wants", ["weight", "bias", "input"])
def test_gradients_are_pytorchs(wants: str, calls: Calls) -> None:
    gradients = []
    for made in (linear(), linear(native_one=False)):
        made.requires_grad_(False)
        x = drawn(1, COLUMNS).bfloat16()
        tensor = x if wants == "input" else getattr(made, wants)
        tensor.requires_grad_()
        made(x).float().square().sum().backward()
        gradients.append(tensor.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert calls.count == 0
    linear().requires_grad_(False)(drawn(1, COLUMNS).bfloat16())
    assert calls.count == 1, "gradients are on, but nobody wants one"


def test_compiled_traced_transformed_watched_and_autocast_are_pytorchs(calls: Calls) -> None:
    ours, plain = linear().requires_grad_(False), linear(native_one=False).requires_grad_(False)
    x = drawn(1, COLUMNS).bfloat16()
    expected = plain(x)
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(ours, (x,)).module()(x), expected)
    assert torch.equal(torch.vmap(ours)(x[None])[0], torch.vmap(plain)(x[None])[0])
    with FlopCounterMode(display=False) as flops:
        assert torch.equal(ours(x), expected)
    assert flops.get_total_flops() == 2 * ROWS * COLUMNS
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x.float()), expected)
    assert calls.count == 0
    torch.compiler.reset()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own first dual
@pytest.mark.parametrize("part", ["input", "weight", "bias"])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_tangents_are_pytorchs(part: str, with_gradients: bool, calls: Calls) -> None:
    found = []
    with torch.set_grad_enabled(with_gradients), forward_ad.dual_level():
        for made in (linear(), linear(native_one=False)):
            made.requires_grad_(False)
            parts = {"input": drawn(1, COLUMNS).bfloat16(), "weight": made.weight.data, "bias": made.bias.data}
            parts[part] = forward_ad.make_dual(parts[part], torch.ones_like(parts[part]))
            x = parts.pop("input")
            found.append(forward_ad.unpack_dual(torch.func.functional_call(made, parts, (x,))))
    ours, plain = found
    assert torch.equal(ours.primal, plain.primal)
    assert plain.tangent is not None
    assert torch.equal(ours.tangent, plain.tangent)
    assert calls.count == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own first dual
@torch.no_grad()
def test_function_transforms_are_pytorchs() -> None:
    ours, plain = linear(), linear(native_one=False)
    x, tangent = drawn(1, COLUMNS).bfloat16(), drawn(1, COLUMNS, seed=1).bfloat16()
    for one, other in zip(*(torch.func.jvp(made, (x,), (tangent,)) for made in (ours, plain)), strict=True):
        assert torch.equal(one, other)


def test_errors_are_pytorchs() -> None:
    ours, plain = linear(), linear(native_one=False)
    for x in (drawn(1, COLUMNS), drawn(1, COLUMNS - 1).bfloat16(), drawn(1, COLUMNS).to("meta")):
        with pytest.raises(RuntimeError) as expected:
            plain(x)
        with pytest.raises(RuntimeError) as raised:
            ours(x)
        assert str(raised.value) == str(expected.value)
        assert type(raised.value) is type(expected.value)


# -- what it is ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_copies_pickles_states_and_hooks() -> None:
    ours, x = linear(), drawn(1, COLUMNS).bfloat16()
    assert list(ours.state_dict()) == ["weight", "bias"]
    seen = []
    ours.register_forward_hook(lambda module, given, output: seen.append(output))
    output = ours(x)
    assert seen[0] is output
    for other in (copy.deepcopy(linear()), pickle.loads(pickle.dumps(linear()))):
        assert type(other) is NativeLinear
        assert torch.equal(other(x), output)
    plain = nn.Linear(COLUMNS, ROWS, dtype=torch.bfloat16)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(plain.weight, ours.weight)


def test_what_is_left_alone() -> None:
    class Other(nn.Linear):
        pass

    kept = nn.ModuleDict(
        {
            "other": Other(COLUMNS, ROWS, dtype=torch.bfloat16),
            "float32": nn.Linear(COLUMNS, ROWS),
            "small": nn.Linear(COLUMNS, ROWS // 2, dtype=torch.bfloat16),
            "meta": nn.Linear(COLUMNS, ROWS, dtype=torch.bfloat16, device="meta"),
            "hooked": linear(native_one=False),
        }
    )
    kept["hooked"].forward = lambda x: x
    assert use_native_linears(kept) == []
    kept["one more"] = linear(native_one=False)
    assert use_native_linears(kept) == ["one more"]


# -- in models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bfloat16")
    model = make_ours(std=0.05, hidden_size=512, intermediate_size=520, vocab_size=600, num_attention_heads=8)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


@torch.no_grad()
def test_a_loaded_model(checkpoint: Path, calls: Calls) -> None:
    model = CohereForCausalLM.from_pretrained(checkpoint, dtype="auto")
    plain = CohereForCausalLM.from_pretrained(checkpoint, dtype="auto", native_kernels=False)
    exact = CohereForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    assert kinds(model) == {NativeLinear}
    assert kinds(plain) == kinds(exact) == kinds(make_ours()) == {nn.Linear}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = random_ids(1, 1)
    ours, theirs, truth = (one(ids).logits.double() for one in (model, plain, exact))
    assert calls.count == 7 * 2 + 1, "all of two layers, and the tied head"
    assert (ours - truth).norm() <= 1.1 * (theirs - truth).norm()
    assert torch.equal(model(random_ids(2, 5)).logits, plain(random_ids(2, 5)).logits), "ten rows are PyTorch's"


def test_saved_and_quantized_afterwards(checkpoint: Path, tmp_path: Path) -> None:
    model = CohereForCausalLM.from_pretrained(checkpoint, dtype="auto")
    plain = CohereForCausalLM.from_pretrained(checkpoint, dtype="auto", native_kernels=False)
    model.save_pretrained(tmp_path)
    state, saved = plain.state_dict(), CohereForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    assert list(state) == list(saved)
    assert all(torch.equal(state[name], saved[name]) for name in state)
    for one in (model, plain):
        quantize_model(one, QuantizationConfig("int8"))
    packed, expected = (quantized_modules.packed_modules(one) for one in (model, plain))
    assert list(packed) == list(expected) != []


def test_training_is_training(checkpoint: Path) -> None:
    gradients = []
    for native_kernels in (True, False):
        model = CohereForCausalLM.from_pretrained(checkpoint, dtype="auto", native_kernels=native_kernels).train()
        model(random_ids(1, 3), labels=random_ids(1, 3)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
