"""Point defects, by concentration or at given places, each labelled with its kind and position.

The kinds (El, A, B, New: chemical symbols; n: a number, 1 if left out):

``vacancy-{n}{El}``
    n atoms of El are missing from a column: ``vacancy-1Se`` leaves one of the two Se, ``vacancy-2Se`` none.
``substitution-{New}-{n}{El}``
    n atoms of El in a column are replaced by as many New: ``substitution-Te-1Se``.
``antisite-{A}-{n}{B}``
    one A, an element of the crystal, sits in place of n atoms of B: ``antisite-W-2Se``, ``antisite-Se-W``.
``adatom-{El}``
    an atom of El on top of a column.
``{El}``
    isolated atoms of El that the specimen has already (``single-atoms``) are labelled, all of them; in a
    crystal of one element (graphene) El replaces one of its atoms: ``Si`` is the three-fold Si dopant.
``Si-4fold`` (any element), ``divacancy-C``, ``stone-wales``
    in graphene only: see `micrographia.simulate.graphene`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from scipy.spatial import cKDTree

from micrographia.errors import UserError, did_you_mean
from micrographia.simulate import graphene

_KIND = re.compile(
    r"(?P<vacancy>vacancy)-(?P<n1>\d*)(?P<el1>[A-Z][a-z]?)"
    r"|(?P<exchange>substitution|antisite)-(?P<new>[A-Z][a-z]?)-(?P<n2>\d*)(?P<el2>[A-Z][a-z]?)"
    r"|(?P<adatom>adatom)-(?P<el3>[A-Z][a-z]?)"
    r"|(?P<el4>[A-Z][a-z]?)(?P<fourfold>-4fold)?"
    r"|(?P<pair>divacancy-C|stone-wales)"
)
_NEAR_A = 1.5


@dataclass(frozen=True)
class DefectSpec:
    """One kind of defect and how much of it."""

    kind: str
    """What: for example vacancy-1Se, substitution-Te-1Se, antisite-W-2Se, adatom-W, Si, divacancy-C."""
    concentration: float = 0.0
    """Fraction of the eligible columns (0 to 1); of the C-C bonds for defects that take a pair of atoms."""
    positions: tuple[tuple[float, float], ...] = field(default=())
    """Explicit places (x, y) in Å instead of a concentration: the nearest eligible column is used."""
    min_distance_A: float = 0.0
    """Smallest distance to any other defect; fewer are made if they do not fit."""
    relaxation: float = 0.0
    """Inward displacement of the nearest neighbours as a fraction of their distance, falling off with the
    square of the distance; negative is outward. A simple elastic picture, not a calculation."""

    def __post_init__(self) -> None:
        if not 0 <= self.concentration <= 1:
            raise UserError(
                f"defect {self.kind}: the concentration is a fraction of sites between 0 and 1, "
                f"got {self.concentration}."
            )
        if not self.min_distance_A >= 0:
            raise UserError(
                f"defect {self.kind}: min_distance_A must not be negative, got {self.min_distance_A}."
            )
        if not -0.5 <= self.relaxation <= 0.5:
            raise UserError(
                f"defect {self.kind}: relaxation must be between -0.5 and 0.5, got {self.relaxation}."
            )
        parse_kind(self.kind)


@dataclass(frozen=True)
class _Kind:
    """A parsed kind: what is done to n atoms of `old`."""

    action: str  # vacancy, substitution, antisite, adatom, element, fourfold, divacancy, stone-wales
    new: str = ""
    old: str = ""
    n: int = 1


def parse_kind(kind: str) -> _Kind:
    """Parse a kind's name; `UserError` explains the grammar."""
    match = _KIND.fullmatch(kind)
    if match is None:
        examples = (
            "vacancy-1Se",
            "vacancy-2Se",
            "substitution-Te-1Se",
            "antisite-W-2Se",
            "adatom-W",
            "Si",
            "Si-4fold",
            "divacancy-C",
            "stone-wales",
        )
        raise UserError(f"Cannot understand the defect '{kind}'.{did_you_mean(kind, examples)}")
    part = match.groupdict()
    for symbol in (part[key] for key in ("el1", "new", "el2", "el3", "el4")):
        if symbol and symbol not in chemical_symbols[1:104]:
            hint = did_you_mean(symbol, chemical_symbols[1:104])
            raise UserError(f"defect {kind}: '{symbol}' is not an element.{hint}")
    number = int(part["n1"] or part["n2"] or 1)
    if number < 1:
        raise UserError(f"defect {kind}: the number of atoms must be at least 1.")
    if part["vacancy"]:
        return _Kind("vacancy", old=part["el1"], n=number)
    if part["exchange"]:
        return _Kind(part["exchange"], part["new"], part["el2"], number)
    if part["adatom"]:
        return _Kind("adatom", new=part["el3"])
    if part["el4"]:
        return _Kind("fourfold" if part["fourfold"] else "element", new=part["el4"])
    return _Kind(part["pair"].removesuffix("-C"))


