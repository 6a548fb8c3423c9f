"""Writing a model into a GGUF file that llama.cpp runs, tensor by tensor."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.config_checks import declared_length
from quarterdeck.errors import CheckpointMismatchError, InputError, TokenizerError
from quarterdeck.gguf.container import TYPES, BlockType, NewTensor, Value, write_container
from quarterdeck.gguf.metadata import ARCHITECTURE, OWN_GENERATION_CONFIG, config_metadata
from quarterdeck.gguf.names import to_gguf
from quarterdeck.gguf.vocabulary import ADD_BOS, ADD_EOS, NAMED_IDS, OWN_OPTIONS, TokenType, vocabulary_metadata
from quarterdeck.tokenization.backend import command_r_pipeline
from quarterdeck.tokenizer import CohereTokenizerFast
from quarterdeck.weights.gguf_blocks import WRITABLE, plain_dtype, quantize
from quarterdeck.weights.reader import TensorSource, weight_names

_FILE_TYPES: Mapping[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32,
}  # fmt: skip
_QUANTIZATION_VERSION = 2
_CHUNK = 2**20  # numbers that are converted at once
_CPU = torch.device("cpu")

Progress = Callable[[str, int], None]
"""Is told the name and size in bytes of each tensor before it is written."""


def write_gguf(
    path: Path,
    source: TensorSource,
    config: CohereConfig,
    tokenizer: CohereTokenizerFast,
    *,
    kind: str,
    generation: Mapping[str, Any] | None = None,
    progress: Progress = lambda name, size: None,
) -> None:
    """Writes a model into a new file, which appears when it is complete.

    Args:
        path: the file; there must be none.
        source: the weights, under the names of a model with a head or without.
        config: the configuration.
        tokenizer: the tokenizer, with its chat templates.
        kind: the type of the matrices, one of `WRITABLE`; norms are F32, and matrices whose rows are no whole number
            of blocks F16.
        generation: what generation_config.json holds.
        progress: see `Progress`.

    Raises:
        InputError: the file is there, or the model is one that such a file cannot hold.
        CheckpointMismatchError: tensors that no model of this architecture has.
        TokenizerError: a tokenizer of another kind.
    """
    if kind not in WRITABLE:
        raise InputError(f"a GGUF file is written in one of {', '.join(WRITABLE)}, not in {kind!r}")
    if path.exists():
        raise InputError(f"'{path}' is there already: remove it or give another name")
    metadata = _general(config, kind)
    metadata |= config_metadata(
        config.to_dict(),
        context_length=max(config.max_position_embeddings, declared_length(config) or 0),
        head_dim=config.head_dim,
    )
    metadata |= tokenizer_metadata(tokenizer, config.vocab_size)
    if generation is not None:
        metadata[OWN_GENERATION_CONFIG] = json.dumps(generation, sort_keys=True, ensure_ascii=False)
    tensors = [_new_tensor(source, name, short, kind, progress) for short, name in _named(source, config).items()]
    _write(path, metadata, tensors)


def tokenizer_metadata(tokenizer: CohereTokenizerFast, size: int) -> dict[str, Value]:
    """The keys for a tokenizer; ids up to ``size``, the rows of the model's table, are filled with unused tokens.

    Raises:
        TokenizerError: it does not treat texts as Command-R's does, or has more tokens than ``size``.
    """
    backend = tokenizer.backend_tokenizer
    model = _checked_model(backend)
    by_id = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    if len(by_id) > size or max(by_id) >= size:
        raise TokenizerError(f"the tokenizer has {max(by_id) + 1} ids, the model's table {size} rows: they do not fit")
    added = backend.get_added_tokens_decoder()
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    types = [
        TokenType.UNUSED if index not in by_id
        else TokenType.NORMAL if index not in added
        else TokenType.CONTROL if added[index].special
        else TokenType.USER_DEFINED
        for index in range(size)
    ]  # fmt: skip
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    found = vocabulary_metadata(tokens, types, merges, tokenizer.chat_template)
    for name, key in NAMED_IDS.items():
        token = getattr(tokenizer, name)
        if token is not None:
            found[key] = int(backend.token_to_id(str(token)))
    found |= {ADD_BOS: tokenizer.add_bos_token, ADD_EOS: tokenizer.add_eos_token}
    found[OWN_OPTIONS] = json.dumps(tokenizer.options_to_save(with_templates=False), sort_keys=True, ensure_ascii=False)
    return found


def _checked_model(backend: Any) -> dict[str, Any]:
    """The contents of the backend's byte-pair model; TokenizerError if it or what is before it is another's."""
    contents = json.loads(backend.to_str())
    expected = json.loads(command_r_pipeline(type(backend.model)()).to_str())
    for part in ("normalizer", "pre_tokenizer"):
        if contents[part] != expected[part]:
            raise TokenizerError(
                f"the tokenizer's {part} is {contents[part]}, but a GGUF file of this architecture means "
                f"{expected[part]}: it would encode texts otherwise"
            )
    model: dict[str, Any] = contents["model"]
    plain = {name: value for name, value in model.items() if name not in ("vocab", "merges", "unk_token") and value}
    if plain != {"type": "BPE"}:
        raise TokenizerError(f"the tokenizer's model has {plain}, but Command-R's is plain BPE: it cannot be written")
    return model


def _general(config: CohereConfig, kind: str) -> dict[str, Value]:
    found: dict[str, Value] = {"general.architecture": ARCHITECTURE, "general.type": "model"}
    if config.name_or_path:
        found["general.name"] = Path(config.name_or_path).name
    return found | {
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


def _named(source: TensorSource, config: CohereConfig) -> dict[str, str]:
    """Names in the file to names in the source, in the source's order; a tied head is left out."""
    found: dict[str, str] = {}
    unknown = []
    names = weight_names(source)
    has_table = any(name.removeprefix("model.") == "embed_tokens.weight" for name in names)
    for name in names:
        is_tied = name == "lm_head.weight" and config.tie_word_embeddings
        if is_tied and has_table:
            continue
        short = to_gguf("model.embed_tokens.weight" if is_tied else name) or to_gguf(f"model.{name}")
        if short is None:
            unknown.append(name)
        else:
            found[short] = name
    if unknown:
        raise CheckpointMismatchError(
            f"{len(unknown)} tensors have no place in a GGUF file: {', '.join(unknown[:5])}; if the weights are "
            "quantized, convert the checkpoint that they were made from"
        )
    return found


