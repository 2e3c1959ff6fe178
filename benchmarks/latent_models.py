"""Every preset of `latent.presets` on patches of known truth: what it learns, one picture and its figures each.

`python benchmarks/latent_models.py [patches, default 1000] [epochs, default 20]`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from common import DOCS, publish
from latent import angle_error, leak, shift_error
from matplotlib.figure import Figure
from scipy import ndimage
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from micrographia.latent import presets
from micrographia.latent.blocks import Continuous, Rotation, Translation
from micrographia.latent.compare import clustering_accuracy, match_classes
from micrographia.latent.ensemble import uncertainty_by_classes
from micrographia.latent.manifold import draw_manifold, draw_traversals, draw_upright
from micrographia.latent.model import VaeConfig
from micrographia.latent.terms import follows, symmetric
from micrographia.latent.vae import VAE, columns_of
from micrographia.plots.curves import classes_figure
from micrographia.plots.latent import latent_scatter, manifold_figure, reconstruction_sheet, traversal_figure
from micrographia.plots.matrices import confusion_figure
from micrographia.simulate.shapes import SUITS, PoseSet, cards, motifs
from micrographia.workflows.report import figure_png

SIZE_PX = 32
#: Share of the patches whose label or value a semi-supervised model is told.
TOLD = 0.05
#: What a model gives: its picture, and what was measured.
Shown = tuple[Figure, str]


def r2(code: np.ndarray, truth: np.ndarray) -> float:
    """R² of a quantity predicted from a code by 15 nearest neighbours, cross-validated."""
    code = code / np.maximum(code.std(axis=0), 1e-9)
    found = cross_val_predict(KNeighborsRegressor(15), code, truth, cv=5)
    return float(1 - np.mean((found - truth) ** 2) / np.var(truth))


def told_classes(code: np.ndarray, kind: np.ndarray) -> float:
    """Share of the kinds that 15 nearest neighbours tell from a code, cross-validated."""
    code = code / np.maximum(code.std(axis=0), 1e-9)
    return float(np.mean(cross_val_predict(KNeighborsClassifier(15), code, kind, cv=5) == kind))


def columns(model: VAE, codes: np.ndarray, start: str) -> np.ndarray:
    """The columns of `VAE.transform` whose name starts so."""
    return codes[:, columns_of(model.get_feature_names_out(), start)]


def scattered(model: VAE, truth: PoseSet) -> Shown:
    """`ae`, `vae`: the code of rotated cards, which holds the angle, too."""
    z = columns(model, model.fit_transform(truth.images), "z")
    figure = latent_scatter(z[:, 0], z[:, 1], truth.images, np.array(truth.kinds)[truth.kind])
    return figure, (
        f"What nearest neighbours read from the code: the angle with R² {leak(z, truth.angle_deg):.2f}, and "
        f"{100 * told_classes(z, truth.kind):.0f} % of the suits."
    )


def ae(n: int, config: VaeConfig) -> Shown:
    return scattered(presets.ae(config=config), cards(n, SIZE_PX, rotation_deg=60, noise=0.05))


def vae(n: int, config: VaeConfig) -> Shown:
    return scattered(presets.vae(config=config), cards(n, SIZE_PX, rotation_deg=60, noise=0.05))


def shift_vae(n: int, config: VaeConfig) -> Shown:
    truth = cards(n, SIZE_PX, rotation_deg=0, shear=0.3, shift_px=4, noise=0.05)
    model = presets.shift_vae(prior_px=3, config=config)
    codes = model.fit_transform(truth.images)
    drawn = draw_manifold(model, 9, codes)
    shift = columns(model, codes, "shift")
    error = np.mean([
        shift_error(shift[truth.kind == k], truth.shift_px[truth.kind == k], np.zeros((truth.kind == k).sum()))
        for k in range(len(SUITS))
    ])  # fmt: skip
    z = columns(model, codes, "z")
    leaks = [r2(z, truth.shift_px[:, axis]) for axis in (0, 1)]
    return manifold_figure(drawn.images, drawn.values, drawn.names), (
        f"Shifts of up to ± 4 px are found to {error:.2f} px (mean; each suit has its own centre). What nearest neighbours "
        f"read from the code: the shift with R² {leaks[0]:.2f} along x and {leaks[1]:.2f} along y, "
        f"{100 * told_classes(z, truth.kind):.0f} % of the suits, the shear with R² {r2(z, truth.content[:, 0]):.2f}."
    )


def rvae(n: int, config: VaeConfig) -> Shown:
    truth = motifs(n, SIZE_PX // 2, 180, 1.0)
    model = presets.rvae(config=config)
    codes = model.fit_transform(truth.images)
    figure = reconstruction_sheet(
        truth.images[:10], model.inverse_transform(codes[:10]), draw_upright(model, codes[:10]), codes[:10, 0]
    )
    return figure, f"{posed(model, codes, truth)} {factors(model, codes, truth)}"


def scale(n: int, config: VaeConfig) -> Shown:
    truth = motifs(n, SIZE_PX // 2, 180, 0.5)
    magnified = np.random.default_rng(1).uniform(0.8, 1.25, n)
    centre = (SIZE_PX // 2 - 1) / 2
    images = np.stack([
        ndimage.affine_transform(image, np.eye(2) / m, centre - centre / m, order=1, mode="nearest")
        for image, m in zip(truth.images, magnified, strict=True)
    ])  # fmt: skip
    model = presets.rvae(scale=0.15, config=config)
    codes = model.fit_transform(images)
    drawn = draw_traversals(model, 9, codes)
    found = np.log(columns(model, codes, "scale")[:, 0])
    error = np.abs(found - np.log(magnified) - np.mean(found - np.log(magnified))).mean()
    return traversal_figure(drawn.images, drawn.values, drawn.names), (
        f"Magnifications of 0.8 to 1.25 are found to {100 * error:.1f} % (mean, up to one common factor). "
        f"{posed(model, codes, truth)}"
    )


def posed(model: VAE, codes: np.ndarray, truth: PoseSet) -> str:
    error = angle_error(codes[:, 0], truth.angle_deg)
    z = columns(model, codes, "z")
    return (
        f"Angles over the whole circle are off by {error.mean():.1f}° on average; read from the code, R² "
        f"{leak(z, truth.angle_deg):.2f}."
    )


def factors(model: VAE, codes: np.ndarray, truth: PoseSet) -> str:
    z = columns(model, codes, "z")
    return (
        f"How bright one neighbour is can be read from it with R² {r2(z, truth.content[:, 0]):.2f}, how far away another "
        f"with {r2(z, truth.content[:, 1]):.2f}."
    )


def conditional_vae(n: int, config: VaeConfig) -> Shown:
    truth = cards(n, SIZE_PX, rotation_deg=30, noise=0.05)
    model = presets.conditional_vae(len(SUITS), n=1, config=config)
    z = model.fit_transform(truth.images, condition=truth.kind)
    free = presets.vae(n=1, config=config).fit_transform(truth.images)
    drawn = [draw_traversals(model, 9, z, condition=np.int64(k)) for k in range(len(SUITS))]
    figure = traversal_figure(
        np.concatenate([d.images for d in drawn]), np.concatenate([d.values for d in drawn]), SUITS
    )
    return figure, (
        f"One latent, and the suit is told: from the latent it can be guessed for {100 * told_classes(z, truth.kind):.0f} % "
        f"of the cards (chance 25 %; {100 * told_classes(free, truth.kind):.0f} % from that of a `vae`, which is not told), "
        f"the angle with R² {leak(z, truth.angle_deg):.2f}."
    )


def conditional_rvae(n: int, config: VaeConfig) -> Shown:
    truth = motifs(n, SIZE_PX // 2, 180, 1.0)
    given = truth.content[:, 0]
    model = presets.conditional_rvae(1, n=1, config=config)
    codes = model.fit_transform(truth.images, condition=given)
    z = columns(model, codes, "z")
    rows = [draw_traversals(model, 9, codes, condition=np.array([v])) for v in (0.0, 0.5, 1.0)]
    figure = traversal_figure(
        np.concatenate([d.images[:1] for d in rows]), np.concatenate([d.values[:1] for d in rows]),
        ("dim", "middle", "bright"),
    )  # fmt: skip
    return figure, (
        f"The brightness of one neighbour is told: read from the latent, R² {r2(z, given):.2f}; the distance of the other "
        f"{r2(z, truth.content[:, 1]):.2f}. {posed(model, codes, truth)}"
    )


def semi_supervised_rvae(n: int, config: VaeConfig) -> Shown:
    truth = cards(n, SIZE_PX, rotation_deg=120, shear=0.2, shift_px=1, noise=0.05)
    told = np.random.default_rng(0).random(n) < TOLD
    model = presets.semi_supervised_rvae(len(SUITS), config=config)
    found = model.fit(truth.images, np.where(told, truth.kind, -1)).predict(truth.images)
    counts = np.zeros((len(SUITS), len(SUITS)), int)
    np.add.at(counts, (truth.kind[~told], found[~told]), 1)
    right = np.mean(found[~told] == truth.kind[~told])
    return confusion_figure(counts, SUITS, SUITS), (
        f"{told.sum()} of {n} cards have a label; of the others {100 * right:.1f} % get the right one."
    )


def regression_rvae(n: int, config: VaeConfig) -> Shown:
    truth = motifs(n, SIZE_PX // 2, 180, 1.0)
    bright = truth.content[:, 0]
    told = np.random.default_rng(0).random(n) < TOLD
    model = presets.regression_rvae(config=config)
    found = model.fit(truth.images, np.where(told, bright, np.nan)).predict(truth.images)
    error = np.abs(found - bright)[~told].mean()
    figure = latent_scatter(
        bright[~told], found[~told], truth.images[~told], names=("true brightness", "found")
    )
    return figure, (
        f"The brightness of one neighbour (0 to 1) is told for {told.sum()} of {n} patches, and found to {error:.3f} on "
        "average in the others."
    )


def joint(model: VAE, truth: PoseSet) -> Shown:
    """`joint_vae`, `joint_rvae`: a row of the picture for each class found."""
    codes = model.fit_transform(truth.images)
    found = columns(model, codes, "class").argmax(axis=1)
    _, true, order = match_classes(found, truth.kind)
    images, values = [], []
    for k in order:
        drawn = draw_traversals(model, 9, codes, class_index=int(k))
        most = int(np.ptp(drawn.images[:2], axis=1).mean(axis=(1, 2)).argmax())
        images.append(drawn.images[most])
        values.append(drawn.values[most])
    named = [SUITS[int(t)] for t, _ in zip(true, order, strict=False)]
    figure = traversal_figure(np.stack(images), np.stack(values), named)
    return figure, (
        f"Without a label, {100 * clustering_accuracy(found, truth.kind):.1f} % of the cards fall into a class of their "
        "own suit. A row for each class, along the latent that changes it most."
    )


def joint_vae(n: int, config: VaeConfig) -> Shown:
    return joint(presets.joint_vae(config=config), cards(n, SIZE_PX, rotation_deg=12, shear=0.2, noise=0.05))


def joint_rvae(n: int, config: VaeConfig) -> Shown:
    truth = cards(n, SIZE_PX, rotation_deg=120, shear=0.2, shift_px=1, noise=0.05)
    return joint(presets.joint_rvae(range_deg=120, config=config), truth)


def ensemble(n: int, config: VaeConfig) -> Shown:
    truth = cards(n // 2, SIZE_PX // 2, rotation_deg=30, shear=0.2, noise=0.2)
    curve = uncertainty_by_classes(
        presets.joint_rvae(4, range_deg=30, config=config), truth.images, (2, 3, 4, 5, 6)
    )
    agreed = ", ".join(f"{k}: {a:.2f}" for k, a in zip(curve["classes"], curve["agreement"], strict=True))
    return classes_figure(curve), (
        f"Four suits; three members for each number of classes. Votes that agree, by number of classes: {agreed}."
    )


def lattice_symmetry(n: int, config: VaeConfig) -> Shown:
    """Few and noisy patches of an atom with six alike neighbours."""
    few, noise = n // 10, 1.5
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, SIZE_PX)
    x, y = np.meshgrid(axis, axis)
    turn = rng.uniform(-30, 30, few)
    clean = np.tile(np.exp(-(x**2 + y**2) / 0.05), (few, 1, 1))
    for k in range(6):
        u, v = 0.6 * np.cos(np.deg2rad(turn + 60 * k)), -0.6 * np.sin(np.deg2rad(turn + 60 * k))
        clean += np.exp(-((x - u[:, None, None]) ** 2 + (y - v[:, None, None]) ** 2) / 0.05)
    images = (clean + noise * rng.standard_normal(clean.shape)).astype(np.float32)
    # As many steps as the others take, on a tenth of the patches.
    longer = replace(config, epochs=10 * config.epochs)
    # All rows share one grey scale, in which the noise would hide the rest.
    drawn, told = [images[:10] / 4, clean[:10].astype(np.float32)], []
    for terms in ((), (symmetric(6),)):
        errors, angles = [], []
        for seed in range(5):
            model = VAE([Rotation(30), Translation(0.5), Continuous(1)], longer, seed, terms=terms)
            codes = model.fit_transform(images)
            found = model.inverse_transform(codes)
            errors.append(float(np.sqrt(np.mean((found - clean) ** 2))))
            angles.append(float(angle_error(codes[:, 0], turn, 6).mean()))
        drawn.append(found[:10])
        told.append(
            f"{np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f} of it (angles by {np.mean(angles):.1f} ± "
            f"{np.std(angles, ddof=1):.1f}°)"
        )
    figure = traversal_figure(
        np.stack(drawn), np.tile(turn[:10], (4, 1)), ("patch / 4", "truth", "free", "symmetric")
    )
    return figure, (
        f"{few} patches of an atom with six alike neighbours, noise of {noise} times its height, five seeds. The drawn patches "
        f"differ from the noise-free truth by {told[1]} with `symmetric(6)`, by {told[0]} without it (root mean square). "
        "Below: true angles, °."
    )


def ordered_by_dose(n: int, config: VaeConfig) -> Shown:
    truth = motifs(n, SIZE_PX // 2, 180, 1.0)
    dose = truth.content[:, 1]
    measured = []
    for terms in ((), (follows(dose, latent=0),)):
        model = VAE([Rotation(), Translation(1.5), Continuous(2)], config, terms=terms)
        z = columns(model, model.fit_transform(truth.images), "z")
        measured.append((float(np.corrcoef(z[:, 0], dose)[0, 1]), float(np.corrcoef(z[:, 1], dose)[0, 1])))
    figure = latent_scatter(dose, z[:, 0], truth.images, names=("dose", "z1"))
    return figure, (
        "A neighbour moves away with the dose, which is known. `follows(dose)`: correlation of z1 with it "
        f"{measured[1][0]:.2f} (of z2 {measured[1][1]:.2f}); without the term {measured[0][0]:.2f} and {measured[0][1]:.2f}."
    )


#: Title, what it is, how to measure it.
MODELS: tuple[tuple[str, str, Callable[[int, VaeConfig], Shown]], ...] = (
    ("ae", "A code of two numbers without a prior. Cards turned by up to ± 60°.", ae),
    ("vae", "The same with a prior: codes fill one smooth plane.", vae),
    ("shift_vae", "Takes the shift out; also for patches cut on a grid.", shift_vae),
    ("rvae", "Takes rotation and shift out: every patch, as drawn again, and upright.", rvae),
    ("rvae(scale=0.15)", "Takes the magnification out as well. A row for each latent.", scale),
    ("conditional_vae", "One latent space for each suit.", conditional_vae),
    ("conditional_rvae", "A number (dose, time, voltage) is told.", conditional_rvae),
    ("semi_supervised_rvae", "Classes, of which a few are known.", semi_supervised_rvae),
    ("regression_rvae", "A number, of which a few are known.", regression_rvae),
    ("joint_vae", "Unknown classes beside a continuous code.", joint_vae),
    ("joint_rvae", "The same, however the patches are turned.", joint_rvae),
    ("Ensemble", "How many classes do the patches support?", ensemble),
    ("terms.symmetric", "What physics knows: the symmetry of the lattice.", lattice_symmetry),
    ("terms.follows", "What physics knows: an order by dose or time.", ordered_by_dose),
)


def main(n: int = 1000, epochs: int = 20, *only: str) -> None:
    sections = [
        f"{n} generated patches each (`simulate.shapes`), {epochs} epochs, one seed: for the eye. Over seeds: "
        "`benchmarks/latent.py`, [classes](latent_classes.md), [a graphene movie](graphene_movie.md)."
    ]
    pictures = DOCS.parent / "images"
    for name, what, measure in MODELS:
        if only and name not in only:
            continue
        figure, numbers = measure(n, VaeConfig(epochs=epochs))
        file = f"latent-{name.split('(')[0].replace('.', '-').replace('_', '-').lower()}"
        file += "-scale" if "scale" in name else ""
        (pictures / f"{file}.png").write_bytes(
            figure_png(figure, {"synthetic": True, "generator": "benchmarks/latent_models.py", "model": name})
        )
        print(name, numbers, flush=True)
        sections += [f"## `{name}`", f"{what} {numbers}", f"![{name}](../images/{file}.png)"]
    if not only:
        publish("latent_models", "The latent models, one by one", sections, ["torch", "scikit-learn"])


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    main(*(numbers + [1000, 20][len(numbers) :]), *(a for a in sys.argv[1:] if not a.isdigit()))
