"""What training a small model costs on a CPU: attention of packed documents, and a whole step of midshipman's shape.

    python benchmarks/training.py [--threads 2] [--seconds 1.0]

Attention: 12 documents of 640 tokens, 6 heads of 32, forward and forward with backward, beside PyTorch's
``scaled_dot_product_attention`` on the same documents in a batch. A step: forward and backward of 12 documents of 300
to 700 tokens, a fifth of them to be learned, with plain layers, PyTorch's attention and float32, and with the parts
that training uses on a CPU. Medians of turns taken one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck import CohereConfig, CohereForCausalLM
from quarterdeck.kernels.packed_attention import PackedLayout, packed_attention
from quarterdeck.training.attention import PackedAttention
from quarterdeck.training.layers import join_layers
from quarterdeck.training.packing import PackedRows, PackedStream, pack, pack_stream
from quarterdeck.training.trainer import DeviceRows, fast_bfloat16, supervised_loss

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
}


def in_turns(works: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median seconds of each, called one after the other until the time is over."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    end = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < end or min(map(len, taken.values())) < 3:
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def report(title: str, medians: Mapping[str, float], tokens: int) -> None:
    """Microseconds per token; how many times as fast the last is as each."""
    print(title)
    last = list(medians.values())[-1]
    for name, seconds in medians.items():
        print(f"  {name:44} {seconds / tokens * 1e6:8.2f} us/token   {seconds / last:6.2f}x", flush=True)


def bench_attention(dtype: torch.dtype, seconds: float) -> None:
    """Our packed attention beside PyTorch's on whole documents."""
    count, length, heads, width = 12, 640, 6, 32
    layout = PackedLayout(torch.tensor([(n * length, (n + 1) * length, 0, 0) for n in range(count)]))
    ours = [torch.randn(count * length, heads, width).to(dtype).requires_grad_() for _ in range(3)]
    theirs = [torch.randn(count, heads, length, width).to(dtype).requires_grad_() for _ in range(3)]

    def torch_attention() -> Tensor:
        return functional.scaled_dot_product_attention(*theirs, is_causal=True)

    def packed() -> Tensor:
        return packed_attention(*ours, layout, width**-0.5)

    def both(make: Callable[[], Tensor], inputs: list[Tensor]) -> None:
        result = make()
        torch.autograd.grad(result, inputs, torch.ones_like(result))

    def forward(make: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            make()

    name = str(dtype).removeprefix("torch.")
    medians = in_turns({"PyTorch": lambda: forward(torch_attention), "packed": lambda: forward(packed)}, seconds)
    report(f"attention, {name}, forward", medians, count * length)
    works = {"PyTorch": lambda: both(torch_attention, theirs), "packed": lambda: both(packed, ours)}
    report(f"attention, {name}, forward and backward", in_turns(works, seconds), count * length)


def step(model: CohereForCausalLM, packed: PackedRows, bfloat16: bool) -> None:
    """Loss and gradients of one batch."""
    attention = model.config.attn_implementation
    if isinstance(attention, PackedAttention) and isinstance(packed, PackedStream):
        attention.layout = PackedLayout(torch.from_numpy(packed.layout))
    rows = DeviceRows.of(packed, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = supervised_loss(model, rows)
    loss.backward()
    model.zero_grad()


def bench_step(seconds: float) -> None:
    """A whole step, the old way and the new."""
    random = np.random.default_rng(0)
    lengths = random.integers(300, 700, size=12)
    documents = [(random.integers(8, 8000, size=n).astype(np.uint16), np.arange(n) > 0.8 * n) for n in lengths]
    rows = pack(documents, rows=8, length=1024)
    stream = pack_stream(documents, tokens=10**6, multiple=256)
    plain, joined = CohereForCausalLM(CohereConfig(**SHAPE)), CohereForCausalLM(CohereConfig(**SHAPE))
    joined.config.attn_implementation = PackedAttention()
    join_layers(joined)
    fast = fast_bfloat16(torch.device("cpu"))
    works = {
        "plain layers, sdpa, float32": lambda: step(plain, rows, False),
        "joined layers, packed attention, float32": lambda: step(joined, stream, False),
        f"the same{' in bfloat16' if fast else ''}": lambda: step(joined, stream, fast),
    }
    report("a step, forward and backward", in_turns(works, seconds), int(sum(lengths)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dtype in (torch.bfloat16, torch.float32):
        bench_attention(dtype, options.seconds)
    bench_step(3 * options.seconds)


if __name__ == "__main__":
    main()
