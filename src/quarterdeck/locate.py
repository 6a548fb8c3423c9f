"""From what a user calls a model to files on disk.

A model is named in one of three ways, tried in this order:

1. ``"midshipman"``: the model inside the package, always there, never a download (``Path("midshipman")`` or
   ``"./midshipman"`` is a folder of that name, where there is one);
2. a folder that exists;
3. an id on the Hugging Face hub, ``"name"`` or ``"organisation/name"``, fetched into the hub's own cache.

Everything that opens a file of a model (configuration, tokenizer, templates, weights) asks here, so the three
ways work the same everywhere. What concerns the hub only (revision, token, cache) has no meaning for the
first two: a folder has one version, the one in it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, overload

from quarterdeck.errors import CheckpointNotFoundError, InputError

EMBEDDED_MODEL = "midshipman"

_ASSETS = Path(__file__).resolve().parent / "assets"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GGUF = ".gguf"
_GGUF_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class HubOptions:
    """Which version of a model to use, with whose rights, and where copies are kept.

    Attributes:
        revision: branch, tag or commit on the hub; None is ``main``.
        token: access token; None is the one stored by ``hf auth login`` if there is one, True demands
            that there is one, False sends none.
        subfolder: folder inside the model, for local folders as well; ``""`` is its root.
        cache_dir: folder of downloaded files; None is the hub library's own.
        local_files_only: look only at files downloaded before.
        force_download: fetch again what is there.
    """

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    subfolder: str = ""
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def pinned_to(self, path: Path | None) -> HubOptions:
        """The same options at the commit that ``path`` was downloaded from, if it was.

        The second file of a model then comes from the same commit as the first even if somebody pushes
        between the two, and a file in the cache is found without asking the hub again.
        """
        commit = _commit_of(path)
        return self if commit is None else replace(self, revision=commit)

    @overload
    def resolve_file(
        self, name_or_dir: str | os.PathLike[str], filename: str, *, required: Literal[True] = True
    ) -> Path: ...
    @overload
    def resolve_file(self, name_or_dir: str | os.PathLike[str], filename: str, *, required: bool) -> Path | None: ...
    def resolve_file(self, name_or_dir: str | os.PathLike[str], filename: str, *, required: bool = True) -> Path | None:
        """The path of one file of a model; see the function of the same name."""
        folder = local_folder(name_or_dir)
        if folder is None:
            return self._download_file(str(name_or_dir), filename, required)
        path = folder / self.subfolder / filename
        if path.is_file():
            return path
        if required:
            raise CheckpointNotFoundError(_no_such_file(path))
        return None

    def resolve_files(self, name_or_dir: str | os.PathLike[str], filenames: Sequence[str]) -> list[Path]:
        """The paths of several files of a model, all required; those of the hub are fetched side by side."""
        if local_folder(name_or_dir) is None:
            return self._download_files(str(name_or_dir), filenames)
        return [self.resolve_file(name_or_dir, filename) for filename in filenames]

    def has_file(self, name_or_dir: str | os.PathLike[str], filename: str) -> bool:
        """Whether a model has a file, without downloading it; False if that cannot be known."""
        folder = local_folder(name_or_dir)
        if folder is not None:
            return (folder / self.subfolder / filename).is_file()
        if self.local_files_only:
            return False
        from quarterdeck import hub  # here, so that local folders do not pay for importing the hub library

        return hub.has_file(str(name_or_dir), self._in_subfolder(filename), revision=self.revision, token=self.token)

    def _in_subfolder(self, filename: str) -> str:
        return f"{self.subfolder}/{filename}" if self.subfolder else filename

    def _download_file(self, repository: str, filename: str, required: bool) -> Path | None:
        from quarterdeck import hub  # here, so that local folders do not pay for importing the hub library

        return hub.fetch_file(
            repository,
            filename,
            required=required,
            subfolder=self.subfolder,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
            force_download=self.force_download,
        )

    def _download_files(self, repository: str, filenames: Sequence[str]) -> list[Path]:
        from quarterdeck import hub  # here, so that local folders do not pay for importing the hub library

        names = [self._in_subfolder(filename) for filename in filenames]
        folder = hub.fetch_snapshot(
            repository,
            names,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
            force_download=self.force_download,
        )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointNotFoundError(
                f"'{repository}' on the hub, or what was downloaded of it, lacks {', '.join(missing)}"
            )
        return [folder / name for name in names]


@overload
def resolve_file(
    name_or_dir: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    required: Literal[True] = True,
) -> Path: ...
@overload
def resolve_file(
    name_or_dir: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    required: bool,
) -> Path | None: ...
def resolve_file(
    name_or_dir: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    required: bool = True,
) -> Path | None:
    """The path of one file of a model, downloaded first if the name is a hub id.

    Args:
        name_or_dir: ``"midshipman"``, a folder, or a hub id.
        filename: name inside the model (inside ``subfolder``, if given).
        revision, token, subfolder, cache_dir, local_files_only, force_download: see `HubOptions`.
        required: whether the file's absence is an error; otherwise it gives None. A model that is absent
            altogether is always an error.

    Raises:
        CheckpointNotFoundError: no such model, no right to read it, no such file, or no way to reach the hub.
    """
    options = HubOptions(revision, token, subfolder, cache_dir, local_files_only, force_download)
    return options.resolve_file(name_or_dir, filename, required=required)


def local_folder(name_or_dir: str | os.PathLike[str]) -> Path | None:
    """The folder of a model on this machine, or None for a name that can only be a hub id.

    Raises:
        CheckpointNotFoundError: the name is a path and there is no folder there.
        InputError: the name is empty, or no name.
    """
    name = _as_name(name_or_dir)
    if not name:
        raise InputError(f"a model's name is empty; give '{EMBEDDED_MODEL}', a folder or a hub id")
    folder = Path(name).expanduser()
    if name == EMBEDDED_MODEL and not (isinstance(name_or_dir, os.PathLike) and folder.is_dir()):
        return _embedded_folder()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointNotFoundError(f"'{name}' is a file; give the folder that holds it and config.json")
    if isinstance(name_or_dir, os.PathLike) or _looks_like_path(name):
        raise CheckpointNotFoundError(
            f"there is no folder '{name}'; give an existing folder, a hub id such as 'organisation/name', "
            f"or '{EMBEDDED_MODEL}', the model inside the package"
        )
    return None


def gguf_path(name_or_dir: str | os.PathLike[str] | None, gguf_file: str | None, options: HubOptions) -> Path | None:
    """The GGUF file that a model is to be read from, downloaded first if it is on the hub; None if there is none.

    Args:
        name_or_dir: a GGUF file itself; or where ``gguf_file`` is.
        gguf_file: the file's name inside a folder or a model of the hub.
        options: see `HubOptions`.

    Raises:
        CheckpointNotFoundError: no such file.
        InputError: ``gguf_file`` is no name of such a file, or two files are named, or the model's name is none.
    """
    name = "" if name_or_dir is None else _as_name(name_or_dir)
    path = Path(name).expanduser()
    is_file = name.lower().endswith(_GGUF) and not path.is_dir()
    if gguf_file is None:
        if is_file and not path.is_file():
            raise CheckpointNotFoundError(f"there is no file '{name}'; for one on the hub give its id, and gguf_file")
        return path if is_file else None
    if is_file or not isinstance(gguf_file, str) or not gguf_file.lower().endswith(_GGUF):
        raise InputError(
            f"gguf_file is {gguf_file!r} beside '{name}', but must be the name of a file NAME.gguf inside a folder or "
            "a model of the hub; a file itself is named alone"
        )
    if name_or_dir is None:
        raise InputError(f"gguf_file={gguf_file!r} is given without the folder or hub id that has it")
    found = options.resolve_file(name_or_dir, gguf_file)
    for part in part_names(gguf_file):  # of a file on the hub, the other parts come with it
        options.resolve_file(name_or_dir, part)
    return found


def part_names(filename: str) -> list[str]:
    """``X-00001-of-00003.gguf``: the names of all three; a file that is not split is the only one."""
    match = _GGUF_PART.fullmatch(filename)
    if match is None:
        return [filename]
    return [f"{match[1]}-{number:05d}-of-{match[2]}.gguf" for number in range(1, int(match[2]) + 1)]


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Fetches everything that is needed to use a model offline; returns its folder.

    Weights come as safetensors only: files in formats that can run code are left where they are. Progress
    bars are the hub library's. A model that is on this machine already is left as it is.

    Raises:
        CheckpointNotFoundError: no such model, no right to read it, or no way to reach the hub.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    from quarterdeck import hub  # here, so that local folders do not pay for importing the hub library

    return hub.fetch_snapshot(
        name,
        ["*.safetensors", "*.json", "*.jinja", "*.txt"],
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )


def _as_name(name_or_dir: object) -> str:
    """The name as text, of whatever a caller gave for one.

    Raises:
        InputError: it is no name.
    """
    if isinstance(name_or_dir, str | os.PathLike):
        name = os.fspath(name_or_dir)
        if isinstance(name, str):
            return name
    raise InputError(
        f"there is nothing to load: a model's name is {name_or_dir!r}, but must be '{EMBEDDED_MODEL}', a folder or a "
        "hub id"
    )


def _embedded_folder() -> Path:
    folder = _ASSETS / EMBEDDED_MODEL
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"the embedded model '{EMBEDDED_MODEL}' is missing from this installation; reinstall quarterdeck"
        )
    return folder


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def _no_such_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}', which should hold {path.name}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"there is no {path.name} in '{path.parent}' (it holds {shown or 'nothing'})"


def _commit_of(path: Path | None) -> str | None:
    """The commit in a path of the hub's cache: ``.../snapshots/<commit>/...``."""
    parts = path.parts if path is not None else ()
    for parent, name in itertools.pairwise(parts):
        if parent == "snapshots" and _COMMIT.fullmatch(name):
            return name
    return None
