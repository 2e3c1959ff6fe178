"""Images with the sites that were found in them, in the formats in which people look at them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from micrographia.io import atomic_path, write_image, write_marked
from micrographia.micrograph import Micrograph
from micrographia.plots.figures import detections_figure
from micrographia.workflows.report import figure_png


def annotate(folder: Path, images: Sequence[Micrograph], sites: pd.DataFrame, about: dict[str, Any]) -> None:
    """Write each image with its sites as pictures (PNG and TIFF), as calibrated TIFF, and with HyperSpy markers.

    Parameters
    ----------
    folder : path
        Made where missing. An image named ``a.dm4`` becomes ``a.dm4.png``, ``.annotated.tif``, ``.calibrated.tif``
        and ``.hspy``.
    about : dict
        What found the sites; kept in the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        own = sites[sites["image"] == image.name]
        stem = file_name(image.name)
        told = about | {"annotated": image.name}
        png = figure_png(detections_figure(image, own), told)
        with atomic_path(folder / f"{stem}.png") as temporary:
            temporary.write_bytes(png)
        with atomic_path(folder / f"{stem}.annotated.tif") as temporary:
            picture = Image.open(io.BytesIO(png)).convert("RGB")
            picture.save(temporary, format="tiff", compression="tiff_deflate", description=json.dumps(told))
        write_image(folder / f"{stem}.calibrated.tif", image)
        write_marked(folder / f"{stem}.hspy", image, own)


def file_name(name: str) -> str:
    """Return a file name for a micrograph's name, which may hold a folder and a frame number."""
    return name.replace("/", "_").replace("\\", "_").replace("#", "-")
