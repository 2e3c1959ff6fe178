"""How much each kind of column scatters, learnt from frozen-phonon multislice (extra ``abtem``).

In the incoherent model every atom scatters as if it were alone. Two atoms above each other do not: the upper
one focuses the beam onto the lower one. Multislice knows that, at a million times the cost. In a thin crystal
it changes above all how bright each *kind* of column is: so a few hundred multislice probes, fitted by one
factor per kind, carry it over to the fast model.

Lattice vibrations must be in it: in a static lattice the two atoms of a column scatter coherently into the
detector and come out half as bright again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.imaging import atom_weights, render_patches
from micrographia.simulate.probe import Optics
from micrographia.simulate.scattering import wavelength_A

#: Probes stay this far from the edges of the cell, which is neither periodic nor infinite.
BORDER_A = 4.0
#: Probe positions lie on this grid, where the incoherent model is rendered.
_STEP_A = 0.2
_FEWEST_COLUMNS = 3


@dataclass(frozen=True)
class ColumnWeights:
    """One factor per kind of column, and how well the incoherent model agrees with multislice."""

    factors: dict[str, float]
    """Composition of a column (``W``, ``Se2``, ``Se``) -> factor on the cross-sections of its atoms."""
    correlation_before: float
    """Normalised cross-correlation with multislice on held-out probes, independent atoms."""
    correlation_after: float
    """The same with the factors."""
    probes: int
    """Probes that the factors were fitted to."""
    held_out: int
    """Probes that the correlations were measured on."""


def column_weights(
    specimen: str | Atoms,
    optics: Optics,
    n_probes: int = 300,
    seed: int = 0,
    *,
    n_held_out: int = 150,
    field_A: float = 12.0,
    thermal_rms_A: float = 0.08,
    configurations: int = 12,
) -> ColumnWeights:
    """Fit one factor per kind of column to frozen-phonon multislice.

    Least squares on ``I(r) = sum_kinds factor * I_kind(r)``, with the incoherent image of each kind of column
    as regressor. Source size and defocus spread act on the finished image in both models and are left out.

    Parameters
    ----------
    specimen : str or ase.Atoms
        A material of `build_crystal`, to which vacancies are added so that every kind of column occurs; or
        atoms of your own, with the array ``column``, at least ``2 BORDER_A`` wide.
    optics : Optics
    n_probes, n_held_out : int
        Random probe positions, to fit and to judge.
    field_A : float
        Edge of the square over which the probes are spread (ignored if atoms are given).
    thermal_rms_A : float
        Root mean square thermal displacement along each axis in Å, the same for all atoms.
    configurations : int
        Frozen-phonon configurations that are averaged; their scatter bounds the correlations.

    Returns
    -------
    ColumnWeights
        For `apply_column_weights`.

    Raises
    ------
    UserError
        abTEM is not installed, or the crystal has no columns or is too small.
    """
    _abtem()
    if min(n_probes, n_held_out) < 20 or configurations < 1:
        raise UserError("column_weights: give at least 20 probes of either sort and one configuration.")
    rng = np.random.default_rng(seed)
    atoms = specimen if isinstance(specimen, Atoms) else _with_vacancies(specimen, field_A, rng)
    size = np.array([atoms.cell[0, 0], atoms.cell[1, 1]])
    if not (size > 2 * BORDER_A + 2).all():
        raise UserError(
            f"column_weights: the cell of {size[0]:.1f} x {size[1]:.1f} Å is too small; give at least "
            f"{2 * BORDER_A + 2:.0f} Å."
        )
    kinds = column_kinds(atoms)
    if not any(kinds):
        raise UserError("column_weights: these atoms form no columns (array 'column' is missing or all -1).")

    shape = (int(size[1] / _STEP_A), int(size[0] / _STEP_A))
    margin = int(np.ceil(BORDER_A / _STEP_A))
    inner = (shape[0] - 2 * margin, shape[1] - 2 * margin)
    count = min(n_probes + n_held_out, inner[0] * inner[1])
    row, column = np.unravel_index(rng.permutation(inner[0] * inner[1])[:count], inner)
    row, column = row + margin, column + margin

    probes = np.c_[column, row] * _STEP_A
    signal = multislice_adf(atoms, optics, probes, thermal_rms_A, configurations, seed)
    names, images = _images_by_kind(atoms, kinds, optics, shape, thermal_rms_A)
    parts = images[:, row, column].T
    fit, judge = slice(0, n_probes), slice(n_probes, None)
    factors, *_ = np.linalg.lstsq(parts[fit], signal[fit], rcond=None)
    return ColumnWeights(
        factors={name: float(f) for name, f in zip(names, factors, strict=True) if name},
        correlation_before=cross_correlation(parts[judge].sum(1), signal[judge]),
        correlation_after=cross_correlation(parts[judge] @ factors, signal[judge]),
        probes=n_probes,
        held_out=count - n_probes,
    )


def apply_column_weights(atoms: Atoms, weights: ColumnWeights) -> Atoms:
    """Return a copy of `atoms` whose array ``occupancy`` carries the factors.

    `imaging.atom_weights`, and so `simulate_image`, multiplies the cross-sections by it. An occupancy that
    the atoms have already is kept as a factor; kinds of column that were not fitted keep the factor 1.
    """
    out = atoms.copy()
    factor = np.array([weights.factors.get(kind, 1.0) for kind in column_kinds(atoms)])
    out.set_array("occupancy", factor * atoms.arrays.get("occupancy", np.ones(len(atoms))))
    return out


def column_kinds(atoms: Atoms) -> list[str]:
    """Return the composition of each atom's column, such as ``W``, ``Se2`` or ``Se``; '' outside columns."""
    of_atom = atoms.arrays.get("column", np.full(len(atoms), -1))
    holds: dict[int, Counter[int]] = {}
    for column, number in zip(of_atom.tolist(), atoms.numbers.tolist(), strict=True):
        if column >= 0:
            holds.setdefault(column, Counter())[number] += 1
    names = {
        column: "".join(f"{chemical_symbols[z]}{n if n > 1 else ''}" for z, n in sorted(content.items()))
        for column, content in holds.items()
    }
    return [names.get(column, "") for column in of_atom.tolist()]


