"""What a file holds before it becomes an image: arrays with calibrated axes, and the metadata around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Files above this size are opened lazily or memory-mapped, and computed frame by frame.
LAZY_ABOVE_BYTES = 256 * 2**20

#: Smallest edge (px) of an array in a container file that is taken for an image, not for a table.
SMALLEST_IMAGE = 32

_A_PER_UNIT = {
    "a": 1.0,
    "å": 1.0,
    "ang": 1.0,
    "angstrom": 1.0,
    "ångström": 1.0,
    "pm": 1e-2,
    "nm": 10.0,
    "nanometer": 10.0,
    "um": 1e4,
    "micron": 1e4,
    "micrometer": 1e4,
    "mm": 1e7,
    "cm": 1e8,
    "inch": 2.54e8,
    "m": 1e10,
    "meter": 1e10,
}


def length_A(value: Any, unit: Any) -> float | None:
    """Convert a length to Å; None if it is not a positive length (``'[]'``, ``''``, None, px, 1/nm, eV, -1).

    Every spelling of a unit that microscope software writes goes through here.
    """
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    # µ comes as U+00B5, as U+03BC, or as the escape sequence that ImageJ writes; Å as U+00C5 or U+212B.
    name = str(unit).replace("\\u00B5", "u").replace("\\u00b5", "u").replace("µ", "u").replace("μ", "u")
    name = name.replace("\u212b", "Å").strip().strip("[]").lower().removesuffix("s")
    factor = _A_PER_UNIT.get(name)
    return value * factor if factor is not None and np.isfinite(value) and value > 0 else None


@dataclass(frozen=True)
class Signal:
    """One array of a file: an image ``[H, W]``, a stack ``[N, H, W]`` or something that is neither.

    Parameters
    ----------
    data : array-like
        NumPy or Dask array.
    pixel_size_A : (float or None, float or None)
        Along y and x.
    metadata : dict
        What the reader understood: title, energy_keV, beam_current_pA, dwell_time_us.
    description : dict
        JSON that the file carries, as it is.
    colour : bool
        The last axis holds red, green, blue and perhaps alpha.
    not_image : str
        Why this signal is no image; empty if it may be one.
    """

    data: Any
    pixel_size_A: tuple[float | None, float | None] = (None, None)
    metadata: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    colour: bool = False
    not_image: str = ""


def calibration_from_json(described: Any, width: int) -> float | None:
    """Pixel size (Å) told by metadata that somebody wrote beside or into a file.

    Known: our own ``pixel_size_A``, ``field_of_view_x`` with ``field_of_view_units``, ``scan size`` in nm.
    """
    own = length_A(find_key(described, "pixel_size_A"), "Å")
    if own:
        return own
    field_A = length_A(find_key(described, "field_of_view_x"), find_key(described, "field_of_view_units"))
    field_A = field_A or length_A(find_key(described, "scan size"), "nm")
    return field_A / width if field_A else None


def microscope_from_json(described: Any) -> dict[str, Any]:
    """Energy and beam current told by such metadata: ``{"voltage": "60 kV", "probe_current": "30 pA"}``."""
    found = {}
    for key, names in {
        "energy_keV": ("voltage", "acc voltage"),
        "beam_current_pA": ("probe_current",),
    }.items():
        for name in names:
            words = str(find_key(described, name) or "").split()
            if words and number(words[0]) and (len(words) == 1 or words[1] in ("kV", "keV", "pA")):
                found[key] = number(words[0])
    return found


def told_json(text: Any) -> dict[str, Any]:
    """The dictionary in a JSON text, empty if the text is something else."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def find_key(nested: Any, key: str) -> Any:
    """First value under `key` at any depth of nested mappings, or None."""
    if not isinstance(nested, Mapping):
        return None
    if key in nested:
        return nested[key]
    return next((found for value in nested.values() if (found := find_key(value, key)) is not None), None)


def number(value: Any) -> float:
    """`value` as a float, 0 if it is not a finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return 0.0
    return found if np.isfinite(found) else 0.0
