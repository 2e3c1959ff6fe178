"""Crystals that fill a field of view: a material's name or a structure file in, ASE `Atoms` out.

Coordinates are the image's: x to the right, **y down the screen**, z along the beam, pixel (0, 0) at the
origin. ``atoms.cell`` is the field; the atoms reach `margin_A` beyond it on every side, so that what is drawn
at the edges is right. Two arrays travel with the atoms:

``column``
    Which projected column an atom belongs to (atoms closer than 0.3 Å in projection in the ideal crystal: the
    two chalcogens of a monolayer are one column); -1 for atoms that are not part of a lattice.
``sublattice``
    Which column of the unit cell that is: 0 metal and 1 chalcogen, or graphene's 0 and 1; -1 likewise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from micrographia.errors import UserError, did_you_mean
from micrographia.simulate.amorphous import atoms_on_film
from micrographia.simulate.graphene import LATTICE_A
from micrographia.simulate.lattice import PlaneCell, along_zone_axis, plane_cell, screen_matrix, tile

#: 2H monolayers: in-plane lattice constant and distance of the two chalcogen planes, Å. The constants are
#: those of the bulk 2H crystals, which the monolayers share within 0.5 %. MoS2, MoSe2: Bronsema et al.,
#: Z. Anorg. Allg. Chem. 540, 15 (1986); WS2, WSe2: Schutte et al., J. Solid State Chem. 70, 207 (1987);
#: MoTe2: Puotinen and Newnham, Acta Cryst. 14, 691 (1961); WTe2 has no 2H bulk, the value is calculated
#: (Rasmussen and Thygesen, J. Phys. Chem. C 119, 13169 (2015)).
DICHALCOGENIDES = {
    "MoS2": (3.160, 3.17),
    "WS2": (3.153, 3.14),
    "MoSe2": (3.289, 3.34),
    "WSe2": (3.282, 3.34),
    "MoTe2": (3.518, 3.61),
    "WTe2": (3.55, 3.61),
}
STRONTIUM_TITANATE_A = 3.905
MATERIALS = (*DICHALCOGENIDES, "graphene", "SrTiO3", "single-atoms")
#: Components of the strain stay below it.
LARGEST_STRAIN = 0.5


def _hexagonal(a: float) -> np.ndarray:
    return np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]])


def _dichalcogenide(name: str) -> PlaneCell:
    a, thickness = DICHALCOGENIDES[name]
    metal, chalcogen = re.findall("[A-Z][a-z]?", name)
    vectors = _hexagonal(a)
    site = vectors.sum(0) / 3
    positions = [(0, 0, 0), (*site, thickness / 2), (*site, -thickness / 2)]
    numbers = [atomic_numbers[s] for s in (metal, chalcogen, chalcogen)]
    return plane_cell(vectors, np.array(numbers), np.array(positions))


def graphene_cell() -> PlaneCell:
    """Return graphene's unit cell, the lattice vector along x."""
    vectors = _hexagonal(LATTICE_A)
    return plane_cell(vectors, np.array([6, 6]), np.array([(0, 0, 0), (*vectors.sum(0) / 3, 0)]))


def _strontium_titanate() -> Atoms:
    a = STRONTIUM_TITANATE_A
    scaled = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("SrTiO3", scaled_positions=scaled, cell=[a, a, a], pbc=True)


def _read_structure(path: Path) -> Atoms:
    if not path.exists():
        raise UserError(f"There is no structure file {path}.")
    try:
        crystal = ase.io.read(path)
    except Exception as error:  # ASE's readers raise anything, from KeyError to StopIteration
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: ASE cannot read this structure ({why}).") from error
    if isinstance(crystal, list) or len(crystal) == 0 or not np.isfinite(crystal.positions).all():
        raise UserError(f"{path}: the file holds no usable atoms.")
    return crystal


def _mix(atoms: Atoms, alloy: Mapping[str, tuple[str, float]], rng: np.random.Generator) -> None:
    for host, (guest, fraction) in alloy.items():
        present = sorted(set(atoms.info["elements"]))
        if host not in present:
            raise UserError(f"alloy: the crystal has no {host} to replace; it has {', '.join(present)}.")
        if guest not in atomic_numbers or guest == "X":
            hint = did_you_mean(guest, chemical_symbols[1:104])
            raise UserError(f"alloy: '{guest}' is not an element.{hint}")
        if not 0 <= fraction <= 1:
            raise UserError(f"alloy: {guest} on {host} = {fraction} is not a fraction between 0 and 1.")
        hosts = np.flatnonzero(atoms.numbers == atomic_numbers[host])
        atoms.numbers[hosts[rng.random(len(hosts)) < fraction]] = atomic_numbers[guest]
        atoms.info["elements"] = sorted({*present, guest})
        atoms.info["mixed"] = sorted({*atoms.info.get("mixed", ()), host, guest})


def check_field(field_A: tuple[float, float]) -> None:
    """Raise `UserError` unless the field is (width, height), both positive and finite lengths in Å."""
    if len(field_A) != 2 or not all(np.isfinite(f) and f > 0 for f in field_A):
        raise UserError(f"The field must be a positive (width, height) in Å, got {field_A}.")


