"""The table of located things: one row per atom, defect or dopant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from micrographia.errors import UserError
from micrographia.files import atomic_path

#: Columns every table has; a step may add more (``species``, ``angle_deg``, ...).
SITE_COLUMNS = ("image", "x_px", "y_px", "kind", "confidence")

_DTYPES = {"image": "str", "x_px": "float64", "y_px": "float64", "kind": "str", "confidence": "float64"}
_PARQUET_SUFFIXES = (".parquet", ".pq")


def make_sites(
    image: str,
    x_px: npt.ArrayLike,
    y_px: npt.ArrayLike,
    kind: str | Sequence[str] | np.ndarray,
    confidence: npt.ArrayLike = 1.0,
) -> pd.DataFrame:
    """Build the table of one image's sites.

    Parameters
    ----------
    image : str
        Name of the image, the same as ``Micrograph.name``.
    x_px, y_px : array_like, ``[M]``
        Column and row in pixels, pixel centres at integers.
    kind : str or sequence of M str
    confidence : float or array_like, ``[M]``

    Raises
    ------
    UserError
        Lengths differ, or a position is not finite.
    """
    x = np.atleast_1d(np.asarray(x_px, dtype=float)).ravel()
    y = np.atleast_1d(np.asarray(y_px, dtype=float)).ravel()
    kinds = [kind] * len(x) if isinstance(kind, str) else [str(k) for k in kind]
    given = np.asarray(confidence, dtype=float)
    confidences = np.full(len(x), float(given)) if given.ndim == 0 else given.ravel()
    lengths = {"x_px": len(x), "y_px": len(y), "kind": len(kinds), "confidence": len(confidences)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise UserError(f"{image}: the columns of a site table must have one length, got {told}.")
    table = pd.DataFrame({"image": image, "x_px": x, "y_px": y, "kind": kinds, "confidence": confidences})
    return _checked(table.astype(_DTYPES), image)


def concat_sites(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Stack tables, first come first; no tables or only empty ones give an empty table with the columns."""
    full = [table for table in tables if len(table)]
    return pd.concat(full, ignore_index=True) if full else make_sites("", [], [], "")


def read_sites(path: str | Path) -> pd.DataFrame:
    """Read a site table from CSV or Parquet.

    ``x_px`` and ``y_px`` are required. A missing ``image`` or ``kind`` is read as ``""`` (there is
    only one), a missing ``confidence`` as 1. Other columns are kept.

    Raises
    ------
    UserError
        No such file, not a table, or columns missing or not numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a table of sites (.csv or .parquet).")
    try:
        if path.suffix.lower() in _PARQUET_SUFFIXES:
            table = pd.read_parquet(path)
        else:
            # Names are text whatever they look like: a kind "NA", an image "007".
            names = ("image", "kind")
            others = [name for name in pd.read_csv(path, nrows=0).columns if name not in names]
            table = pd.read_csv(
                path,
                dtype=dict.fromkeys(names, "str"),
                keep_default_na=False,
                na_values={name: ["", "nan", "NaN", "NA"] for name in others},
            )
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install 'micrographia[parquet]'."
        ) from error
    except Exception as error:
        raise UserError(f"{path}: not a readable table ({_first_line(error)}).") from error
    missing = [name for name in ("x_px", "y_px") if name not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns))
        raise UserError(
            f"{path}: column {' and '.join(missing)} missing (found: {found}); x_px is the column and y_px "
            "the row of a site in pixels. Rename the columns and try again."
        )
    for name, value in (("image", ""), ("kind", ""), ("confidence", 1.0)):
        if name not in table.columns:
            table[name] = value
    try:
        table = table.astype(_DTYPES)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: x_px, y_px and confidence must be numbers ({_first_line(error)})."
        ) from error
    others = [name for name in table.columns if name not in SITE_COLUMNS]
    return _checked(table[[*SITE_COLUMNS, *others]], str(path))


def write_sites(table: pd.DataFrame, path: str | Path) -> None:
    """Write a site table as CSV, and as Parquet beside it when pyarrow is installed.

    A path ending in ``.parquet`` writes Parquet alone. Either file appears whole or not at all.
    """
    path = Path(path)
    missing = [name for name in SITE_COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"{path}: a site table needs the columns {', '.join(missing)}.")
    only_parquet = path.suffix.lower() in _PARQUET_SUFFIXES
    if not only_parquet:
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        if only_parquet:
            raise UserError(f"{path}: Parquet needs pyarrow: pip install 'micrographia[parquet]'.") from error
        return
    with atomic_path(path if only_parquet else path.with_suffix(".parquet")) as temporary:
        table.to_parquet(temporary, index=False)


def _checked(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return `table` if every position and confidence is a finite number."""
    bad = ~np.isfinite(table[["x_px", "y_px", "confidence"]].to_numpy(dtype=float)).all(axis=1)
    if bad.any():
        raise UserError(
            f"{where}: {int(bad.sum())} of {len(table)} sites have no finite position or confidence "
            f"(first: row {int(np.argmax(bad))}); remove or mend them."
        )
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
