"""Sub-pixel refinement of atoms against AtomAI's, and against the Cramér-Rao bound.

`python benchmarks/atoms.py` (needs AtomAI, see README.md)
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from common import cpu_seconds, publish, stand_in_for_torchvision, table

from micrographia.atoms.refine import refine_com, refine_gaussian
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.imaging import simulate_image
from micrographia.simulate.probe import Optics
from micrographia.sites import make_sites

PIXEL_A, RADIUS_PX, SIDE_PX, REPEATS = 0.08, 6, 512, 3
WIDTHS_PX, ANGLE_RAD = (2.6, 2.0), 0.5


def import_atomai():
    stand_in_for_torchvision()
    from atomai.utils.coords import peak_refinement

    return peak_refinement


def gaussian(dx, dy, widths=WIDTHS_PX, angle=ANGLE_RAD):
    u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
    return np.exp(-((u / widths[0]) ** 2 + (v / widths[1]) ** 2) / 2)


def spots() -> tuple[np.ndarray, np.ndarray]:
    """Noise-free Gaussian spots of height 1, and their places (x, y)."""
    rng = np.random.default_rng(0)
    grid = np.arange(20, SIDE_PX - 20, 18)
    xy = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + rng.uniform(-0.5, 0.5, (len(grid) ** 2, 2))
    image = np.zeros((SIDE_PX, SIDE_PX))
    dy, dx = np.mgrid[-14:15, -14:15]
    for x, y in xy:
        j, i = round(x), round(y)
        image[i - 14 : i + 15, j - 14 : j + 15] += gaussian(dx + j - x, dy + i - y)
    return image, xy


def graphene() -> tuple[np.ndarray, np.ndarray]:
    """Noise-free image of graphene, the mean height of its atoms 1, and their places."""
    atoms = build_crystal(
        "graphene", (SIDE_PX * PIXEL_A,) * 2, angle_deg=7, disorder_A=0.03, rng=np.random.default_rng(0)
    )
    optics = Optics(energy_keV=60, convergence_mrad=31, source_size_A=0.7)
    image = simulate_image(atoms, optics, (SIDE_PX, SIDE_PX), PIXEL_A)[0].numpy().astype(float)
    xy = atoms.positions[:, :2] / PIXEL_A
    xy = xy[((xy > 20) & (xy < SIDE_PX - 20)).all(axis=1)]
    j, i = np.rint(xy).astype(int).T
    low = np.quantile(image, 0.05)
    return (image - low) / (image[i, j].mean() - low), xy


def cramer_rao_px(noise: float) -> float:
    """Least standard error along one axis of a spot at a pixel's centre, all seven parameters unknown."""
    dy, dx = np.mgrid[-RADIUS_PX : RADIUS_PX + 1, -RADIUS_PX : RADIUS_PX + 1]
    inside = np.hypot(dx, dy) <= RADIUS_PX
    dx, dy = dx[inside], dy[inside]

    def model(p):
        return p[0] * gaussian(dx - p[1], dy - p[2], p[3:5], p[5]) + p[6]

    truth, h = np.array([1, 0, 0, *WIDTHS_PX, ANGLE_RAD, 0]), 1e-5
    slope = np.stack([(model(truth + h * e) - model(truth - h * e)) / (2 * h) for e in np.eye(7)])
    bound = np.linalg.inv(slope @ slope.T)
    return float(noise * np.sqrt((bound[1, 1] + bound[2, 2]) / 2))


def main() -> None:
    peak_refinement = import_atomai()
    rows = []
    ratios = []
    for name, (clean, xy) in (("Gaussian spots", spots()), ("graphene", graphene())):
        for noise in (0.02, 0.2):
            rng = np.random.default_rng(1)
            image = clean + noise * rng.standard_normal(clean.shape)
            start = xy + rng.uniform(-1, 1, xy.shape)
            sites = make_sites("image", *start.T, "C")
            theirs = np.column_stack([start[:, ::-1], np.zeros(len(xy))])
            own = {"images": image, "sites": sites, "radius_A": RADIUS_PX * PIXEL_A, "pixel_size_A": PIXEL_A}
            tried = {
                "centre of mass": partial(refine_com, **own),
                "Gaussian": partial(refine_gaussian, **own),
                "round Gaussian": partial(refine_gaussian, shape="round", **own),
                "AtomAI, own window": partial(peak_refinement, image, theirs),
                f"AtomAI, d = {RADIUS_PX}": partial(peak_refinement, image, theirs, RADIUS_PX),
            }
            spent = {}
            for method, function in tried.items():
                repeats = 1 if "AtomAI" in method else REPEATS
                found = []
                spent[method] = cpu_seconds(lambda f=function, out=found: out.append(f()), repeats) / len(xy)
                last = found[-1]
                if "AtomAI" in method:
                    place, kept = last[:, 1::-1].astype(float), (last[:, :2] != theirs[:, :2]).any(axis=1)
                else:
                    place, kept = last[["x_px", "y_px"]].to_numpy(), last["refined"].to_numpy()
                error = np.hypot(*(place - xy).T) / np.sqrt(2)
                bound = f"{cramer_rao_px(noise):.3f}" if name == "Gaussian spots" else "-"
                rows.append(
                    [name, noise, method, f"{1000 * spent[method]:.3f}", f"{100 * kept.mean():.1f}",
                     f"{np.sqrt((error[kept] ** 2).mean()):.3f}", f"{np.median(error):.3f}", bound]
                )  # fmt: skip
            ratios.append(spent[f"AtomAI, d = {RADIUS_PX}"] / spent["Gaussian"])
    text = (
        f"{SIDE_PX}² px at {PIXEL_A} Å/px: {len(spots()[1])} Gaussian spots (standard deviations {WIDTHS_PX[0]} and "
        f"{WIDTHS_PX[1]} px, oblique) and {len(graphene()[1])} atoms of simulated graphene (60 kV, source 0.7 Å, atoms "
        "displaced by 0.03 Å), with white noise as a fraction of an atom's height. All start up to 1 px off along "
        f"each axis. Ours: a disc of {RADIUS_PX} px radius; AtomAI's `peak_refinement`: a square of 2d px, d by "
        "itself (a quarter of the neighbours' distance) or as wide as our disc. Refined: what a method says it "
        "could refine (AtomAI: what it moved). Errors along one axis, RMS of the refined and median of all; the bound "
        "is Cramér and Rao's for the disc with all seven parameters unknown."
    )
    header = [
        "image", "noise", "method", "ms CPU per atom", "refined, %", "RMS error, px", "median error, px", "bound, px"
    ]  # fmt: skip
    verdict = (
        f"The Gaussian fit of all atoms at once takes a **{min(ratios):.0f}th to {max(ratios):.0f}th** of AtomAI's "
        "CPU time with the window of the same width."
    )
    packages = ["numpy", "scipy", "torch", "atomai"]
    publish("atoms", "Positions of atoms", [text, table(header, rows), verdict], packages)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