class _Columns:
    """What the crystal's projected columns hold."""

    def __init__(self, atoms: Atoms):
        self.of_atom = atoms.arrays.get("column", np.full(len(atoms), -1))
        self.count = int(self.of_atom.max(initial=-1)) + 1
        on_lattice = self.of_atom >= 0
        self.numbers, column = atoms.numbers[on_lattice], self.of_atom[on_lattice]
        self.size = np.bincount(column, minlength=self.count)
        held = np.maximum(self.size, 1)
        self.xy = np.stack(
            [np.bincount(column, atoms.positions[on_lattice, i], self.count) / held for i in (0, 1)], 1
        )
        self._column = column
        self.free = np.ones(self.count, dtype=bool)

    def holding(self, symbol: str) -> np.ndarray:
        """Number of atoms of an element in each column."""
        return np.bincount(self._column[self.numbers == atomic_numbers[symbol]], minlength=self.count)


def _check_offer(atoms: Atoms, kind: str, parsed: _Kind, columns: _Columns) -> None:
    """Raise `UserError` when this crystal cannot have that defect, saying what it can have."""
    name = atoms.info.get("material", "this crystal")
    elements = atoms.info.get("elements") or sorted(set(atoms.get_chemical_symbols()))
    if columns.count == 0:
        raise UserError(
            f"defect {kind}: {name} has no lattice columns; give an element to label its isolated atoms "
            f"({', '.join(elements)})."
        )
    offers = ", ".join(
        f"vacancy-{n}{e}" for e in elements for n in range(1, 1 + int(columns.holding(e).max()))
    )
    offer = f"{name} offers the elements {', '.join(elements)}, for example {offers}."
    if parsed.old and parsed.old not in elements:
        raise UserError(f"defect {kind}: {name} has no {parsed.old}. {offer}")
    if parsed.old and parsed.n > _most(atoms, columns, parsed.old):
        raise UserError(f"defect {kind}: no column of {name} has {parsed.n} atoms of {parsed.old}. {offer}")
    if parsed.action == "antisite" and (parsed.new not in elements or parsed.new == parsed.old):
        raise UserError(
            f"defect {kind}: an antisite exchanges two elements of the crystal; use "
            f"substitution-{parsed.new}-{parsed.n}{parsed.old} for a foreign atom. {offer}"
        )
    if parsed.action == "element" and elements == [parsed.new]:
        raise UserError(f"defect {kind}: {name} consists of {parsed.new}. {offer}")
    if parsed.action == "element" and len(elements) > 1:
        raise UserError(
            f"defect {kind}: {name} has several elements, so say which one is replaced: "
            + " or ".join(f"substitution-{parsed.new}-1{e}" for e in elements if e != parsed.new)
            + "."
        )
    if parsed.action in graphene.PAIR_DEFECTS and not graphene.is_graphene(atoms):
        raise UserError(f"defect {kind}: only graphene has this defect. {offer}")


def _most(atoms: Atoms, columns: _Columns, symbol: str) -> int:
    """Return the most atoms of an element that a column of this crystal can hold."""
    # In an alloy the columns of a small field need not hold what others do.
    in_alloy = symbol in atoms.info.get("mixed", ())
    return int((columns.size if in_alloy else columns.holding(symbol)).max())


