"""Every error that Quarterdeck raises on purpose.

    QuarterdeckError
    ├── ConfigError (ValueError)             a model configuration that cannot be right
    ├── InputError (ValueError)              arguments of a call that cannot be right
    │   └── UnsupportedOptionError           an option that is known elsewhere, or not at all, but not here
    ├── TokenizerError (ValueError)          a tokenizer that cannot do what was asked of it
    │   └── ChatTemplateError                a chat template is missing, broken or refused the conversation
    ├── ChatError (ValueError)               a message, document, tool or request for an answer that cannot be right
    ├── CheckpointError (OSError)            files of a model
    │   ├── CheckpointNotFoundError          nothing there under that name
    │   ├── CheckpointCorruptError           truncated, or not what its name says
    │   ├── CheckpointUnsafeError            a format that can run code when it is read (pickle)
    │   └── CheckpointMismatchError          keys or shapes do not fit the model
    ├── NotEnoughMemoryError (MemoryError)    a model that does not fit, found before it is loaded
    └── MissingPackageError (ImportError)    an optional package is not installed

Each also derives from the builtin that a caller would think of first, so ``except ValueError`` keeps working.
"""

from __future__ import annotations


class QuarterdeckError(Exception):
    """Base of all errors that Quarterdeck raises on purpose."""


class ConfigError(QuarterdeckError, ValueError):
    """A model configuration holds a value that cannot be right."""


class InputError(QuarterdeckError, ValueError):
    """The arguments of a call cannot be right, alone or together."""


class UnsupportedOptionError(InputError):
    """An option that Quarterdeck does not have; named, so that it is never silently ignored."""


class TokenizerError(QuarterdeckError, ValueError):
    """A tokenizer cannot do what was asked of it."""


class ChatTemplateError(TokenizerError):
    """A chat template is missing, does not compile, or refused the conversation."""


class ChatError(QuarterdeckError, ValueError):
    """A message, document, tool or request for an answer cannot be right; the message names the item."""


class ContextLengthError(ChatError):
    """A prompt does not fit into the context of the model."""


class CheckpointError(QuarterdeckError, OSError):
    """Something is wrong with the files of a model."""


class CheckpointNotFoundError(CheckpointError):
    """There is no model, or no such file of it, under the name that was given."""


class CheckpointCorruptError(CheckpointError):
    """A file is truncated or is not what its name says."""


class CheckpointUnsafeError(CheckpointError):
    """A file is in a format that can run code when it is read."""


class CheckpointMismatchError(CheckpointError):
    """Weights and model do not fit: keys are missing or unexpected, or shapes differ."""


class NotEnoughMemoryError(QuarterdeckError, MemoryError):
    """A model does not fit into the memory of a device, as is known before it is loaded."""


class MissingPackageError(QuarterdeckError, ImportError):
    """An optional package is needed; the message names the extra that installs it, or itself if there is none."""

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        wanted = package if extra is None else f"'quarterdeck[{extra}]'"
        super().__init__(f"{purpose} needs the package '{package}': pip install {wanted}")