def build_crystal(
    material: str | Path,
    field_A: tuple[float, float],
    angle_deg: float = 0.0,
    strain: tuple[float, float, float] = (0.0, 0.0, 0.0),
    zone_axis: tuple[int, int, int] = (0, 0, 1),
    rng: np.random.Generator | None = None,
    *,
    alloy: Mapping[str, tuple[str, float]] | None = None,
    disorder_A: float = 0.0,
    thickness_A: float | None = None,
    margin_A: float = 5.0,
    origin_A: tuple[float, float] | None = None,
    element: str = "Re",
    atoms_per_nm2: float = 0.5,
) -> Atoms:
    """Build the atoms in a field of view.

    Parameters
    ----------
    material : str or path
        A 2H monolayer (MoS2, WS2, MoSe2, WSe2, MoTe2, WTe2), ``"graphene"``, ``"SrTiO3"``,
        ``"single-atoms"`` (isolated heavy atoms on an amorphous carbon film), or a file that ASE reads (CIF,
        XYZ, POSCAR). A file without a cell is one particle or molecule, put into the middle of the field.
    field_A : (width, height)
        Size of the field in Å.
    angle_deg : float
        In-plane rotation, counter-clockwise as seen on the screen; at 0 a lattice vector points along x.
    strain : (exx, eyy, exy)
        Homogeneous strain along the screen's axes, exy symmetric.
    zone_axis : three integers
        The direction [uvw] of SrTiO3 or of a file's crystal that points along the beam.
    rng : numpy Generator, optional
        Draws the lattice's offset, the disorder, the alloy and the film. Without it the lattice's origin is
        the field's centre, and everything random comes from a fixed seed.
    alloy : dict, optional
        ``{"Se": ("S", 0.3)}`` replaces each Se by S with probability 0.3.
    disorder_A : float
        Root mean square of each atom's random, static displacement along each axis, Å. (Thermal vibration is
        faster than the scan and belongs to the image: `simulate_image`.)
    thickness_A : float, optional
        Thickness along the beam of SrTiO3 or of a file's crystal (default one cell), or of the carbon film
        (default 20 Å).
    margin_A : float
        How far atoms reach beyond the field.
    origin_A : (x, y), optional
        Where to put the lattice's origin (a metal atom of the dichalcogenides).
    element, atoms_per_nm2
        The heavy element of ``"single-atoms"`` and its mean density.

    Returns
    -------
    ase.Atoms
        With arrays ``column`` and ``sublattice`` (see the module's description), ``info["material"]``,
        ``info["elements"]`` and, in an alloy, ``info["mixed"]``, the elements that share sites.

    Raises
    ------
    UserError
        Unknown material, unreadable file, or impossible geometry.
    """
    check_field(field_A)
    if not (disorder_A >= 0 and margin_A >= 0):
        raise UserError(f"disorder_A ({disorder_A}) and margin_A ({margin_A}) must not be negative.")
    if not (np.isfinite(angle_deg) and np.isfinite(strain).all() and np.abs(strain).max() < LARGEST_STRAIN):
        told = tuple(float(component) for component in strain)
        raise UserError(
            f"The rotation ({angle_deg}) must be finite and the strain {told} below {LARGEST_STRAIN}."
        )
    if thickness_A is not None and not 0 < thickness_A <= 5000:
        raise UserError(f"thickness_A must be between 0 and 5000 Å, got {thickness_A}.")
    random = rng if rng is not None else np.random.default_rng(0)
    field, margin = np.array(field_A, dtype=float), np.full(2, float(margin_A))
    if origin_A is not None:
        origin = np.array(origin_A, dtype=float)
    else:
        origin = field / 2 if rng is None else rng.uniform(0, field)

    name = str(material)
    molecule = None
    if name == "single-atoms":
        atoms = atoms_on_film(element, atoms_per_nm2, thickness_A or 20.0, -margin, field + margin, random)
    else:
        if name in DICHALCOGENIDES:
            cell = _dichalcogenide(name)
        elif name == "graphene":
            cell = graphene_cell()
        elif name == "SrTiO3":
            cell = along_zone_axis(_strontium_titanate(), zone_axis, thickness_A)
        elif Path(material).suffix or Path(material).exists():
            crystal = _read_structure(Path(material))
            if abs(crystal.cell.volume) > 1e-6:
                cell = along_zone_axis(crystal, zone_axis, thickness_A)
            else:
                molecule = crystal
        else:
            raise UserError(f"Unknown material '{name}', and no such file.{did_you_mean(name, MATERIALS)}")
        matrix = screen_matrix(angle_deg, strain)
        if molecule is None:
            atoms = tile(cell, matrix, origin, -margin, field + margin)
        else:
            xy = (molecule.positions - molecule.positions.mean(0))[:, :2] @ matrix.T + field / 2
            atoms = Atoms(numbers=molecule.numbers, positions=np.c_[xy, molecule.positions[:, 2]])
            for array in ("column", "sublattice"):
                atoms.set_array(array, np.full(len(atoms), -1))
        numbers = cell.numbers if molecule is None else molecule.numbers
        atoms.info["elements"] = sorted({chemical_symbols[z] for z in numbers})
    atoms.info["material"] = name
    if alloy:
        _mix(atoms, alloy, random)
    if disorder_A:
        atoms.positions += random.normal(0, disorder_A, atoms.positions.shape)
    atoms.set_cell([*field_A, max(1.0, np.ptp(atoms.positions[:, 2])) if len(atoms) else 1.0])
    atoms.pbc = False
    return atoms
