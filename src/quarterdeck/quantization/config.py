"""`QuantizationConfig`: which weights are held in 8 or 4 bits, and how the numbers are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.kernels.int4 import ASYMMETRIC_GROUP, SYMMETRIC_GROUP

Format = Literal["int8", "int4"]
Method = Literal["round-to-nearest", "gptq"]
FORMAT_VERSION = 1


@dataclass(frozen=True)
class QuantizationConfig:
    """How the weights of linears and embeddings are held. Norms and biases stay in the model's type.

    Args:
        format: ``"int8"``, one scale for each row; or ``"int4"``, one 16-bit scale for each group of columns, 4.5 bits
            for each weight.
        symmetric: of ``"int4"``: values around zero in groups of 32; or False: a scale and a minimum in groups of 64.
        group_size: columns that share a scale; follows from the two above and may be given to say so.
        embeddings: whether the token embedding is quantized.
        head: whether the output head is. A head that is tied to the embedding is one tensor with it.
        modules_to_not_convert: names of modules to leave alone: whole (``"model.layers.0.mlp.up_proj"``), their
            beginning (``"model.layers.0"``) or their last part (``"up_proj"``).
        method: how numbers were chosen: ``"round-to-nearest"``, or ``"gptq"`` by what the layers see of calibration
            text, for which see `quarterdeck.quantization.calibration`.

    Raises:
        InputError: values that cannot be right, alone or together.
    """

    format: Format = "int4"
    symmetric: bool = True
    group_size: int | None = None
    embeddings: bool = True
    head: bool = True
    modules_to_not_convert: tuple[str, ...] = ()
    method: Method = "round-to-nearest"

    quant_method: ClassVar[str] = "quarterdeck"

    def __post_init__(self) -> None:
        for name, choices in (("format", get_args(Format)), ("method", get_args(Method))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
        for name in ("symmetric", "embeddings", "head"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}, but must be True or False")
        names = self.modules_to_not_convert
        if isinstance(names, str) or not all(isinstance(one, str) for one in names):
            raise InputError(f"modules_to_not_convert is {names!r}, but must be a list of names")
        object.__setattr__(self, "modules_to_not_convert", tuple(names))
        if self.format == "int8" and not self.symmetric:
            raise InputError("symmetric=False is for 4 bits; 8-bit weights are symmetric: leave it out")
        only = self._group()
        if self.group_size not in (None, only):
            raise InputError(
                f"group_size is {self.group_size!r}; {self.format} with symmetric={self.symmetric} has "
                f"{'one scale for a row' if only is None else f'groups of {only}'}: leave it out"
            )
        object.__setattr__(self, "group_size", only)

    def _group(self) -> int | None:
        if self.format == "int8":
            return None
        return SYMMETRIC_GROUP if self.symmetric else ASYMMETRIC_GROUP

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight of a large matrix takes, scales included."""
        return 8.0 if self.format == "int8" else 4.5

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the ``quantization_config`` of a config.json.

        Raises:
            UnsupportedOptionError: a field that is unknown, or a newer version of the format.
            InputError: a value that cannot be right.
        """
        rest = dict(values)
        rest.pop("quant_method", None)
        version = rest.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise UnsupportedOptionError(
                f"the weights are in version {version!r} of Quarterdeck's quantized format; this is version "
                f"{FORMAT_VERSION}: use the Quarterdeck that wrote them, or quantize again"
            )
        known = [field.name for field in fields(cls)]
        unknown = sorted(name for name in rest if name not in known)
        if unknown:
            raise UnsupportedOptionError(
                f"a quantization has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
            )
        if isinstance(rest.get("modules_to_not_convert"), list):
            rest["modules_to_not_convert"] = tuple(rest["modules_to_not_convert"])
        return cls(**rest)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["modules_to_not_convert"] = list(self.modules_to_not_convert)
        return {"quant_method": self.quant_method, "format_version": FORMAT_VERSION, **values}
