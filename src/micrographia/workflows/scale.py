"""Which pixel size an image really has: the user's, the file's, the lattice's, or an assumed one, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.errors import UserError
from micrographia.inspect import LATTICES, SYMMETRY_DEG, Inspection, inspect_image, spot_scale
from micrographia.io import read_folder
from micrographia.micrograph import Micrograph
from micrographia.simulate.scenes import Specimen
from micrographia.workflows.explore_recipe import ExploreRecipe
from micrographia.workflows.recipe import Recipe

#: A lattice's word counts from this confidence on.
SURE_LATTICE = 0.5
#: A lattice that disagrees with the file by more than this factor is taken for another lattice.
PLAUSIBLE_RATIO = 1.6
#: Lattices are simulated this far beyond the orientations that were measured, degrees.
ORIENTATION_MARGIN_DEG = 5.0


@dataclass(frozen=True)
class ScaleRule:
    """How the pixel size of an image is decided; see the fields of the same names in `Recipe`."""

    material: str = ""
    """Its lattice is looked for, where it is one that `inspect` knows."""
    pixel_size_A: float = 0.0
    trust_lattice_percent: float = 2.0
    typical_spot_A: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe | ExploreRecipe) -> ScaleRule:
        """Return the rule of a recipe."""
        if isinstance(recipe, ExploreRecipe):
            return cls(recipe.material, recipe.pixel_size_A, recipe.trust_lattice_percent)
        return cls(
            recipe.specimen.material,
            recipe.pixel_size_A,
            recipe.trust_lattice_percent,
            recipe.typical_spot_A,
        )

    def of_others(self) -> dict[str, Any]:
        """Return the rule for other images of the same kind, as a detector keeps it: nobody has given their pixel size."""
        return asdict(replace(self, pixel_size_A=0.0))


@dataclass(frozen=True)
class Scaled:
    """An image with the pixel size decided upon."""

    image: Micrograph
    inspection: Inspection | None
    why: str
    doubtful: bool = False
    """The lattice speaks for a calibration that is off by a large factor."""


def read_experiment(
    paths: Sequence[Path | str], pixel_size_A: float, say: Callable[[str], None]
) -> tuple[list[Micrograph], list[tuple[Path, str]]]:
    """Read the images of a run, telling which are left out and why; both are returned.

    Raises
    ------
    UserError
        Nothing is left.
    """
    read, failures = read_folder(paths, pixel_size_A or None)
    images = []
    for image in read:
        if np.ptp(image.data):
            images.append(image)
        else:
            reason = "all pixels are alike: the beam was blanked, or nothing recorded"
            failures.append((Path(image.name), reason))
    for path, reason in failures:
        say(_left_out(path, reason))
    if not images:
        raise UserError(f"No image shows anything: {_left_out(*failures[-1])}.")
    return images, failures


def _left_out(path: Path, reason: str) -> str:
    return f"left out: {reason}" if str(path) in reason else f"left out: {path}: {reason}"


def decide_scale(
    images: Sequence[Micrograph], rule: ScaleRule, say: Callable[[str], None], sampling_A: float = 0.0
) -> tuple[list[Scaled], list[tuple[Path, str]]]:
    """Decide on the pixel size of every image; tell and return which are left out, and why.

    Left out are images that have no pixel size and no lattice to derive one from, and those whose pixels are too
    coarse to be resampled to `sampling_A`, as overviews among the others.

    Raises
    ------
    UserError
        Nothing is left.
    """
    scaled, failures = [], []
    for image in images:
        try:
            decided = _decide(image, rule)
            if sampling_A:
                decided.image.check_sampling(sampling_A)
            scaled.append(decided)
        except UserError as error:
            failures.append((Path(image.name), str(error)))
    if not scaled:
        raise UserError(failures[0][1])
    for path, reason in failures:
        say(_left_out(path, reason))
    return scaled, failures


def _decide(image: Micrograph, rule: ScaleRule) -> Scaled:
    material = rule.material if rule.material in LATTICES else None
    if rule.pixel_size_A:
        image = image.with_pixel_size(rule.pixel_size_A, "user")
    inspection = inspect_image(image, material) if material else None
    from_lattice = None
    if inspection is not None and inspection.confidence >= SURE_LATTICE:
        from_lattice = inspection.lattice_pixel_size_A
    if rule.pixel_size_A:
        told = f", though the lattice says {from_lattice:.4g} Å" if from_lattice else ""
        return Scaled(image, inspection, f"given by the user{told}")
    known = image.pixel_size_A
    noted = f" ({image.metadata['warning']})" if image.metadata.get("warning") else ""
    if known is not None and from_lattice is not None:
        percent = 100 * (known / from_lattice - 1)
        plausible = 1 / PLAUSIBLE_RATIO < known / from_lattice < PLAUSIBLE_RATIO
        doubt = 3 * (inspection.lattice_error_percent or 0.0) if inspection else 0.0
        if plausible and abs(percent) > max(rule.trust_lattice_percent, doubt):
            why = f"from the lattice; the file says {known:.4g} Å, {percent:+.1f} %"
            return Scaled(image.with_pixel_size(from_lattice, "lattice"), inspection, why)
        if not plausible:
            why = (
                f"from the file{noted}, BUT a lattice of {material} would make it {from_lattice:.4g} Å ({known / from_lattice:.2g} "
                "times): check the calibration, and give --pixel-size (in Å) if it is wrong"
            )
            return Scaled(image, inspection, why, doubtful=True)
        why = f"from the file{noted}; the lattice says {from_lattice:.4g} Å, {percent:+.1f} %"
        return Scaled(image, inspection, why)
    if known is not None:
        return Scaled(image, inspection, f"from the file{noted}; no lattice to check it against")
    if from_lattice is not None:
        return Scaled(
            image.with_pixel_size(from_lattice, "lattice"), inspection, "from the lattice; the file has none"
        )
    if rule.typical_spot_A:
        try:
            width_px = spot_scale(image.data)
        except UserError as error:
            raise UserError(
                f"{image.name}: the file has no pixel size, and it cannot be guessed ({error}) Give it with --pixel-size (in Å)."
            ) from None
        if width_px:
            why = f"assumed: spots of {width_px:.1f} px are taken to be {rule.typical_spot_A} Å wide"
            return Scaled(image.with_pixel_size(rule.typical_spot_A / width_px, "assumed"), inspection, why)
    looked = f" and no {material} lattice was found in it" if material else ""
    raise UserError(f"{image.name}: the file has no pixel size{looked}; give it with --pixel-size (in Å).")


def matched(specimen: Specimen, scaled: Sequence[Scaled]) -> Specimen:
    """Return the specimen as these images show it: stretched and sheared as their lattices are, and turned as they are.

    The scatter of the strain between images, and in the measurement, adds to the variation that is simulated anyway.
    Orientations are those measured and a little more, unless the recipe gives some or an image does not show its own.
    """
    sure = [s.inspection for s in scaled if s.inspection and s.inspection.confidence >= SURE_LATTICE]
    if sure and specimen.angle_deg == Specimen.angle_deg and len(sure) == len(scaled):
        specimen = replace(specimen, angle_deg=_orientations(sure))
    tensors = np.array([i.strain for i in sure if i.strain is not None])
    if not len(tensors):
        return specimen
    parts = np.stack([tensors[:, 0, 0], tensors[:, 1, 1], (tensors[:, 0, 1] + tensors[:, 1, 0]) / 2], axis=1)
    xx, yy, xy = (float(v) for v in np.median(parts, axis=0))
    spread = float(np.median(np.abs(parts - [xx, yy, xy]))) * 1.48
    return replace(specimen, mean_strain=(xx, yy, xy), strain=float(np.hypot(specimen.strain, spread)))


def _orientations(inspections: Sequence[Inspection]) -> tuple[float, float]:
    """Return the narrowest range of angles (degrees) about all lattices and second grains; all angles if it is wide.

    Lattices of two kinds, or oblique ones, whose first vector may be any, are not compared. A dichalcogenide is itself
    only after 120°, its lattice after 60°: training patches take half turns, too, which are the other 60°.
    """
    kinds = {i.kind for i in inspections}
    if len(kinds) > 1 or "oblique" in kinds:
        return Specimen.angle_deg
    period = SYMMETRY_DEG[inspections[0].kind]
    angles = [a for i in inspections for a in (i.angle_deg, i.second_angle_deg) if a is not None]
    around = np.sort(np.mod(angles, period))
    gaps = np.diff(around, append=around[0] + period)
    last = int(gaps.argmax())  # the range begins after the widest gap
    low, width = float(around[(last + 1) % len(around)]), period - float(gaps[last])
    if width + 2 * ORIENTATION_MARGIN_DEG >= period:
        return Specimen.angle_deg
    return low - ORIENTATION_MARGIN_DEG, low + width + ORIENTATION_MARGIN_DEG


def scale_table(scaled: Sequence[Scaled]) -> pd.DataFrame:
    """Return one row per image: size, pixel size and where it comes from, lattice, resolution, noise, shear."""
    rows = []
    for s in scaled:
        i = s.inspection
        rows.append(
            {
                "image": s.image.name,
                "pixels": f"{s.image.shape[1]} x {s.image.shape[0]}",
                "pixel_size_A": s.image.pixel_size_A,
                "pixel_size": s.why,
                "lattice": i.kind if i else "",
                "angle_deg": i.angle_deg if i else None,
                "information_limit_pm": i.information_limit_pm if i else None,
                "snr": i.snr if i else None,
                "shear_percent": i.shear_percent if i else None,
            }
        )
    return pd.DataFrame(rows)
