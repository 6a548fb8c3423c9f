"""Where a command writes to: looked at before any work is done, and told of at the end. Nothing heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from quarterdeck.cli.arguments import UsageError


def check_target(target: Path, *, is_file: bool) -> None:
    """Refuse what would overwrite anything, and what cannot be written.

    Args:
        target: file or folder to make; the folders above it are made with it.
        is_file: it is to be a file. A folder may be there already if it is empty.

    Raises:
        UsageError: there is something, or the first folder above that is there cannot take anything.
    """
    if os.path.lexists(target) and (is_file or not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' is there already; nothing is overwritten: give another name, or remove it")
    there = next(folder for folder in (target, *target.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise UsageError(
            f"'{target}' cannot be written: '{there}' is no folder, and nothing can be made inside it; give a name "
            "in a folder that is there or can be made"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"'{target}' cannot be written: you may not write into '{there}'; give a name in a folder of your own, "
            "or change its permissions"
        )


def size_on_disk(target: Path) -> str:
    """The size of a file, or the number and size of the files in a folder: ``"7 files, 17.9 MB"``; MB are 10^6."""
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    size = f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
    return size if target.is_file() else f"{len(files)} files, {size}"
