"""Reading and writing images: every microscope's format in, calibrated images with their provenance out."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from micrographia.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    What is written under the temporary name (a file or a folder) appears under its own name whole or
    not at all. The temporary name keeps the suffix, because writers choose the format by it.

    Raises
    ------
    UserError
        The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.stem[:40]}-", dir=path.parent))
    except OSError as error:
        raise _write_error(path, error) from error
    temporary = room / path.name
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _write_error(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((p for p in (path.parent, *path.parents) if p.exists()), Path.cwd())
        free = shutil.disk_usage(folder).free / 1e6
        return UserError(
            f"{path}: the disk is full ({free:.1f} MB free in {folder}); nothing was left half-written. "
            "Free some space or write to another folder."
        )
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); check the folder and its permissions."
    )
