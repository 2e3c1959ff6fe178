"""TIFF with the calibration that ImageJ, OME, Zeiss, FEI and other programs hide in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from micrographia.signals import LAZY_ABOVE_BYTES, Signal, length_A, told_json


def read_tiff(path: Path) -> list[Signal]:
    """Read every series of a TIFF file; thumbnails are left out."""
    import tifffile

    out = "memmap" if path.stat().st_size > LAZY_ABOVE_BYTES else None
    signals = []
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        size, metadata = _calibration(tif)
        description = told_json((tif.imagej_metadata or {}).get("Info"))
        description = description or told_json(told_json(page.description).get("micrographia"))
        if size == (None, None) and not (tif.is_imagej or tif.is_ome or tif.is_shaped):
            size = _vendor_calibration(path)
        if not _grey_map(getattr(page, "colormap", None)):
            return [Signal(page.asarray(), colour=True, not_image="a colour picture with a palette")]
        for series in tif.series:
            if getattr(series.keyframe, "is_reduced", False):  # A thumbnail.
                continue
            data, axes = series.asarray(out=out), series.axes
            colour = axes.endswith("S") and series.keyframe.samplesperpixel > 1
            if "S" in axes and not colour:
                data = np.moveaxis(data, axes.index("S"), -1)
                colour = series.keyframe.samplesperpixel > 1
            plane = data.shape[-3:] if colour else data.shape[-2:]
            if data.ndim > len(plane):
                data = data.reshape(-1, *plane)
            signals.append(Signal(data, size, metadata, description, colour))
    return signals


def _calibration(tif: Any) -> tuple[tuple[float | None, float | None], dict[str, Any]]:
    """Pixel size (y, x) and metadata as ImageJ, OME, Zeiss, FEI or the plain resolution tag tell them."""
    page = tif.pages.first
    per_unit = [_resolution(page, name) for name in ("YResolution", "XResolution")]
    if tif.is_imagej:
        told = tif.imagej_metadata or {}
        return _unless_for_printing(per_unit, told.get("unit")), {}
    if tif.is_ome:
        from xml.etree import ElementTree

        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        told = pixels.attrib if pixels is not None else {}
        # The OME schema's default unit is the micrometre.
        size = tuple(
            length_A(told.get(f"PhysicalSize{axis}"), told.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "YX"
        )
        return (size[0], size[1]), {}
    if tif.is_sem and tif.sem_metadata:
        told = tif.sem_metadata
        pixel = told.get("ap_image_pixel_size") or told.get("ap_pixel_size") or (None, None, None)
        first = told.get("", ())
        # The unnamed numbers hold the pixel size in metres, unrounded.
        exact = length_A(first[3], "m") if len(first) > 3 else None
        shown = length_A(pixel[1], pixel[2])
        metadata = {"energy_keV": float(told["ap_actualkv"][1])} if "ap_actualkv" in told else {}
        agree = exact and shown and abs(exact / shown - 1) < 0.01
        return ((exact, exact) if agree else (shown, shown)), metadata
    if tif.is_fei and tif.fei_metadata:
        scan = tif.fei_metadata.get("Scan", {})
        return (length_A(scan.get("PixelHeight"), "m"), length_A(scan.get("PixelWidth"), "m")), {}
    unit = {2: "inch", 3: "cm"}.get(int(page.resolutionunit or 1))
    return _unless_for_printing(per_unit, unit), {}


def _unless_for_printing(per_unit: list[float | None], unit: Any) -> tuple[float | None, float | None]:
    """Pixel size (y, x) of a resolution; coarser than 10 µm is for printing (72 or 300 dpi), no calibration."""
    y, x = (length_A(1 / r if r else None, unit) for r in per_unit)
    return (y, x) if y and x and max(y, x) < 1e5 else (None, None)


def _vendor_calibration(path: Path) -> tuple[float | None, float | None]:
    """Pixel size from the private tags that RosettaSciIO knows (Gatan, Olympus, JEOL, Hamamatsu ...)."""
    from rsciio.tiff import file_reader

    try:
        axes = file_reader(str(path), lazy=True)[0]["axes"][-2:]
        return length_A(axes[0]["scale"], axes[0]["units"]), length_A(axes[1]["scale"], axes[1]["units"])
    except Exception:  # tifffile has read the picture; no calibration is not an error.
        return (None, None)


def _resolution(page: Any, name: str) -> float | None:
    tag = page.tags.get(name)
    if tag is None or not tag.value[1]:
        return None
    return tag.value[0] / tag.value[1] or None


def _grey_map(colours: np.ndarray | None) -> bool:
    """Whether a palette (``[3, 256]``) is absent or merely grey, so that the indices are the signal."""
    if colours is None:
        return True
    return bool((colours == colours[0]).all() and (np.diff(colours[0].astype(int)) >= 0).all())
