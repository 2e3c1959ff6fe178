"""The report of `explore`: maps, order parameters, courses over time, and how far to trust them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from micrographia.bonds import RING_LABELS
from micrographia.errors import UserError
from micrographia.latent.compare import Components, ica, nmf, pca, tsne, umap
from micrographia.latent.ensemble import Ensemble
from micrographia.latent.manifold import draw_manifold, draw_traversals, draw_upright
from micrographia.latent.vae import columns_of
from micrographia.plots import figures
from micrographia.plots.colouring import (
    Colouring,
    by_angle,
    by_class,
    by_small_angle,
    by_value,
    circular_mean,
)
from micrographia.plots.comparison import comparison_figure
from micrographia.plots.courses import populations_figure, time_histograms
from micrographia.plots.latent import latent_scatter, manifold_figure, reconstruction_sheet, traversal_figure
from micrographia.plots.maps import movie_sheet, site_map
from micrographia.plots.matrices import confusion_figure, transition_figure
from micrographia.plots.scatter_html import write_scatter_html
from micrographia.workflows.explore import Exploration
from micrographia.workflows.explore_recipe import ExploreRecipe
from micrographia.workflows.report import Report, Section
from micrographia.workflows.runfolder import RunFolder

#: Patches on which other descriptors are compared, and images whose maps are shown.
COMPARED, SHOWN = 2000, 3


def write_explore_report(run: RunFolder, found: Exploration, recipe: ExploreRecipe) -> None:
    """Write ``report.html`` and the interactive ``latent.html``."""
    config, m = recipe.latent, found.metrics
    report = Report(
        f"Structure in {m['frames']} {'frames' if found.series else 'images'}",
        f"recipe {recipe.name}, {config.model}, window {recipe.patches.window_A:g} Å, seed {recipe.seed}",
    )
    with_patch = found.sites.loc[found.sites.index[found.patches.rows]]
    latents = [c for c in with_patch if c.startswith("z") and c[1:].isdigit()]

    top = report.section("Where it is")
    top.text(
        f"{m['atoms']} sites at {m['pixel_size_A']:.4g} Å per pixel; {m['patches']} of them have a whole window "
        f"({found.patches.size_px} px), {m['dropped_at_the_edge']} are too near the edge. Every site with its latents is "
        "in atoms.csv. Angles are counter-clockwise, from what the model took for upright."
    )
    for column in ["cluster", "value", *latents, "angle_deg", "ring_label"]:
        if column in with_patch and (column != "ring_label" or found.rings is not None):
            _map(top, found, with_patch, column, recipe)

    space = report.section("What varies")
    made = {"generator": config.model, "model": "model.safetensors", "trained_with_seed": recipe.seed}
    _latent_space(space, found, with_patch, latents, config.condition, made)
    if recipe.embedding != "none":
        _embedded(space, found, with_patch, latents, recipe)
    if len(latents) > 1:
        colour = "cluster" if "cluster" in with_patch else latents[0]
        page = with_patch.drop(columns=[c for c in ("image", "kind") if with_patch[c].nunique() < 2])
        write_scatter_html(
            found.folder / "latent.html",
            page,
            found.patches.images,
            latents[0],
            latents[1],
            colour,
            report.title,
        )
        space.text("latent.html, beside this page, shows every patch under the mouse.")

    if found.series:
        _courses(report.section("Over time"), found, with_patch, latents, recipe)
    _trust(report.section("How far to trust it"), found, with_patch)
    if recipe.compare:
        _comparison(report.section("Other descriptors of the same patches"), found, recipe)
    report.write(found.folder / "report.html")


def _map(
    section: Section, found: Exploration, sites: pd.DataFrame, column: str, recipe: ExploreRecipe
) -> None:
    """Show one column on the images, or on frames through the movie."""
    colouring = _colouring(sites[column], column, recipe.latent.symmetry)
    size_A = found.images[0].pixel_size_A
    if found.series:
        frames = np.stack([image.data for image in found.images])
        section.figure(
            f"map-{column}",
            movie_sheet(frames, sites, column, colouring, size_A),
            f"{column} through the movie",
        )
        return
    for i in range(min(len(found.images), SHOWN)):
        image, own = found.images[i], sites[sites["frame"] == i]
        name = "" if len(found.images) == 1 else f"-{i}"
        section.figure(
            f"map-{column}{name}",
            site_map(image.data, own, column, colouring, image.pixel_size_A, image.name),
            f"{column}, {image.name}",
        )


def _colouring(values: pd.Series, column: str, symmetry: int) -> Colouring:
    if column == "cluster":
        return by_class(sorted(int(v) for v in values.dropna().unique()), "cluster")
    if column == "ring_label":
        return by_class([label for label in RING_LABELS if (values == label).any()], "rings")
    if column != "angle_deg":
        return by_value(values.to_numpy(), column)
    angle, turn = values.dropna().to_numpy(), 360 / symmetry
    away = np.mod(angle - circular_mean(angle, symmetry) + turn / 2, turn) - turn / 2
    span = 1.2 * float(np.quantile(np.abs(away), 0.9))
    if span > 0.3 * turn:
        return by_angle(symmetry=symmetry)
    # Grains a few degrees apart would have one colour on the whole circle.
    return by_small_angle(angle, symmetry=symmetry, span_deg=span)


def _latent_space(
    section: Section,
    found: Exploration,
    sites: pd.DataFrame,
    latents: list[str],
    given: str,
    made: dict[str, Any],
) -> None:
    model, images = found.first_member, found.patches.images
    typical = None if found.condition is None else np.median(found.condition, keepdims=True)
    told = "" if typical is None else f", at {given} = {typical[0]:g}"
    if found.condition is not None and found.condition.dtype.kind == "i":
        typical = np.bincount(found.condition).argmax()
        told = f", at {given} = {sites[given].iloc[int(np.flatnonzero(found.condition == typical)[0])]}"
    if len(latents) > 1:
        classes = len(columns_of(model.get_feature_names_out(), "class"))
        for k in range(max(classes, 1)):
            drawn = draw_manifold(model, codes=found.codes, condition=typical, class_index=k)
            name, of = (f"manifold-{k}", f", class {k}") if classes else ("manifold", "")
            section.figure(
                name,
                manifold_figure(drawn.images, drawn.values, drawn.names),
                f"What the model draws over the plane of {latents[0]} and {latents[1]}, upright{told}{of}",
                made,
            )
        colour = "cluster" if "cluster" in sites else None
        section.figure(
            "scatter",
            latent_scatter(
                sites[latents[0]].to_numpy(), sites[latents[1]].to_numpy(), images,
                sites[colour].to_numpy(int) if colour else None,
                _colouring(sites[colour], colour, 1) if colour else None,
            ),
            "Every patch in latent space, with examples",
        )  # fmt: skip
    drawn = draw_traversals(model, codes=found.codes, condition=typical)
    section.figure(
        "traversals",
        traversal_figure(drawn.images, drawn.values, drawn.names),
        f"Each latent by itself{told}",
        made,
    )
    some = np.linspace(0, len(images) - 1, min(len(images), 12)).astype(int)
    condition = None if found.condition is None else found.condition[some]
    upright = draw_upright(model, found.codes[some], condition) if "angle_deg" in sites else None
    angle = sites["angle_deg"].to_numpy()[some] if "angle_deg" in sites else None
    section.figure(
        "reconstructions",
        reconstruction_sheet(
            images[some], model.inverse_transform(found.codes[some], condition), upright, angle
        ),
        "Patches and what the model draws of them",
        made,
    )


def _embedded(
    section: Section, found: Exploration, sites: pd.DataFrame, latents: list[str], recipe: ExploreRecipe
) -> None:
    some = np.linspace(0, len(sites) - 1, min(len(sites), COMPARED)).astype(int)
    embed, name = {"tsne": (tsne, "t-SNE"), "umap": (umap, "UMAP")}[recipe.embedding]
    try:
        place = embed(sites[latents].to_numpy()[some], seed=recipe.seed)
    except UserError as error:  # what was learnt is not lost for want of a picture
        section.warning(str(error))
        return
    cluster = sites["cluster"].iloc[some] if "cluster" in sites else None
    section.figure(
        "embedding",
        latent_scatter(
            place[:, 0], place[:, 1], found.patches.images[some],
            None if cluster is None else cluster.to_numpy(int),
            None if cluster is None else _colouring(cluster, "cluster", 1),
            (f"{name} 1", f"{name} 2"),
        ),
        f"{len(latents)} latents in a plane by {name}; distances between far groups mean nothing",
    )  # fmt: skip


def _courses(
    section: Section, found: Exploration, sites: pd.DataFrame, latents: list[str], recipe: ExploreRecipe
) -> None:
    columns = [c for c in ("angle_deg", *latents) if c in sites]
    section.figure(
        "courses",
        time_histograms(sites, columns, symmetry=recipe.latent.symmetry),
        "Latents and angle, frame by frame",
    )
    if "cluster" in sites:
        section.figure("populations", populations_figure(sites), "Share of the clusters")
    if found.transitions is not None:
        names = list(found.transitions.index)
        section.figure(
            "transitions",
            transition_figure(found.transitions.to_numpy(), names),
            "How often an atom of one cluster (row) is of another (column) in the next frame",
        )
    if found.rings is not None:
        labelled = sites[~sites["border"].astype(bool)]
        if len(labelled):
            section.figure(
                "ring-labels", populations_figure(labelled, "ring_label"), "Share of the ring labels"
            )
        step = max(1, len(found.rings) // 12)
        section.table(found.rings.iloc[::step], "Rings, holes and labels; all frames are in rings.csv")


def _trust(section: Section, found: Exploration, sites: pd.DataFrame) -> None:
    m = found.metrics
    told = f"The model draws {100 * m['explained']:.0f} % of the patches' variance"
    if "explained_by_pca" in m:
        told += f"; as many principal components, {100 * m['explained_by_pca']:.0f} %"
    section.text(
        f"{told} ({m['checked_patches']} patches). What is missing is noise, or structure it does not know."
    )
    if "angle_leak_r2" in m:
        section.text(
            f"R² of the angle, predicted from the content by nearest neighbours: {m['angle_leak_r2']:.2f}. At or below 0.05, "
            "the content does not know how a patch was turned."
        )
        if m["angle_leak_r2"] > 0.2:
            section.warning(
                "Rotation leaks into the latents: the same structure, turned, has another code. Train longer "
                "(latent.steps), or check latent.range_deg."
            )
    if "cluster_ring_mutual_information" in m:
        section.text(
            "Adjusted mutual information of clusters and ring labels: "
            f"{m['cluster_ring_mutual_information']:.2f} (1: the same, 0: unrelated)."
        )
    if found.confusion is not None:
        section.figure(
            "confusion",
            confusion_figure(found.confusion.to_numpy(), found.confusion.index, found.confusion.columns),
            "The labelled atoms: label (true) and class found. The model has learnt from these labels, so this does not tell "
            "how it does on others; where it differs even here, look at the label again",
        )
    if isinstance(found.model, Ensemble):
        spread = sites[[c for c in sites if c.startswith("std_") or c in ("entropy", "mutual_information")]]
        section.table(
            spread.describe().loc[["mean", "50%", "max"]],
            f"Spread between {found.model.members} trainings, over patches",
        )
    for i, course in found.history.groupby("member"):
        name = "training" if found.history["member"].nunique() == 1 else f"training-{i}"
        section.figure(
            name,
            figures.loss_figure(course.drop(columns="member")),
            f"Course of the training{'' if name == 'training' else f' {i}'}",
        )


def _comparison(section: Section, found: Exploration, recipe: ExploreRecipe) -> None:
    """Components of the patches, and the classes that GMM, AE and rVAE find, on the image with most atoms."""
    patches = found.patches
    some = np.linspace(0, len(patches) - 1, min(len(patches), COMPARED)).astype(int)
    images = patches.images[some]
    n = recipe.latent.latents
    if len(some) <= n:
        return
    parts = {"PCA": pca(images, n), "NMF": nmf(images, n, recipe.seed), "ICA": ica(images, n, recipe.seed)}
    rows = [{"components": name, "number": n, "explained": p.explained} for name, p in parts.items()]
    rows.append({"components": recipe.latent.model, "number": n, "explained": found.metrics["explained"]})
    section.table(pd.DataFrame(rows), "Share of the patches' variance that is reproduced")
    section.figure("components", _components_figure(parts), "Components")
    if not found.descriptors:
        return
    frame = found.crowded_frame
    place, image = patches.sites[patches.sites["frame"] == frame], found.images[frame]
    section.figure(
        "descriptors",
        comparison_figure(
            image.data, place["x_px"].to_numpy(), place["y_px"].to_numpy(),
            [(d.method, d.window, d.labels, d.means) for d in found.descriptors], image.pixel_size_A,
        ),
        f"Classes of the atoms of {image.name} by a mixture on the patches, on an autoencoder's code, and on an rVAE's",
    )  # fmt: skip


def _components_figure(parts: dict[str, Components]):
    n = max(len(p.pictures) for p in parts.values())
    pictures = np.stack([p.pictures for p in parts.values()])
    # Each picture by its own contrast: the scale of a component means nothing.
    pictures = pictures / np.abs(pictures).max(axis=tuple(range(2, pictures.ndim)), keepdims=True).clip(1e-12)
    numbers = np.tile(np.arange(1, n + 1), (len(parts), 1))
    return traversal_figure(pictures, numbers, list(parts))
