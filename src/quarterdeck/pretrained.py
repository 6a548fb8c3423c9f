"""PreTrainedModel: what every model can do around its ``forward``.

Loading and saving here; embeddings, counting and the rest in `quarterdeck.model_base`. The architecture is in
`quarterdeck.model`, the work on files is done in `quarterdeck.weights`; here the two meet.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quarterdeck.config import AttentionChoice, CohereConfig
from quarterdeck.config_files import no_config
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.config import FILE_NAME as GENERATION_CONFIG
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.gguf.metadata import generation_values
from quarterdeck.kernels.linears import use_native_linears
from quarterdeck.locate import HubOptions, gguf_path
from quarterdeck.memory.loading import check_load
from quarterdeck.model_base import ModelBase
from quarterdeck.quantization.bnb import check_planned
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.choose import (
    AnyQuantization,
    Quantization,
    asked_quantization,
    default_dtype,
)
from quarterdeck.quantization.loading import prepare
from quarterdeck.quantization.model_side import parts_of
from quarterdeck.quantization.surgery import write_quantization
from quarterdeck.weights.foreign import arranged
from quarterdeck.weights.gguf import GGUFTensors
from quarterdeck.weights.load import LoadReport, Naming, WeightReceiver, load_weights
from quarterdeck.weights.offload import OffloadedWeights, OffloadingReceiver, dispatch, offload_weights
from quarterdeck.weights.options import check_load_options, weights_dtype
from quarterdeck.weights.placement import MaxMemory, Placement, check_device_map, device_of, place_model
from quarterdeck.weights.reader import MemoryTensors, TensorSource, first_floating_dtype
from quarterdeck.weights.save import replacing_checkpoint, write_weights
from quarterdeck.weights.sources import resolve_source

PathLike = str | os.PathLike[str]


class PreTrainedModel(ModelBase):
    """Base class of the models.

    Attributes:
        config: the configuration; shared by a model with a head and its base model.
        generation_config: defaults of ``generate``; None for a model that cannot.
        hf_device_map: where each part is, names of modules to numbers of accelerators, names of devices or ``"disk"``;
            only there if ``from_pretrained`` was given a ``device_map``.
    """

    hf_device_map: dict[str, int | str]

    def __init__(self, config: CohereConfig) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None
        self._offloaded: OffloadedWeights | None = None

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model makes text."""
        return hasattr(cls, "generate")

    # -- loading ---------------------------------------------------------------------------------------

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike | None,
        *,
        output_loading_info: Literal[False] = False,
        **options: Any,
    ) -> Self: ...
    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike | None,
        *,
        output_loading_info: Literal[True],
        **options: Any,
    ) -> tuple[Self, dict[str, Any]]: ...
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike | None,
        *,
        config: CohereConfig | PathLike | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        max_memory: MaxMemory | None = None,
        offload_folder: PathLike | None = None,
        attn_implementation: AttentionChoice | Mapping[str, Any] = None,
        quantization_config: AnyQuantization = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        gguf_file: str | None = None,
        check_memory: bool = True,
        native_kernels: bool = True,
        **options: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """A model with the weights of a checkpoint, in evaluation mode.

        The model is built without memory, and the weights take their places one by one. A weight that needs no
        conversion stays a window on its file: loading float32 as float32 on the CPU reads nothing at all.

        Args:
            pretrained_model_name_or_path: ``"midshipman"``, a folder, a hub id, or a GGUF file; None if ``config``
                and ``state_dict`` say it all.
            config: a configuration in place of the checkpoint's, or where to read one.
            state_dict: weights in place of the checkpoint's. Tensors that need no conversion become the model's
                own, they are not copied.
            dtype: type of the weights: a ``torch.dtype``, its name, or ``"auto"`` for the one in the configuration,
                or else of the first weight. Default: torch's default type, float32 unless changed.
            torch_dtype: the older name of ``dtype``.
            device_map: one device for the whole model, ``"cuda:1"`` or ``1``; or the place of each part by its name,
                a device or ``"disk"``, ``{"": 0, "model.layers.39": "disk"}``; or how to divide it among the
                accelerators, the CPU and the disk: ``"auto"``, ``"balanced"``, ``"balanced_low_0"``,
                ``"sequential"``. Default: torch's default device. ``hf_device_map`` then says what is where.
            max_memory: most bytes for weights of each device, for the last kind of ``device_map``:
                ``{0: "20GiB", "cpu": "64GiB"}``. Default: what is free.
            offload_folder: where weights for the disk are written that are not in the checkpoint's files as they are
                needed. Without one, those of another type are converted at each use.
            attn_implementation: attention backend; see `set_attn_implementation`.
            quantization_config: holds weights in fewer bits, quantized one by one as they are read: ``"int8"``,
                ``"int4"``, a `QuantizationConfig` or a `BitsAndBytesConfig`. A checkpoint that is quantized says so
                itself; one in GGUF, GPTQ or AWQ may be asked for in another form.
            strict: whether missing and unexpected weights are an error. If not, unexpected ones are left out and
                missing ones initialised.
            ignore_mismatched_sizes: initialise weights whose shape differs from the checkpoint's.
            output_loading_info: return the model and a dictionary with ``missing_keys``, ``unexpected_keys``,
                ``mismatched_keys``.
            revision: branch, tag or commit on the hub.
            token: access token for the hub.
            subfolder: folder inside the checkpoint.
            cache_dir: folder of downloaded files.
            local_files_only: use only files downloaded before.
            force_download: download again.
            gguf_file: name of a GGUF file in the folder or hub repository, to load instead.
            check_memory: refuse before anything is read what cannot fit; see `quarterdeck.memory`.
            native_kernels: let linears in 16 bit on the CPU compute few rows by `quarterdeck.kernels.linears`.
            options: fields of the configuration to override by name; ``load_in_4bit`` and ``load_in_8bit`` with fields
                of `BitsAndBytesConfig`, the older way to give one. Of transformers' other options
                ``low_cpu_mem_usage``, ``use_safetensors`` and ``trust_remote_code`` are accepted where they ask
                for what is always done here, and all others where they are off; else they are refused.

        Raises:
            CheckpointNotFoundError: no such checkpoint, or no config.json or weights in it.
            CheckpointCorruptError: a file is truncated or damaged.
            CheckpointUnsafeError: the weights are only there as pickle files.
            CheckpointMismatchError: weights and model do not fit.
            NotEnoughMemoryError: a device has less memory available than loading takes there.
            UnsupportedOptionError: an option that is not here, or no field of the configuration.
            InputError: a device that there is not, or a ``device_map`` that does not fit the model.
        """
        name = pretrained_model_name_or_path
        hub = HubOptions(revision, token, subfolder, cache_dir, local_files_only, force_download)
        asked_weights = asked_quantization(quantization_config, options)
        overrides = check_load_options(options)
        places = check_device_map(device_map, max_memory)
        if offload_folder is not None and device_map is None:
            folder = os.fspath(offload_folder)
            raise UnsupportedOptionError(
                f"offload_folder={folder!r} is refused: nothing goes to the disk without a device_map"
            )
        gguf = gguf_path(name, gguf_file, hub)
        if name is not None and config is None and gguf is None:
            hub = hub.pinned_to(hub.resolve_file(name, "config.json"))
        config = cls._resolve_config((gguf or name) if config is None else config, hub, overrides)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation
        source = resolve_source(name, state_dict, hub, gguf)
        source, quantization = arranged(source, asked_weights, config, has_head=cls.can_generate())
        asked = weights_dtype(default_dtype(quantization, dtype, torch_dtype), torch_dtype)
        config.dtype = (config.dtype or first_floating_dtype(source)) if asked == "auto" else asked

        model = cls._on_meta(config)
        receiver = model._prepared(quantization, source, places)
        model.tie_weights()  # which are one is seen when they are placed
        placement = place_model(
            model, places, max_memory=max_memory, dtype=config.dtype, is_given=device_map is not None
        )
        if isinstance(quantization, BitsAndBytesConfig):
            check_planned(quantization, model, placement.where)
        if check_memory:
            check_load(model, source, placement, quantization)
        report = model._load(
            source,
            placement,
            OffloadedWeights(None if offload_folder is None else Path(offload_folder)),
            receiver=receiver,
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        if name is not None:
            model._read_generation_config(name, hub, source)
        if native_kernels and not isinstance(quantization, BitsAndBytesConfig):  # whose logits are to be transformers'
            use_native_linears(model)
        model.eval()
        return (model, report.as_dict()) if output_loading_info else model

    @classmethod
    def _resolve_config(
        cls, config: CohereConfig | PathLike | None, hub: HubOptions, overrides: dict[str, Any]
    ) -> CohereConfig:
        """A configuration of the model's own, to be changed at will: read from a checkpoint, or copied."""
        if config is None:
            raise InputError("there is neither a checkpoint's name nor a config; give one of them")
        if not isinstance(config, CohereConfig | str | os.PathLike):
            raise InputError(no_config(config, cls.config_class.__name__))
        if not isinstance(config, CohereConfig):
            found = cls.config_class.from_pretrained(config, **vars(hub), **overrides)
        elif overrides:
            values = config.to_dict() | {"attn_implementation": config.attn_implementation}
            found = type(config).from_dict(values, **overrides)
        else:
            found = copy.deepcopy(config)
        return found

    @classmethod
    def _on_meta(cls, config: CohereConfig) -> Self:
        """The model with shapes and no memory."""
        with torch.device("meta"), _WithoutValues():
            return cls(config)

    @classmethod
    def _from_config(
        cls,
        config: CohereConfig,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: AttentionChoice | Mapping[str, Any] = None,
    ) -> Self:
        """An untrained model of ``config`` (which is copied), in ``dtype``, else the configuration's, else torch's."""
        if not isinstance(config, CohereConfig):
            raise InputError(no_config(config, cls.config_class.__name__))
        config = copy.deepcopy(config)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation
        asked = weights_dtype("auto" if dtype is None and torch_dtype is None else dtype, torch_dtype)
        config.dtype = (config.dtype or torch.get_default_dtype()) if asked == "auto" else asked
        return cls(config).to(config.dtype)

    def _prepared(
        self, quantization: Quantization | None, source: TensorSource, places: object
    ) -> WeightReceiver | None:
        """What fills the quantized modules, which take the places of linears; None without quantization."""
        if quantization is None:
            return None
        shapes = {name: source.shape(name) for name in source.names()}
        prefix, dtype = f"{self.base_model_prefix}.", self.config.dtype or torch.get_default_dtype()
        return prepare(self, quantization, shapes, prefix=prefix, dtype=dtype, places=places)

    def _load(
        self,
        source: TensorSource,
        placement: Placement,
        offloaded: OffloadedWeights,
        *,
        receiver: WeightReceiver | None,
        strict: bool,
        ignore_mismatched_sizes: bool,
    ) -> LoadReport:
        report = load_weights(
            self,
            source,
            naming=self._naming(),
            dtype=self.config.dtype,
            place=placement.device,
            initialise=self._init_weights,
            receiver=OffloadingReceiver(receiver, self, placement, offloaded) if receiver is not None else None,
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        if placement.is_divided:
            offload_weights(self, placement, source, report, offloaded, tied=self.tied_weights())
        self.tie_weights()
        self._settle(placement, offloaded)
        return report

    def _settle(self, placement: Placement, offloaded: OffloadedWeights) -> None:
        """After the weights are in their places: what is not a weight follows, and the model knows where it is."""
        if placement.is_divided:
            dispatch(self, placement, offloaded)
            for module in self.modules():
                if isinstance(module, ModelBase):
                    module._main_device = device_of(placement.main)
            self._offloaded = offloaded
        else:
            self.to(device_of(placement.main))
        if placement.is_given:
            self.hf_device_map = dict(placement.device_map)

    def _naming(self) -> Naming:
        return Naming(prefix=f"{self.base_model_prefix}.", head=parts_of(self._head_weights), tied=self.tied_weights())

    def _read_generation_config(self, name: PathLike, hub: HubOptions, source: TensorSource) -> None:
        if not self.can_generate():
            return
        if isinstance(source, GGUFTensors):
            if (values := generation_values(source.header)) is not None:
                self.generation_config = GenerationConfig.from_dict(values)
            return
        path = hub.resolve_file(name, GENERATION_CONFIG, required=False)
        if path is not None:
            self.generation_config = GenerationConfig.from_pretrained(path.parent)

    # -- saving ----------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: PathLike,
        *,
        max_shard_size: int | str = "5GB",
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        variant: str | None = None,
        save_function: Callable[..., object] | None = None,
    ) -> None:
        """Writes config.json, generation_config.json and the weights, so that `from_pretrained` reads them back.

        An earlier checkpoint in the folder is replaced as a whole or, if anything fails on the way, not at all.
        Other files, such as the tokenizer's, stay.

        Args:
            save_directory: the folder, made if it is not there.
            max_shard_size: bytes in one file at most, a number or a text such as ``"5GB"``; a tensor that is larger
                is a file by itself.
            state_dict: weights to write in place of the model's own.
            safe_serialization: only True; weights are written as safetensors.
            push_to_hub: only False.
            is_main_process: of several processes that call this, one writes; the others pass False and write nothing.
            variant: only None.
            save_function: only None.

        Raises:
            InputError: a size that cannot be read, weights without values (on the meta device), a file where the
                folder should be, or a folder whose files this model still reads from.
            UnsupportedOptionError: pickle files, an upload, other names or another writer were asked for.
        """
        if variant is not None:
            raise UnsupportedOptionError(f"variant={variant!r} is refused: use a folder of its own for each variant")
        if save_function is not None:
            raise UnsupportedOptionError("save_function is refused: safetensors writes the weights; leave it out")
        if not safe_serialization:
            raise UnsupportedOptionError("safe_serialization=False is refused: weights are written as safetensors only")
        if push_to_hub:
            raise UnsupportedOptionError("push_to_hub=True is refused: save, then run `hf upload <id> <folder>`")
        if not is_main_process:
            return
        tensors = self._without_tied(self.state_dict() if state_dict is None else state_dict)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = self.dtype if self.is_quantized else first_floating_dtype(MemoryTensors(tensors))
        write_quantization(config, self.quantization)
        self._check_not_in_use(Path(save_directory))
        with replacing_checkpoint(Path(save_directory)) as folder:
            write_weights(tensors, folder, max_shard_size, self._offloaded)
            config.save_pretrained(folder)
            if self.generation_config is not None:
                self.generation_config.save_pretrained(folder)

    def _check_not_in_use(self, folder: Path) -> None:
        """Weights on the disk are read by name at each use: their files must stay."""
        read = () if self._offloaded is None else self._offloaded.paths()
        if any(path.parent.resolve() == folder.resolve() for path in read):
            raise InputError(f"parts of this model are on the disk in '{folder}': save it into another folder")

    def _without_tied(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, each once: without the second name of those that are one in memory."""
        tensors = dict(state_dict)
        for alias, name in self.tied_weights().items():
            if alias in tensors and name in tensors and _same_memory(tensors[alias], tensors[name]):
                del tensors[alias]
        return tensors


class _WithoutValues(TorchFunctionMode):
    """Leaves out the initialisation of weights, which on the meta device has no effect.

    Not for the time of the calls themselves: the first random number on the meta device makes torch import its
    compiler, which takes longer than loading a small model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
