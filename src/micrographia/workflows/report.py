"""The report of a run: one HTML page that needs nothing else, and its figures as files beside it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from micrographia import __version__
from micrographia.errors import UserError
from micrographia.io import atomic_path

#: Resolution of figures, dots per inch: sharp at report width on screens of twofold density.
DPI = 150


@dataclass
class Section:
    """One part of a report: a heading and, in order, its texts, tables and figures."""

    heading: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def text(self, *paragraphs: str) -> Section:
        """Add plain paragraphs; nothing in them is taken for HTML."""
        self.parts += [{"kind": "text", "text": paragraph} for paragraph in paragraphs]
        return self

    def warning(self, *paragraphs: str) -> Section:
        """Add paragraphs that stand out."""
        self.parts += [{"kind": "warning", "text": paragraph} for paragraph in paragraphs]
        return self

    def table(self, table: pd.DataFrame, caption: str = "", digits: int = 3) -> Section:
        """Add a table; numbers with `digits` significant digits, NaN as a dash.

        An index that only counts the rows is left out.
        """
        if not isinstance(table.index, pd.RangeIndex):
            table = table.reset_index(names=table.index.name or "", allow_duplicates=True)
        numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
        rows = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False, name=None)]
        columns = list(zip(map(str, table.columns), numeric, strict=True))
        self.parts.append({"kind": "table", "columns": columns, "rows": rows, "caption": caption})
        return self

    def figure(
        self, name: str, figure: Figure, caption: str = "", synthetic: Mapping[str, Any] | None = None
    ) -> Section:
        """Add a figure; it is also saved as ``figures/NAME.png`` beside the report.

        `synthetic` tells how the generated images in it, if there are any, were made.

        Raises
        ------
        UserError
            `name` is no plain file name.
        """
        if not re.fullmatch(r"[\w][\w.+-]*", name):
            raise UserError(f"report: '{name}' cannot name a figure; use letters, digits, '-', '_' and '.'.")
        self.parts.append(
            {"kind": "figure", "name": name, "figure": figure, "caption": caption, "synthetic": synthetic}
        )
        return self


class Report:
    """Collects sections; writes them as one self-contained page.

    Parameters
    ----------
    title : str
    subtitle : str
        One line under the title: what was asked.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.sections: list[Section] = []

    def section(self, heading: str) -> Section:
        """Start a new section and return it to be filled."""
        self.sections.append(Section(heading))
        return self.sections[-1]

    def write(self, path: str | Path) -> Path:
        """Write the page to `path` and the figures to ``figures/`` beside it; return `path`.

        Raises
        ------
        UserError
            Two figures have one name, or the folder cannot be written.
        """
        path = Path(path)
        names = [part["name"] for section in self.sections for part in section.parts if "name" in part]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"report: two figures are called '{doubles[0]}'; give each its own name.")
        sections = [
            {"heading": s.heading, "parts": [self._rendered(part, path.parent) for part in s.parts]}
            for s in self.sections
        ]
        page = _template().render(
            title=self.title,
            subtitle=self.subtitle,
            sections=sections,
            version=__version__,
            date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        )
        with atomic_path(path) as temporary:
            temporary.write_text(page, "utf-8")
        return path

    def _rendered(self, part: dict[str, Any], folder: Path) -> dict[str, Any]:
        if part["kind"] != "figure":
            return part
        about = {"report": self.title, "figure": part["name"]}
        png = figure_png(part["figure"], about, part.get("synthetic"))
        with atomic_path(folder / "figures" / f"{part['name']}.png") as temporary:
            temporary.write_bytes(png)
        return {**part, "data": base64.b64encode(png).decode("ascii")}


def figure_png(
    figure: Figure, about: Mapping[str, Any] | None = None, synthetic: Mapping[str, Any] | None = None
) -> bytes:
    """Draw a figure as PNG that says in its text chunks what made it, and the generated images in it."""
    file = io.BytesIO()
    software = f"micrographia {__version__}"
    made = {"generator": software, **(about or {})}
    if synthetic is not None:
        made |= {"software": software, **synthetic, "synthetic": True}
    metadata = {
        "Software": software,
        "Description": "Figure generated by micrographia; not a measured image",
        "micrographia": json.dumps(made, ensure_ascii=True, default=str),
    }
    figure.savefig(file, format="png", dpi=DPI, metadata=metadata)
    return file.getvalue()


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if pd.isna(value) is True or value is None:
        return "–"
    if isinstance(value, float) or hasattr(value, "dtype"):
        value = float(value)
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
    return str(value)


def _template():
    # Everything is escaped: titles, file names and error messages come from outside.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("micrographia.workflows").joinpath("templates/report.html").read_text("utf-8")
    return environment.from_string(source)