def cross_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the normalised cross-correlation (Pearson's) of two images or lists of pixels."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def multislice_adf(
    atoms: Atoms,
    optics: Optics,
    positions_A: np.ndarray,
    thermal_rms_A: float = 0.08,
    configurations: int = 12,
    seed: int = 0,
    slice_A: float = 1.8,
) -> np.ndarray:
    """Simulate the annular signal at some probe positions by frozen-phonon multislice with abTEM.

    Parameters
    ----------
    atoms : ase.Atoms
        The cell is made periodic by the Fourier transform: keep probes away from its edges.
    optics : Optics
        Source size and defocus spread are not applied.
    positions_A : ``[n, 2]``
        x, y in Å.
    thermal_rms_A, configurations, seed
        Einstein model of independent vibrations. 0 Å gives a static lattice.
    slice_A : float
        Thickness of a slice in Å. The default gives a monolayer of MX2 one slice per plane of atoms; 0.5 Å
        correlates to 0.9995 with it and costs four times as much.

    Returns
    -------
    float64 ``[n]``, fraction of the beam that reaches the detector
    """
    abtem = _abtem()
    atoms = _cell_with_vacuum(atoms)
    # The largest angle must survive the anti-aliasing aperture at 2/3 of the Nyquist frequency.
    highest = 1.05 * optics.outer_mrad * 1e-3 / wavelength_A(optics.energy_keV)
    vibrating = (
        abtem.FrozenPhonons(atoms, num_configs=configurations, sigmas=thermal_rms_A, seed=seed)
        if thermal_rms_A
        else atoms
    )
    potential = abtem.Potential(
        vibrating,
        sampling=1 / (3 * highest),
        slice_thickness=slice_A,
        parametrization="kirkland",
        projection="infinite",
    )
    probe = abtem.Probe(
        energy=optics.energy_keV * 1e3,
        semiangle_cutoff=optics.convergence_mrad,
        soft=False,
        aberrations=_polar_aberrations(optics),
    )
    probe.grid.match(potential)
    detector = abtem.AnnularDetector(inner=optics.inner_mrad, outer=optics.outer_mrad)
    scan = abtem.CustomScan(np.asarray(positions_A, dtype=float))
    measured = probe.scan(potential, scan=scan, detectors=detector)
    return np.asarray(measured.compute(progress_bar=False).array, dtype=float)