def _choose(xy: np.ndarray, spec: DefectSpec, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose which of the eligible places `xy` get the defect, apart from each other and from `taken`."""
    if spec.positions:
        if len(xy) == 0:
            raise UserError(f"defect {spec.kind}: no eligible site is left for the given positions.")
        wanted = np.asarray(spec.positions, dtype=float)
        distance, nearest = cKDTree(xy).query(wanted)
        if (distance > _NEAR_A).any():
            x, y = wanted[int(distance.argmax())]
            raise UserError(
                f"defect {spec.kind}: no eligible site within {_NEAR_A} Å of ({x:.2f}, {y:.2f}) Å."
            )
        return np.unique(nearest)
    # Rounding at random keeps the expected number right in small fields.
    wanted_count = int(spec.concentration * len(xy) + rng.random())
    order = rng.permutation(len(xy))
    if spec.min_distance_A == 0:
        return order[:wanted_count]
    near = cKDTree(xy)
    blocked = np.zeros(len(xy), dtype=bool)
    for place in near.query_ball_point(taken, spec.min_distance_A) if len(taken) else ():
        blocked[place] = True
    chosen: list[int] = []
    for i in order:
        if len(chosen) == wanted_count:
            break
        if not blocked[i]:
            chosen.append(int(i))
            blocked[near.query_ball_point(xy[i], spec.min_distance_A)] = True
    return np.array(chosen, dtype=int)


def _relax(positions: np.ndarray, centres: np.ndarray, fraction: float) -> None:
    """Move the surroundings of each centre inwards.

    The displacement at distance r is ``fraction r0 (r0 / r)^2`` with r0 that of the nearest neighbours.
    """
    tree = cKDTree(positions[:, :2])
    moved = np.zeros((len(positions), 2))
    for centre in centres:
        near = np.array(tree.query_ball_point(centre, 10.0), dtype=int)
        offset = positions[near, :2] - centre
        r = np.hypot(*offset.T)
        near, offset, r = near[r > 0.5], offset[r > 0.5], r[r > 0.5]
        if len(near):
            nearest = r.min()
            moved[near] -= fraction * nearest * (nearest / r[:, None]) ** 2 * offset / r[:, None]
    positions[:, :2] += moved


def introduce_defects(
    atoms: Atoms, specs: Sequence[DefectSpec], rng: np.random.Generator
) -> tuple[Atoms, pd.DataFrame]:
    """Put point defects into a crystal; no column gets two.

    Parameters
    ----------
    atoms : ase.Atoms
        From `build_crystal`; not changed.
    specs : sequence of DefectSpec
        Applied in this order. Eligible are all columns of the crystal, the margin around the field included.

    Returns
    -------
    atoms : ase.Atoms
        A new crystal.
    sites : frame with columns x_A, y_A, kind
        One row per defect; a few may lie in the margin outside the field.

    Raises
    ------
    UserError
        A kind that this crystal cannot have; the message lists what it offers.
    """
    out, xy, kinds = place_defects(atoms, specs, rng)
    return out, pd.DataFrame({"x_A": xy[:, 0], "y_A": xy[:, 1], "kind": kinds})


def place_defects(
    atoms: Atoms, specs: Sequence[DefectSpec], rng: np.random.Generator
) -> tuple[Atoms, np.ndarray, list[str]]:
    """Do the work of `introduce_defects` for thousands of small scenes: positions ``[n, 2]`` (Å) and kinds, no table."""
    columns = _Columns(atoms)
    out = atoms.copy()
    removed = np.zeros(len(atoms), dtype=bool)
    added: list[tuple[str, np.ndarray]] = []
    xy, kinds = np.zeros((0, 2)), []
    relaxed: list[tuple[np.ndarray, float]] = []

    isolated = atoms.numbers[atoms.arrays.get("isolated", np.zeros(len(atoms), dtype=bool))]
    for spec in specs:
        kind = parse_kind(spec.kind)
        if kind.action == "element" and "isolated" in atoms.arrays and kind.new in atoms.info["elements"]:
            # The specimen has such atoms already; this field perhaps none.
            centres = atoms.positions[atoms.arrays["isolated"]][isolated == atomic_numbers[kind.new], :2]
        else:
            _check_offer(atoms, spec.kind, kind, columns)
            choose = partial(_choose, spec=spec, taken=xy, rng=rng)
            if kind.action in graphene.PAIR_DEFECTS:
                centres = graphene.pair_defects(out, kind.action, columns.free, removed, choose)
                if kind.action == "fourfold":
                    added += [(kind.new, np.append(c, 0.0)) for c in centres]
            else:
                centres = _column_defects(out, kind, columns, removed, added, choose, rng)
            if spec.relaxation and len(centres):
                relaxed.append((centres, spec.relaxation))
        xy = np.concatenate([xy, centres])
        kinds += [spec.kind] * len(centres)

    out = out[~removed]
    if added:
        out = _with_atoms(out, added, columns.count)
    for centres, fraction in relaxed:
        _relax(out.positions, centres, fraction)
    return out, xy, kinds


def _column_defects(
    out: Atoms,
    kind: _Kind,
    columns: _Columns,
    removed: np.ndarray,
    added: list[tuple[str, np.ndarray]],
    choose: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Change single columns of `out`, `removed` and `added` in place; return the defects' centres."""
    old = kind.old or (out.info["elements"][0] if kind.action == "element" else "")
    eligible = columns.free & ((columns.holding(old) >= kind.n) if old else columns.size > 0)
    candidates = np.flatnonzero(eligible)
    chosen = candidates[choose(columns.xy[candidates])]
    columns.free[chosen] = False
    centres = columns.xy[chosen]
    if kind.action == "adatom":
        top = out.positions[:, 2].max(initial=0.0) + 2.0
        added += [(kind.new, np.append(c, top)) for c in centres]
        return centres
    # n atoms of `old` at random from each chosen column.
    member = np.flatnonzero(np.isin(columns.of_atom, chosen) & (out.numbers == atomic_numbers[old]))
    member = member[np.lexsort((rng.random(len(member)), columns.of_atom[member]))]
    column = columns.of_atom[member]
    rank = np.arange(len(member)) - np.searchsorted(column, column)
    target = member[rank < kind.n]
    if kind.action in ("substitution", "element"):
        out.numbers[target] = atomic_numbers[kind.new]
        return centres
    removed[target] = True
    if kind.action == "antisite":
        height = out.positions[target, 2].reshape(-1, kind.n).mean(1)
        order = np.sort(chosen)
        added += [(kind.new, np.append(columns.xy[c], z)) for c, z in zip(order, height, strict=True)]
    return centres


def _with_atoms(atoms: Atoms, added: list[tuple[str, np.ndarray]], first_column: int) -> Atoms:
    """Append atoms as columns of their own (an antisite on a column that is not empty stays its own, too)."""
    extra = Atoms([symbol for symbol, _ in added], positions=[position for _, position in added])
    extra.set_array("column", first_column + np.arange(len(extra)))
    extra.set_array("sublattice", np.full(len(extra), -1))
    out = atoms.copy()
    out.extend(extra)
    return out
