"""What every model can do that needs no files: fresh weights, embeddings, counting, switches for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from quarterdeck.attention.dispatch import DEFAULT_ATTENTION, check_attention
from quarterdeck.config import AttentionChoice, CohereConfig
from quarterdeck.config_checks import one_backend
from quarterdeck.config_files import no_config
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.quantization.model_side import QuantizationMixin, quantized_count, spelled_out
from quarterdeck.weights.resize import resized_rows


class ModelBase(QuantizationMixin):
    """The part of `quarterdeck.pretrained.PreTrainedModel` that does not touch files.

    Attributes:
        config: the configuration; shared by a model with a head and its base model.
    """

    config: CohereConfig
    config_class: ClassVar[type[CohereConfig]] = CohereConfig
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_ids"
    # names that share another's tensor if config.tie_word_embeddings, and that other name
    _tied_weights: ClassVar[Mapping[str, str]] = {}
    # classes of modules that a device map which is worked out never divides among devices
    _no_split_modules: ClassVar[Sequence[str]] = ()
    # names that only models with a head have; they stay behind when the base model is loaded from such a checkpoint
    _head_weights: ClassVar[frozenset[str]] = frozenset({"lm_head.weight"})

    def __init__(self, config: CohereConfig) -> None:
        super().__init__()
        if not isinstance(config, CohereConfig):
            raise InputError(no_config(config, self.config_class.__name__))
        config.validate()  # what was assigned since it was made is checked here
        check_attention(config.attn_implementation)
        if config.attn_implementation is None:
            config.attn_implementation = DEFAULT_ATTENTION
        self.config = config
        self._input_grads_hook: RemovableHandle | None = None
        self._main_device: torch.device | None = None  # of a model that is divided among places

    def post_init(self) -> None:
        """Called at the end of every constructor: gives fresh weights their values and ties those that are one."""
        for child in self._own_modules():
            if not any(parameter.is_meta for parameter in child.parameters(recurse=False)):
                self._init_weights(child)
        self.tie_weights()

    def _own_modules(self) -> list[nn.Module]:
        """All modules inside, without those of models inside, which have seen to themselves."""
        inner = [child for child in self.children() if isinstance(child, ModelBase)]
        theirs = {id(module) for child in inner for module in child.modules()}
        return [module for module in self.modules() if id(module) not in theirs]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Values of an untrained module: normal with ``initializer_range``, biases zero, norms one."""
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Linear | nn.Embedding):
                parameter.normal_(0.0, self.config.initializer_range)
            else:
                parameter.fill_(1.0)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0.0

    def init_weights(self) -> None:
        """Gives all weights the values of an untrained model, whatever they are now."""
        for module in self.modules():
            self._init_weights(module)
        self.tie_weights()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``to``, ``cuda``, ``half`` and their like do.

        Raises:
            InputError: the model is divided among several places.
        """
        if self._main_device is not None:
            raise InputError(
                "the model is divided among several places (hf_device_map), so it cannot be moved or converted as a "
                "whole: load it again with another device_map or dtype"
            )
        return super()._apply(fn, recurse)

    # -- embeddings ------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, ``[V, E]``."""
        raise NotImplementedError(f"{type(self).__name__} does not say where its embedding is")

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding; `tie_weights` then ties the head to the new one."""
        raise NotImplementedError(f"{type(self).__name__} does not say where its embedding is")

    def get_output_embeddings(self) -> nn.Linear | None:
        """The output head, ``[V, E]``; None if there is none."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output head."""
        raise InputError(f"{type(self).__name__} has no output head to replace")

    def tied_weights(self) -> Mapping[str, str]:
        """Names of weights that share another's tensor, to that other name; none if the configuration unties them."""
        return spelled_out(self._tied_weights) if self.config.tie_word_embeddings else {}

    def tie_weights(self) -> None:
        """Lets the weights that are one by the configuration be one in memory; of a pair, the embedding counts."""
        for alias, name in self.tied_weights().items():
            path, _, leaf = alias.rpartition(".")
            owner, _, own = name.rpartition(".")
            tensor = getattr(self.get_submodule(owner), own, None)  # a weight is there by itself or in packed parts
            if tensor is not None:
                setattr(self.get_submodule(path), leaf, tensor)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Gives the embedding and the output head another number of rows, and returns the embedding.

        Args:
            new_num_tokens: the new number; None keeps the present one.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: draw new rows around the mean of the old ones; otherwise as in an untrained model.

        Raises:
            InputError: no such number of rows, or one that would cut off the padding token; or the model is divided
                among several places.
        """
        old = self.get_input_embeddings()
        if not isinstance(old, nn.Embedding):
            raise InputError("a quantized embedding has the rows that it has: resize it before it is quantized")
        rows = _rounded_up(old.num_embeddings if new_num_tokens is None else new_num_tokens, pad_to_multiple_of)
        padding = old.padding_idx
        if padding is not None and padding >= rows:
            raise InputError(f"{rows} rows would cut off the padding token {padding}; give more than {padding}")
        if rows == old.num_embeddings:
            return old
        if self._main_device is not None:
            raise InputError("the model is divided among several places: resize it on one device, save it, load that")
        fill = None if mean_resizing else self._fill_rows
        old.weight = resized_rows(old.weight, rows, fill)
        old.num_embeddings = self.config.vocab_size = rows
        head = self.get_output_embeddings()
        if head is not None:
            head.out_features = rows
            if not self.config.tie_word_embeddings:
                head.weight = resized_rows(head.weight, rows, fill)
        self.tie_weights()
        return old

    def _fill_rows(self, rows: Tensor) -> None:
        rows.normal_(0.0, self.config.initializer_range)

    # -- what it is ------------------------------------------------------------------------------------

    @property
    def base_model(self) -> nn.Module:
        """The model without its head; the model itself if it has none."""
        base: nn.Module = getattr(self, self.base_model_prefix, self)
        return base

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model that is divided among several places, where its inputs go."""
        return next(self.parameters()).device if self._main_device is None else self._main_device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights (the first floating one)."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights, tied ones once; on request without those that are not trained, or embeddings."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        counted = (p for p in self._weights_once() if id(p) not in tables and (p.requires_grad or not only_trainable))
        packed = 0 if only_trainable else quantized_count(self, embeddings=not exclude_embeddings)
        return sum(parameter.numel() for parameter in counted) + packed

    def _weights_once(self) -> list[nn.Parameter]:
        """All weights, tied ones once, also where they are on the disk and so not one in memory."""
        tied = self.tied_weights()
        return [parameter for name, parameter in self.named_parameters() if name not in tied]

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weights, tied ones once, and of the buffers if ``return_buffers``; wherever they are."""
        tied = self.tied_weights()
        buffers = [buffer for name, buffer in self.named_buffers() if name not in tied] if return_buffers else []
        tensors = [*self._weights_once(), *buffers]
        return sum(tensor.nbytes for tensor in tensors)

    def set_attn_implementation(self, attn_implementation: AttentionChoice | Mapping[str, Any]) -> None:
        """Chooses the attention backend from the next call on.

        Args:
            attn_implementation: ``"eager"``, ``"sdpa"``, ``"flash_attention_2"``, ``"flex_attention"``, or a
                function like `quarterdeck.attention.eager.eager_attention`; None is the default, ``"sdpa"``.
                ``{"": name}`` is the same as the name.

        Raises:
            UnsupportedOptionError: there is no such backend, or it cannot run on this machine.
            MissingPackageError: the package that it needs is not installed.
            ConfigError: several are given for parts of the model.
        """
        chosen = one_backend(attn_implementation, self.config.attn_implementation)
        check_attention(chosen)
        self.config.attn_implementation = DEFAULT_ATTENTION if chosen is None else chosen

    # -- training --------------------------------------------------------------------------------------

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Saves memory in training: the inside of a layer is computed again when its gradient is needed.

        Args:
            gradient_checkpointing_kwargs: arguments of ``torch.utils.checkpoint.checkpoint``.

        Raises:
            UnsupportedOptionError: it has no such arguments.
        """
        unknown = set(gradient_checkpointing_kwargs or {}) - _CHECKPOINT_OPTIONS
        if unknown:
            raise UnsupportedOptionError(
                f"gradient_checkpointing_kwargs: there is no {', '.join(sorted(map(str, unknown)))}; "
                f"torch's checkpoint takes {', '.join(sorted(_CHECKPOINT_OPTIONS))}"
            )
        for module in self._checkpointing_modules():
            module.gradient_checkpointing = True
            module.gradient_checkpointing_kwargs = dict(gradient_checkpointing_kwargs or {})

    def gradient_checkpointing_disable(self) -> None:
        """Computes every layer once again, and keeps what its gradient needs."""
        for module in self._checkpointing_modules():
            module.gradient_checkpointing = False
            module.gradient_checkpointing_kwargs = {}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` is in effect."""
        return any(module.gradient_checkpointing for module in self._checkpointing_modules())

    def _checkpointing_modules(self) -> list[Any]:
        return [module for module in self.modules() if hasattr(module, "gradient_checkpointing")]

    def enable_input_require_grads(self) -> None:
        """Makes the embedding's output need a gradient although the embedding is frozen, as adapters need it."""
        if self._input_grads_hook is None:
            embedding = self.get_input_embeddings()
            self._input_grads_hook = embedding.register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Takes back `enable_input_require_grads`."""
        if self._input_grads_hook is not None:
            self._input_grads_hook.remove()
            self._input_grads_hook = None


_CHECKPOINT_OPTIONS = frozenset(
    name for name, parameter in signature(checkpoint).parameters.items() if parameter.kind == parameter.KEYWORD_ONLY
) | {"preserve_rng_state"}


def _rounded_up(rows: int, multiple: int | None) -> int:
    for name, number in (("new_num_tokens", rows), ("pad_to_multiple_of", multiple)):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and (not whole or number < 1):
            raise InputError(f"{name} is {number!r}, but must be a whole number of at least 1")
    return rows if multiple is None else -(-rows // multiple) * multiple


def _require_grad(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)