def _abtem() -> ModuleType:
    try:
        import abtem
    except ImportError as error:
        raise UserError(
            "Multislice needs abTEM, which is not installed: pip install micrographia[abtem]"
        ) from error
    return abtem


def _polar_aberrations(optics: Optics) -> dict[str, float]:
    """Our cosine and sine parts as abTEM's amplitude and angle."""
    parts: dict[str, complex] = {}
    for name, value in optics.aberrations.items():
        parts[name[:3]] = parts.get(name[:3], 0) + value * (1j if name.endswith("b") else 1)
    out = {"C10": -optics.defocus_A}
    for name, part in parts.items():
        order, multiplicity = int(name[1]), int(name[2])
        # abTEM's wave runs with the opposite sign of r: aberrations of odd symmetry turn by 180 degrees.
        value = complex(part) * (-1) ** (order + 1)
        out[name] = float(value.real if multiplicity == 0 else abs(value))
        if multiplicity:
            out[f"phi{name[1:]}"] = float(np.angle(value)) / multiplicity
    return out


def _cell_with_vacuum(atoms: Atoms, vacuum_A: float = 1.0) -> Atoms:
    out = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    z = out.positions[:, 2]
    out.positions[:, 2] += vacuum_A - z.min()
    out.set_cell([atoms.cell[0, 0], atoms.cell[1, 1], np.ptp(z) + 2 * vacuum_A])
    return out


def _with_vacancies(material: str, field_A: float, rng: np.random.Generator) -> Atoms:
    """A crystal in which every kind of column that can lose atoms occurs with fewer of them, too."""
    edge = field_A + 2 * BORDER_A
    atoms = build_crystal(material, (edge, edge), angle_deg=rng.uniform(0, 60), rng=rng, margin_A=0.0)
    atoms.info["elements"] = sorted(set(atoms.get_chemical_symbols()))
    largest: Counter[str] = Counter()
    for kind, z in set(zip(column_kinds(atoms), atoms.numbers.tolist(), strict=True)):
        symbol = chemical_symbols[z]
        if kind.startswith(symbol) and kind[len(symbol) :].isdigit():
            largest[symbol] = max(largest[symbol], int(kind[len(symbol) :]))
    specs = [
        DefectSpec(f"vacancy-{n}{symbol}", 0.2 if n < most else 0.05)
        for symbol, most in sorted(largest.items())
        for n in range(1, most + 1)
    ]
    return introduce_defects(atoms, specs, rng)[0] if specs else atoms


def _images_by_kind(
    atoms: Atoms, kinds: list[str], optics: Optics, shape: tuple[int, int], thermal_rms_A: float
) -> tuple[list[str], np.ndarray]:
    """Incoherent images ``[kinds, H, W]`` of each kind of column's atoms; too rare kinds share the last."""
    frequent = {
        name
        for name in set(kinds) - {""}
        if len(set(atoms.arrays["column"][[k == name for k in kinds]].tolist())) >= _FEWEST_COLUMNS
    }
    label = np.array([k if k in frequent else "" for k in kinds])
    names = sorted(set(label.tolist()), reverse=True)
    blurred = replace(
        optics, source_size_A=float(thermal_rms_A * np.sqrt(8 * np.log(2))), defocus_spread_A=0.0
    )
    weight = atom_weights(atoms, optics)
    x, y = atoms.positions[:, 0], atoms.positions[:, 1]
    groups = [(x[label == name], y[label == name], weight[label == name]) for name in names]
    return names, render_patches(groups, blurred, shape, _STEP_A).numpy().astype(float)
