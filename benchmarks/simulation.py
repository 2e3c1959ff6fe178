"""Speed of the incoherent images, against Incostem's published time and against abTEM multislice.

Needs the extra ``abtem`` for the second half. About four minutes on one core.
"""

from __future__ import annotations

import numpy as np
import torch
from common import clock, cpu_seconds, publish, table

from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.imaging import simulate_image
from micrographia.simulate.multislice import (
    BORDER_A,
    apply_column_weights,
    column_weights,
    cross_correlation,
    multislice_adf,
)
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series

KINDS = {
    "vacancy-1Se": 0.02,
    "vacancy-2Se": 0.01,
    "vacancy-1W": 0.01,
    "substitution-Te-1Se": 0.02,
    "antisite-W-2Se": 0.01,
    "antisite-Se-W": 0.01,
}
SPECS = [DefectSpec(kind, share) for kind, share in KINDS.items()]
#: CPU seconds of Kirkland's Incostem for one noise-free image of 1024² pixels: stated, not measured here.
INCOSTEM_S = 0.45
OPTICS = Optics()
THERMAL_A = 0.08


def crystal(field_A: float):
    atoms = build_crystal("WSe2", (field_A, field_A), angle_deg=11.0)
    return introduce_defects(atoms, SPECS, np.random.default_rng(0))


def labelled_image(size: int, field_A: float) -> tuple[float, float, int]:
    """CPU seconds to render one labelled image, and to build the crystal too; number of atoms."""
    atoms, sites = crystal(field_A)
    labels = list(KINDS)

    def render():
        simulate_image(atoms, OPTICS, (size, size), field_A / size, sites, labels)

    render()
    rendering = cpu_seconds(render, 7)
    return rendering, rendering + cpu_seconds(lambda: crystal(field_A), 3), len(atoms)


def against_incostem() -> str:
    render, whole, atoms = labelled_image(1024, 200.0)
    published = 7 * INCOSTEM_S
    rows = [
        ["Incostem, 7 runs of 0.45 s", "published figure, not run here", f"{published:.2f}", "1"],
        ["this package", "image and six label maps", f"{render:.3f}", f"**{published / render:.0f}**"],
        ["this package", "the same, and building the crystal", f"{whole:.3f}", f"{published / whole:.0f}"],
    ]
    return (
        f"## One labelled image\n\nNoise-free WSe2, 1024² pixels, {atoms} atoms, six label maps, one thread.\n\n"
        + table(["program", "work", "CPU s", "times faster"], rows)
        + "\n\nIncostem's figure (0.43 to 0.46 s for 14,022 atoms) was measured elsewhere: the ratio is a rough one."
    )


def scaling() -> str:
    rows = [
        [f"{size}²", f"{field:.0f}", n, f"{1e3 * render:.1f}"]
        for size, field in [
            (256, 200),
            (512, 200),
            (1024, 200),
            (2048, 200),
            (1024, 50),
            (1024, 100),
            (1024, 400),
        ]
        for render, _, n in [labelled_image(size, float(field))]
    ]
    return "## Scaling\n\nRendering with six label maps.\n\n" + table(
        ["pixels", "field, Å", "atoms", "CPU ms"], rows
    )


def throughput() -> str:
    rows = []
    for n in (16, 64):
        with clock() as t:
            simulate_series(Specimen(), OPTICS, n, (128, 128), 0.2, seed=0, workers=1)
        rows.append([n, "128²", f"{1e3 * t['cpu'] / n:.1f}", f"{n / t['cpu']:.0f}"])
    return (
        "## Bulk generation\n\nRandom crystals with defects, built, rendered noise-free and labelled; one "
        "thread (every core runs one).\n\n"
        + table(["images", "pixels", "CPU ms per image", "images per CPU s"], rows)
    )