def _new_tensor(source: TensorSource, name: str, short: str, kind: str, progress: Progress) -> NewTensor:
    shape = source.shape(name)
    chosen = TYPES[kind]
    if len(shape) == 1 or short.endswith("_norm.weight"):
        chosen = TYPES["F32"]
    elif shape[-1] % chosen.block:
        chosen = TYPES["F16"]
    return NewTensor(short, shape, chosen, _pieces(source, name, chosen, progress))


def _pieces(source: TensorSource, name: str, kind: BlockType, progress: Progress) -> Iterator[bytes]:
    """The data of one tensor, some rows at a time; it is read when the first piece is asked for."""
    progress(name, source.shape(name)[0])
    tensor = source.once(name)
    rows = tensor.view(-1, tensor.shape[-1])
    step = max(_CHUNK // rows.shape[1], 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        _check_range(part, kind, name)
        try:
            raw = quantize(part, kind)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        yield raw.numpy().tobytes()


def _check_range(part: Tensor, kind: BlockType, name: str) -> None:
    """InputError if numbers become infinite in half precision."""
    if plain_dtype(kind) == torch.float16 and float(part.abs().max()) > torch.finfo(torch.float16).max:
        raise InputError(f"{name} holds numbers that float16 cannot: choose bf16 or f32")


def _write(path: Path, metadata: Mapping[str, Value], tensors: list[NewTensor]) -> None:
    """The file under a name of its own, then, when it is on the disk, under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write_container(file, metadata, tensors)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
