"""The Hugging Face hub: fetching files, and its failures said in our words.

Kept apart from `quarterdeck.locate` because importing the hub library takes a good part of a second, for
which users of local folders need not wait. Only its oldest functions are used: any version from 0.30 on
will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # public, and not marked as such

from quarterdeck.errors import CheckpointError, CheckpointNotFoundError

_PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""

_NO_ANSWER = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))
"""Errors of requests, which are OSErrors, or of httpx, which later versions of the library use."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_file(
    repository: str,
    filename: str,
    *,
    required: bool,
    subfolder: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path | None:
    """The path in the cache of one file of a repository; None if it is not there and not ``required``.

    Offline, "not there" means "not downloaded before".

    Raises:
        CheckpointNotFoundError: no such repository, revision or file, no right to it, or hub out of reach.
    """
    with _hub_errors(repository, revision):
        pinned = revision is not None and _COMMIT.fullmatch(revision) and not force_download
        if pinned and (known := _path_in_cache(repository, filename, subfolder, revision, cache_dir)) is not None:
            return known
        is_offline = local_files_only or not _answers()
        if force_download and is_offline:
            raise CheckpointError(
                f"force_download=True needs the hub to fetch {_where(repository, revision)}, and it was not asked or "
                "did not answer: check the connection, HF_HUB_OFFLINE and local_files_only"
            )
        try:
            return Path(
                hf_hub_download(
                    repository,
                    filename,
                    subfolder=subfolder or None,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=is_offline,
                    force_download=force_download,
                )
            )
        except EntryNotFoundError as error:  # its subclass LocalEntryNotFoundError included
            if (
                is_offline and not local_files_only
            ):  # an error if nothing at all is here: then other files are not either
                snapshot_download(repository, revision=revision, cache_dir=cache_dir, local_files_only=True)
            if not required:
                return None
            if isinstance(error, LocalEntryNotFoundError):
                raise
            raise CheckpointNotFoundError(
                f"there is no {filename} in {_where(repository, revision)}"
                + (f", folder '{subfolder}'" if subfolder else "")
            ) from error


def fetch_snapshot(
    repository: str,
    patterns: Sequence[str],
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    """The folder in the cache of a repository's files that match ``patterns``, fetched side by side.

    Raises:
        CheckpointNotFoundError: no such repository or revision, no right to read it, or hub out of reach.
    """
    with _hub_errors(repository, revision):
        return Path(
            snapshot_download(
                repository,
                allow_patterns=list(patterns),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        )


def has_file(repository: str, filename: str, *, revision: str | None, token: str | bool | None) -> bool:
    """Whether a repository has a file, without fetching it; False too if the hub cannot be asked."""
    if not _answers():
        return False
    try:
        return bool(HfApi().file_exists(repository, filename, revision=revision, token=token))
    except (HfHubHTTPError, OSError):
        return False


def _answers() -> bool:
    """Whether the hub can be reached: False at once where the library would try again for most of a minute.

    It does so before every file, with two lines of warnings per try, although nothing has been downloaded yet that
    would be lost. Downloads themselves are left to the library, which resumes them.
    """
    try:
        get_session().head(HfApi().endpoint, timeout=_PATIENCE)
    except _NO_ANSWER:
        return False
    return True


def _path_in_cache(
    repository: str, filename: str, subfolder: str, revision: str | None, cache_dir: str | Path | None
) -> Path | None:
    path = f"{subfolder}/{filename}" if subfolder else filename
    found = try_to_load_from_cache(repository, path, cache_dir=cache_dir, revision=revision)
    return Path(found) if isinstance(found, str) else None


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turns the library's errors into ours, each with its remedy. Subclasses stand before their bases."""
    where = _where(repository, revision)
    try:
        yield
    except CheckpointError:
        raise
    except GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"access to {where} is restricted: accept its terms on the model's page, then log in with "
            "'hf auth login' or pass token=..."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointNotFoundError(f"'{repository}' on the hub has no revision '{revision}'") from error
    except RepositoryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"there is neither a folder '{repository}' nor {where}; check the spelling, and if it is private "
            "log in with 'hf auth login' or pass token=..."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointNotFoundError(
            f"there is no folder '{repository}', {where} was not downloaded before, and the hub was not "
            "asked or did not answer: check the connection, HF_HUB_OFFLINE and local_files_only"
        ) from error
    except HFValidationError as error:
        raise CheckpointNotFoundError(
            f"'{repository}' is neither an existing folder nor a possible hub id ('organisation/name')"
        ) from error
    except LocalTokenNotFoundError as error:
        raise CheckpointError("token=True, but no token is stored: run 'hf auth login'") from error
    except (HfHubHTTPError, OSError) as error:  # a server's refusal, a broken connection, a full disk
        raise CheckpointError(f"fetching {where} failed: {error}") from error


def _where(repository: str, revision: str | None) -> str:
    return f"'{repository}' on the hub" + (f" at revision '{revision}'" if revision else "")