def against_multislice() -> str:
    """A field of 24² probes: the same crystal by frozen-phonon multislice and by the incoherent model."""
    n, step, half = 24, 0.4, 4
    edge = n * step + 2 * BORDER_A
    atoms = build_crystal("WSe2", (edge, edge), angle_deg=11.0, margin_A=0.0)
    specs = [DefectSpec("vacancy-1Se", 0.15), DefectSpec("vacancy-2Se", 0.05)]
    atoms, _ = introduce_defects(atoms, specs, np.random.default_rng(1))
    grid = BORDER_A + step * np.arange(n)
    positions = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    halves = []
    with clock() as multislice:
        for seed in (1, 2):
            halves.append(multislice_adf(atoms, OPTICS, positions, THERMAL_A, half, seed).reshape(n, n))
    signal = np.mean(halves, axis=0)

    # Pixel (0, 0) of the rendered field lies on the first probe.
    sharp = Optics(source_size_A=0.0)
    moved = atoms.copy()
    moved.positions[:, :2] -= BORDER_A

    def render(crystal):
        return simulate_image(crystal, sharp, (n, n), step, thermal_rms_A=THERMAL_A)[0].numpy()

    render(moved)
    fast = cpu_seconds(lambda: render(moved), 5)
    with clock() as fitting:
        weights = column_weights("WSe2", OPTICS, n_held_out=100, configurations=2 * half)
    plain, refined = render(moved), render(apply_column_weights(moved, weights))
    big, _, _ = labelled_image(1024, 200.0)
    per_pixel = multislice["cpu"] / n**2

    # Two halves of the configurations agree with each other as well as each with the truth, squared.
    between = cross_correlation(*halves)
    ceiling = np.sqrt(2 * between / (1 + between))
    rows = [
        ["independent atoms", f"{cross_correlation(plain, signal):.4f}", f"{residual(plain, signal):.1%}"],
        [
            "with column weights",
            f"{cross_correlation(refined, signal):.4f}",
            f"{residual(refined, signal):.1%}",
        ],
        [f"the scatter of {2 * half} configurations allows", f"{ceiling:.4f}", ""],
    ]
    factors = ", ".join(f"{kind} {value:.3f}" for kind, value in weights.factors.items())
    speed = [
        [f"abTEM, {2 * half} configurations", f"{n}²", f"{multislice['cpu']:.1f}", f"{1e6 * per_pixel:.0f}", "1"],
        ["incoherent, this field", f"{n}²", f"{fast:.4f}", f"{1e6 * fast / n**2:.2f}",
         f"{multislice['cpu'] / fast:.1e}"],
        ["incoherent, with six label maps", "1024²", f"{big:.3f}", f"{1e6 * big / 1024**2:.3f}",
         f"{per_pixel / (big / 1024**2):.1e}"],
    ]  # fmt: skip
    return (
        f"## Against frozen-phonon multislice\n\nWSe2 with vacancies, {n}² probes {step} Å apart, 80 kV, "
        f"{OPTICS.convergence_mrad} mrad, detector {OPTICS.inner_mrad:.0f} to {OPTICS.outer_mrad:.0f} mrad, no "
        f"source size, {THERMAL_A} Å vibration; abTEM in the same process. None of these probes was used to fit "
        "the weights, which come from another field.\n\n"
        + table(["incoherent model", "correlation with multislice", "residual, rms of the mean"], rows)
        + f"\n\nWeights from {weights.probes} probes with {2 * half} configurations each: {factors}. On "
        f"{weights.held_out} held-out probes of that field: correlation {weights.correlation_before:.4f} before, "
        f"{weights.correlation_after:.4f} after; {fitting['cpu']:.0f} s of CPU.\n\n"
        + table(["program", "pixels", "CPU s", "CPU µs per pixel", "times faster per pixel"], speed)
    )


def residual(model: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square of ``model - truth``, without any scaling, over the mean of the truth."""
    return float(np.sqrt(np.mean((model - truth) ** 2)) / truth.mean())


def main() -> None:
    torch.set_num_threads(1)
    sections = [against_incostem(), scaling(), throughput()]
    try:
        sections.append(against_multislice())
    except UserError as error:
        sections.append(f"## Against frozen-phonon multislice\n\nNot measured: {error}")
    publish("simulation", "Simulation", sections, ["torch", "numpy", "abtem"])


if __name__ == "__main__":
    main()
