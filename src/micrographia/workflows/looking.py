"""Judging tables of sites, telling provenance, inspecting files: what single commands need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.errors import UserError, did_you_mean
from micrographia.files import defined
from micrographia.inspect import Inspection, inspect_image, known_material
from micrographia.io import atomic_path, read_folder, read_provenance
from micrographia.library import ImageLibrary
from micrographia.metrics.matching import average_precision, precision_recall_curve, score_sites
from micrographia.micrograph import Micrograph
from micrographia.plots.figures import precision_recall_figure
from micrographia.signals import told_json
from micrographia.workflows.report import figure_png


def evaluate_sites(
    predicted: pd.DataFrame,
    truth: pd.DataFrame,
    tolerance: float,
    pixel_size_A: float | None = None,
    border: float = 0.0,
    shape: tuple[int, int] | None = None,
    ignore_kind: bool = False,
    kinds: Sequence[str] = (),
    curve: Path | None = None,
) -> dict[str, Any]:
    """Score found sites against true ones.

    Parameters
    ----------
    predicted, truth : DataFrame
        ``image, x_px, y_px, kind``. A column ``pixel_size_A`` in either (each image's own, Å) goes before
        `pixel_size_A`. Where the truth names no kinds, a column ``species`` stands for them; without that,
        kinds are ignored.
    tolerance, border : float
        In Å where pixel sizes are known, else in pixels.
    shape : (height, width), optional
        Of all images, pixels; a border needs it.
    curve : path, optional
        ``.csv`` or ``.png``: precision and recall at every confidence of the found sites.

    Returns
    -------
    dict, ready for JSON
        precision, recall, f1, ``*_interval`` (95 %), average_precision, tp, fp, fn, rms_distance, tolerance, unit, images,
        warnings; None where a value is undefined.

    Raises
    ------
    UserError
        A pixel size is missing for some image or no number, a border is negative or without the images' size,
        or a kind to judge is in neither table.
    """
    if not 0 <= border < np.inf:
        raise UserError(f"The border ({border}) must be a finite width, 0 or more.")
    if border > 0 and shape is None:
        raise UserError("A border needs the size of the images: give --size WIDTH HEIGHT (pixels).")
    warnings: list[str] = []
    if not truth["kind"].any() and "species" in truth:
        truth = truth.assign(kind=truth["species"].astype(str))
    if (
        not (truth["kind"].any() and predicted["kind"].any())
        and len(truth)
        and len(predicted)
        and not ignore_kind
    ):
        ignore_kind = True
        warnings.append("one of the tables names no kinds, so kinds are ignored")
    present = sorted({*truth["kind"], *predicted["kind"]} - {""})
    if unknown := sorted(set(kinds) - set(present)):
        there = did_you_mean(unknown[0], present) if present else " They name no kinds; leave --kind away."
        raise UserError(f"Neither table has sites of kind '{unknown[0]}'.{there}")
    predicted, told = _same_names(predicted, truth)
    warnings += told
    both_kinds = set(truth["kind"]) & set(predicted["kind"])
    if len(truth) and len(predicted) and not ignore_kind and not both_kinds:
        theirs = [", ".join(sorted(set(table["kind"]))) for table in (predicted, truth)]
        warnings.append(f"the tables have no kind in common ({theirs[0]} | {theirs[1]}); use --ignore-kind?")
    scale = _pixel_sizes(predicted, truth, pixel_size_A)
    shapes = None
    if shape is not None:
        height, width = shape
        shapes = {
            name: (height * scale.get(name, 1.0), width * scale.get(name, 1.0))
            for name in _images(predicted, truth)
        }
    predicted, truth = _scaled(predicted, scale), _scaled(truth, scale)
    how: dict[str, Any] = {
        "tolerance_px": tolerance, "border_px": border, "shapes": shapes, "kinds": list(kinds) or None,
        "ignore_kind": ignore_kind,
    }  # fmt: skip
    score = score_sites(predicted, truth, **how)
    course = precision_recall_curve(predicted, truth, **how)
    if curve is not None:
        _write_curve(curve, course)
    out: dict[str, Any] = {name: defined(getattr(score, name)) for name in ("precision", "recall", "f1")}
    out |= {f"{name}_interval": [defined(v) for v in ends] for name, ends in score.intervals.items()}
    return out | {
        "average_precision": defined(average_precision(course)),
        "tp": score.tp,
        "fp": score.fp,
        "fn": score.fn,
        "rms_distance": defined(score.rms_displacement_px),
        "tolerance": tolerance,
        "unit": "Å" if scale else "px",
        "border": border,
        "images": len(score.per_image),
        "warnings": warnings,
    }


def _write_curve(path: Path, curve: pd.DataFrame) -> None:
    """Write a precision-recall curve as a table or as a picture."""
    if path.suffix.lower() not in (".csv", ".png"):
        raise UserError(f"{path}: a curve is written as .csv or .png; choose such a name.")
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            curve.to_csv(temporary, index=False)
        else:
            temporary.write_bytes(figure_png(precision_recall_figure({"found": curve})))


def _scaled(table: pd.DataFrame, scale: dict[str, float]) -> pd.DataFrame:
    """Positions in Å where the pixel sizes are known, so that images of different scale are judged alike.

    As those in pixels, they begin half a pixel (here half an Å) before zero, where `score_sites` expects the
    edge of an image.
    """
    if not scale:
        return table
    factor = table["image"].map(scale).astype(float)
    return table.assign(x_px=(table["x_px"] + 0.5) * factor - 0.5, y_px=(table["y_px"] + 0.5) * factor - 0.5)


def _images(*tables: pd.DataFrame) -> list[str]:
    return sorted({name for table in tables for name in table["image"]})


def _same_names(predicted: pd.DataFrame, truth: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Match images by name; where no name agrees, by the name without its ending."""
    ours, theirs = set(predicted["image"]), set(truth["image"])
    if not ours or not theirs or ours & theirs:
        return predicted, []
    by_stem = {Path(name).stem: name for name in theirs}
    if len(by_stem) == len(theirs) and {Path(name).stem for name in ours} & set(by_stem):
        renamed = predicted["image"].map(lambda name: by_stem.get(Path(name).stem, name))
        return predicted.assign(image=renamed), ["images were matched without their file endings"]
    if ours == {""} or theirs == {""}:
        if max(len(ours), len(theirs)) == 1:  # one image, named in one of the tables only
            return predicted.assign(image=next(iter(theirs))), []
        raise UserError("One table has no column 'image', the other names several; add the column.")
    names = [sorted(some)[0] for some in (ours, theirs)]
    return predicted, [f"the tables have no image in common (for example '{names[0]}' | '{names[1]}')"]


def _pixel_sizes(predicted: pd.DataFrame, truth: pd.DataFrame, default: float | None) -> dict[str, float]:
    """Image -> Å per pixel; empty when nobody gives any."""
    images = _images(predicted, truth)
    known: dict[str, float] = {} if default is None else dict.fromkeys(images, default)
    for table in (predicted, truth):
        if "pixel_size_A" in table:
            own = table.assign(pixel_size_A=_numbers(table["pixel_size_A"])).dropna(subset="pixel_size_A")
            known |= own.groupby("image")["pixel_size_A"].first().to_dict()
    missing = [name for name in images if name not in known]
    if known and missing:
        raise UserError(f"The pixel size of {missing[0]} is missing; give --pixel-size or fill the column.")
    if bad := [name for name, size in known.items() if not 0 < size < np.inf]:
        raise UserError(f"The pixel size of {bad[0]} ({known[bad[0]]}) is not a positive number of Å.")
    return known


def _numbers(column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    text = column[column.notna() & numbers.isna()]
    if len(text):
        raise UserError(
            f"The column pixel_size_A holds '{text.iloc[0]}'; give numbers of Å, without the unit."
        )
    return numbers


def inspect_files(
    paths: Sequence[str],
    material: str | None,
    pixel_size_A: float | None,
    out: Path | None,
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], str]:
    """Inspect images; with `out`, write a picture of each inspection there.

    Returns
    -------
    results : list of dict, ready for JSON
    text : str
        The same for reading.

    Raises
    ------
    UserError
        No image can be inspected.
    """
    if material is not None:
        material = known_material(material)
    images, failures = read_folder(paths, pixel_size_A)
    for _, reason in failures:
        say(f"micrographia: left out: {reason}")
    results, texts, refused = [], [], []
    for micrograph in images:
        try:
            found = inspect_image(micrograph, material)
        except UserError as error:
            refused.append(error)
            say(f"micrographia: left out: {error}")
            continue
        results.append(_inspection_values(micrograph, found))
        texts.append(_inspection_text(micrograph, found))
        if out is not None:
            from micrographia.plots.inspection import inspection_figure

            name = micrograph.name.replace("/", "_").replace("#", "-")
            with atomic_path(out / f"{name}.png") as temporary:
                about = {"step": "inspect", "image": micrograph.name}
                temporary.write_bytes(figure_png(inspection_figure(micrograph, found), about))
    if not results:
        raise refused[0]
    return results, "\n\n".join(texts)


def _inspection_values(micrograph: Micrograph, found: Inspection) -> dict[str, Any]:
    names = [f.name for f in fields(found) if f.name not in ("spots", "other_spots")]
    names += ["information_limit_pm", "pixel_size_ratio"]
    values = {name: getattr(found, name) for name in names}
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return {**plain, "shape": micrograph.shape, "pixel_size_source": micrograph.pixel_size_source}


def _inspection_text(micrograph: Micrograph, found: Inspection) -> str:
    height, width = micrograph.shape
    source = micrograph.pixel_size_source
    size = f"{found.pixel_size_A:.4g} Å ({source})" if found.pixel_size_A else "unknown"
    lines = [found.name, f"  size            {width} x {height} px, pixel size {size}"]
    if found.has_lattice:
        told = f"{found.kind}, {found.lattice_constant_px:.2f} px, turned by {found.angle_deg:.1f}°"
        lines.append(f"  lattice         {told} (confidence {found.confidence:.2f})")
    else:
        lines.append("  lattice         none found")
    if found.lattice_pixel_size_A:
        ratio = found.pixel_size_ratio
        off = f", the image's own is {100 * (ratio - 1):+.1f} % off" if ratio else ""
        lines.append(
            f"  pixel size      {found.lattice_pixel_size_A:.4g} Å by the lattice of {found.material}{off}"
        )
    if found.information_limit_px:
        pm = f" = {found.information_limit_pm:.0f} pm" if found.information_limit_pm else ""
        lines.append(f"  information     to {found.information_limit_px:.2f} px{pm}")
    to_noise = f"{found.snr:.2f}" if found.snr < 1000 else "over 1000 (an image without noise?)"
    lines.append(f"  signal/noise    {to_noise}")
    if found.shear_percent is not None:
        lines.append(
            f"  shear           {found.shear_percent:+.2f} %, anisotropy {found.anisotropy_percent:.2f} %"
        )
    if found.row_jitter_px is not None:
        lines.append(f"  row jitter      {found.row_jitter_px:.2f} px")
    return "\n".join([*lines, *(f"  note            {warning}" for warning in found.warnings)])


def provenance(path: str | Path) -> dict[str, Any] | None:
    """How a file was made, if micrographia made it: an image, a movie, a figure, a library or a model.

    Raises
    ------
    UserError
        The file cannot be read, or is of a kind that says nothing about its making.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    if (path / "zarr.json").is_file():
        return {"library": str(path), **ImageLibrary.open(path).metadata}
    if path.is_dir() and suffix != ".zspy":
        raise UserError(f"{path}: is a folder, not a library; give one of the files in it.")
    if suffix in (".csv", ".parquet"):
        raise UserError(
            f"{path}: tables do not tell how they were made; give an image, a model or a library."
        )
    if suffix == ".safetensors":
        from micrographia.nets.weights import read_model_note

        return read_model_note(path)
    return _png_note(path) if suffix == ".png" else read_provenance(path)


def _png_note(path: Path) -> dict[str, Any] | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            told = getattr(image, "text", {}).get("micrographia")
    except OSError as error:
        raise UserError(f"{path}: not a readable PNG file ({error}).") from error
    if told is None:
        return None
    values = told_json(told)
    if not values:
        raise UserError(f"{path}: its note 'micrographia' is damaged or not ours; give the original file.")
    # Images written by write_image keep their making inside their metadata; figures are nothing but made.
    metadata = values.get("metadata")
    made = metadata.get("micrographia") if isinstance(metadata, dict) else None
    return values if "generator" in values else made
