"""`QuantizationConfig`: which weights are held in 8 or 4 bits, and how the numbers are chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.kernels import int8_groups
from quarterdeck.kernels.int4 import ASYMMETRIC_GROUP, SYMMETRIC_GROUP

Format = Literal["int8", "int4"]
Method = Literal["round-to-nearest", "gptq"]
FORMAT_VERSION = 1

FORMS: Mapping[str, tuple[Format, bool, int | None, float]] = {
    "int8": ("int8", True, None, 8.0),
    "int8-32": ("int8", True, int8_groups.GROUP, 8.5),
    "int4": ("int4", True, SYMMETRIC_GROUP, 4.5),
    "int4-asymmetric": ("int4", False, ASYMMETRIC_GROUP, 4.5),
    "int4-asymmetric-32": ("int4", False, SYMMETRIC_GROUP, 5.0),
}
"""All ways of holding a weight by their names: format, symmetric, group (the usual one first) and bits for a weight."""

_CALIBRATED = ("int8", "int4", "int4-asymmetric")


def is_named(name: str, pattern: str) -> bool:
    """Whether ``pattern`` is a module's name, its beginning (``"model.layers.0"``) or its last part (``"up_proj"``)."""
    return name == pattern or name.startswith(f"{pattern}.") or name.rpartition(".")[2] == pattern


def _is_sequence(value: object) -> bool:
    """Whether a value has members in an order, and is no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


@dataclass(frozen=True)
class QuantizationConfig:
    """How the weights of linears and embeddings are held. Norms and biases stay in the model's type.

    Args:
        format: ``"int8"``, one scale for each row; or ``"int4"``, one 16-bit scale for each group of columns, 4.5 bits
            for each weight.
        symmetric: of ``"int4"``: values around zero in groups of 32; or False: a scale and a minimum in groups of 64.
        group_size: columns that share a scale, where that is not what follows from the two above: 32 for ``"int8"``,
            8.5 bits for each weight, or 32 for ``"int4"`` that is not symmetric, 5 bits.
        embeddings: whether the token embedding is quantized.
        head: whether the output head is. A head that is tied to the embedding is one tensor with it.
        modules_to_not_convert: names of modules to leave alone: whole (``"model.layers.0.mlp.up_proj"``), their
            beginning (``"model.layers.0"``) or their last part (``"up_proj"``).
        method: how numbers were chosen: ``"round-to-nearest"``, or ``"gptq"`` by what the layers see of calibration
            text, for which see `quarterdeck.quantization.calibration`.
        module_formats: pairs of a name, as in ``modules_to_not_convert``, and one of `FORMS`: modules that are held in
            another way than the others, as in files of other tools. The first pair that fits counts.

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
    module_formats: tuple[tuple[str, str], ...] = ()

    quant_method: ClassVar[str] = "quarterdeck"

    def __post_init__(self) -> None:
        for name, choices in (("format", get_args(Format)), ("method", get_args(Method))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
        for name in ("symmetric", "embeddings", "head"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}, but must be True or False")
        names = self.modules_to_not_convert
        if (
            isinstance(names, str)
            or not isinstance(names, Collection)
            or any(not isinstance(one, str) for one in names)
        ):
            raise InputError(f"modules_to_not_convert is {names!r}, but must be a list of names")
        object.__setattr__(self, "modules_to_not_convert", tuple(names))
        if self.format == "int8" and not self.symmetric:
            raise InputError("symmetric=False is for 4 bits; 8-bit weights are symmetric: leave it out")
        groups = [group for kind, even, group, _ in FORMS.values() if (kind, even) == (self.format, self.symmetric)]
        if self.group_size is not None and self.group_size not in groups:
            has = " or ".join("one scale for a row" if group is None else f"groups of {group}" for group in groups)
            raise InputError(
                f"group_size is {self.group_size!r}; {self.format} with symmetric={self.symmetric} has {has}: "
                "leave it out"
            )
        object.__setattr__(self, "group_size", self.group_size or groups[0])
        self._check_forms()

    def _check_forms(self) -> None:
        wanted = f"but must have pairs of a module's name and one of {', '.join(FORMS)}"
        if not _is_sequence(self.module_formats):
            raise InputError(f"module_formats is {self.module_formats!r}, {wanted}")
        for pair in self.module_formats:
            if not _is_sequence(pair) or len(pair) != 2 or not isinstance(pair[0], str) or pair[1] not in (*FORMS,):
                raise InputError(f"module_formats has {pair!r}, {wanted}")
        object.__setattr__(self, "module_formats", tuple((name, form) for name, form in self.module_formats))
        if self.method == "gptq" and (self.module_formats or self.form_of("") not in _CALIBRATED):
            raise InputError(
                f"method='gptq' makes {', '.join(_CALIBRATED)}, one for all modules: leave out group_size and "
                "module_formats"
            )

    def form_of(self, name: str) -> str:
        """The name in `FORMS` of the way in which the module ``name`` is held; ``""`` is none that is named."""
        for pattern, form in self.module_formats:
            if is_named(name, pattern):
                return form
        own = (self.format, self.symmetric, self.group_size)
        return next(form for form, values in FORMS.items() if values[:3] == own)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight of a large matrix takes, scales included, where its module is not named apart."""
        return FORMS[self.form_of("")][3]

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
        if isinstance(rest.get("module_formats"), Mapping):  # as files had it once
            rest["module_formats"] = tuple(rest["module_formats"].items())
        return cls(**rest)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds; pairs in a list, since their order counts and that of an object's names is lost."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["modules_to_not_convert"] = list(self.modules_to_not_convert)
        values["module_formats"] = [list(pair) for pair in self.module_formats]
        if not self.module_formats:
            del values["module_formats"]
        return {"quant_method": self.quant_method, "format_version": FORMAT_VERSION, **values}
