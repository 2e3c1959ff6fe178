"""An interactive scatter of latents in one HTML file: hovering shows the patch; no server, no network."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image

from micrographia.errors import UserError
from micrographia.files import atomic_path
from micrographia.plots.palette import COLOURS
from micrographia.plots.thumbnails import shrunk, thumbnails

#: Points drawn; of more, a random choice.
MOST_POINTS = 20_000
#: Pixels of all patches together: keeps the file below some 15 MB.
MOST_PIXELS = 9_000_000
#: Whole numbers with at most so many values are classes.
MOST_WHOLE = 20
#: A patch's longer edge, at most.
LARGEST_PX = 64


def write_scatter_html(
    path: str | Path,
    table: pd.DataFrame,
    patches: np.ndarray | None = None,
    x: str = "z1",
    y: str = "z2",
    colour: str | None = None,
    title: str = "Latent space",
    seed: int = 0,
) -> Path:
    """Write the page.

    x, y and colour can be changed in the page; the wheel zooms, dragging moves, a click holds a patch, and the
    classes of the legend can be switched off.

    Parameters
    ----------
    path : path
        ``.html``.
    table : DataFrame
        One row per atom. Numbers can be axes and colours; text, categories, truth values and whole numbers of
        at most `MOST_WHOLE` different values are classes.
    patches : ``[N, H, W]`` or ``[N, C, H, W]``, optional
        In the order of the rows.
    x, y : str
        Columns shown first.
    colour : str, optional
        Without: the first column that is neither x nor y.
    seed : int
        Of the choice among more than `MOST_POINTS` atoms, of which the page tells.

    Raises
    ------
    UserError
        Missing or empty columns, no rows, patches that are not one per row.
    """
    table = table.reset_index(drop=True)
    _check(table, patches, [x, y, *([colour] if colour else [])])
    total, note = len(table), ""
    if total > MOST_POINTS:
        some = np.sort(np.random.default_rng(seed).choice(total, MOST_POINTS, replace=False))
        table = table.iloc[some].reset_index(drop=True)
        patches = None if patches is None else np.asarray(patches)[some]
        note = f"{MOST_POINTS} of {total} atoms, chosen at random. "
    note += "Hover: patch. Click: hold it. Wheel: zoom. Drag: move. Double-click: show all."
    columns = [_column(str(name), table[name], name in (x, y)) for name in table.columns]
    names = [column["name"] for column in columns]
    first = colour or next((n for n in names if n not in (x, y)), x)
    data = {
        "count": len(table),
        "columns": columns,
        "x": x,
        "y": y,
        "colour": first,
        "palette": COLOURS,
        "ramp": [[round(255 * v) for v in colormaps["viridis"](t)[:3]] for t in np.linspace(0, 1, 17)],
        "sprite": None if patches is None else _sprite(patches),
    }
    page = Template(_resource("scatter.html")).substitute(
        title=html.escape(title),
        note=html.escape(note),
        # In a script element only "</" and "<!--" could end or bend the text; there is no "<" at all.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        script=_resource("scatter.js"),
    )
    path = Path(path)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return path


def _check(table: pd.DataFrame, patches: np.ndarray | None, wanted: list[str]) -> None:
    if not len(table):
        raise UserError("The table of atoms is empty: there is nothing to scatter.")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise UserError(f"The table has two columns '{twice}'; rename one.")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise UserError(
            f"The table has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, table.columns))}."
        )
    for name in wanted[:2]:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise UserError(f"Column '{name}' holds no numbers; choose another as axis.")
    if patches is not None and len(patches) != len(table):
        raise UserError(f"{len(patches)} patches for {len(table)} rows; give one patch per row, in order.")


def _column(name: str, values: pd.Series, is_axis: bool) -> dict[str, object]:
    """What the page needs of a column: numbers (None = missing), or indices into classes."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    whole = pd.api.types.is_integer_dtype(values) and values.nunique() <= MOST_WHOLE
    if numeric and (is_axis or not whole):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        told = [float(f"{v:.5g}") if np.isfinite(v) else None for v in numbers]
        return {"name": name, "values": told, "classes": None}
    present = values.dropna().unique().tolist()
    classes = sorted(present) if whole else sorted({str(v) for v in present})
    place = {label: k for k, label in enumerate(classes)}
    index = [None if pd.isna(v) else place[v if whole else str(v)] for v in values.tolist()]
    return {"name": name, "values": index, "classes": [str(label) for label in classes]}


def _sprite(patches: np.ndarray) -> dict[str, object]:
    """All patches on one PNG sheet, row by row."""
    pictures = thumbnails(patches)
    longest = max(pictures.shape[1:3])
    edge = int(np.clip(np.sqrt(MOST_PIXELS / len(pictures)), 8, min(LARGEST_PX, longest)))
    small = shrunk(pictures, edge)
    height, width, across = small.shape[1], small.shape[2], int(np.ceil(np.sqrt(len(small))))
    down = -(-len(small) // across)
    sheet = np.zeros((down * height, across * width, *small.shape[3:]), np.uint8)
    for i, picture in enumerate(small):
        r, c = divmod(i, across)
        sheet[r * height : (r + 1) * height, c * width : (c + 1) * width] = picture
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "png", compress_level=6)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"source": source, "width": width, "height": height, "across": across}


def _resource(name: str) -> str:
    return resources.files("micrographia.plots").joinpath("templates", name).read_text("utf-8")
