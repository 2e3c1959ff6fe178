"""Finding files that a user names, and writing files that appear whole or not at all, JSON that every reader takes."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from micrographia.errors import UserError


def find_files(paths: Iterable[str | Path], suffixes: Collection[str]) -> list[Path]:
    """Files that `paths` name: files, folders (searched for `suffixes`, not deeper) and glob patterns."""
    return _without_doubles([file for path in paths for file in _expand(str(path), suffixes)])


def _expand(path: str, suffixes: Collection[str]) -> list[Path]:
    found = Path(path)
    try:
        is_folder, exists = found.is_dir(), found.exists()
    except PermissionError:  # Whoever reads it says so, and goes on with the others.
        return [found]
    if is_folder and found.suffix.lower() != ".zspy":
        inside = [p for p in found.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "."]
        return sorted(inside, key=_natural)
    if not exists and any(sign in path for sign in "*?["):
        return sorted(map(Path, glob.glob(path)), key=_natural)
    return [found]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]


def _without_doubles(files: list[Path]) -> list[Path]:
    """Each file once, and no TIA data file ``NAME_1.ser`` that its header ``NAME.emi`` brings along."""
    once = list({file.resolve(): file for file in files}.values())
    headers = {file.with_suffix("") for file in once if file.suffix.lower() == ".emi"}
    return [
        file
        for file in once
        if file.suffix.lower() != ".ser" or file.with_name(re.sub(r"_\d+$", "", file.stem)) not in headers
    ]


def unique_names(files: list[Path]) -> list[str]:
    """File names, with as many folders in front as it takes to tell equal ones apart."""
    names = [file.name for file in files]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        doubles = {name for name in names if names.count(name) > 1}
        names = [
            "/".join(file.resolve().parts[-depth:]) if name in doubles else name
            for file, name in zip(files, names, strict=True)
        ]
    return names


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
    folder = next((p for p in (path.parent, *path.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(folder).free / 1e6
    # NumPy reports a short write without an error number.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and free < 1):
        written = (
            sum(f.stat().st_size for f in path.parent.glob(f".{path.stem[:40]}-*/**/*") if f.is_file()) / 1e6
        )
        return UserError(
            f"{path}: the disk is full: the file had reached {written:.1f} MB, {free:.1f} MB are free "
            f"in {folder}. Nothing was left half-written; free some space or write to another folder."
        )
    return UserError(f"{path}: cannot be written ({error}); check the folder and its permissions.")


def json_text(values: Any) -> str:
    """JSON of what was computed; undefined numbers (NaN, infinite) are null, which every reader takes."""
    return json.dumps(defined(values), indent=1, default=float, allow_nan=False)


def defined(values: Any) -> Any:
    """The same, with None in place of undefined numbers."""
    if isinstance(values, Mapping):
        return {k: defined(v) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return [defined(v) for v in values]
    fraction = isinstance(values, Real) and not isinstance(values, Integral)
    return None if fraction and not isfinite(values) else values
