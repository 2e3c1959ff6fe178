"""The journey `explore`: images -> atoms -> patches -> latent model -> maps and courses over time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from micrographia.atoms.cut import AtomPatches, cut_grid, cut_patches_around
from micrographia.atoms.draw import draw_positions
from micrographia.atoms.find import find_atoms
from micrographia.atoms.frames import as_frames, frame_numbers
from micrographia.atoms.refine import refine_com, refine_gaussian
from micrographia.atoms.track import link_atoms, transition_matrix
from micrographia.bonds import label_rings
from micrographia.errors import UserError
from micrographia.latent import presets
from micrographia.latent.blocks import Translation
from micrographia.latent.compare import Description, compare_descriptors, gmm, pca
from micrographia.latent.ensemble import Ensemble
from micrographia.latent.vae import VAE, columns_of
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.sites import concat_sites, read_sites, write_sites
from micrographia.training.checkpoint import data_fingerprint
from micrographia.training.device import choose_device, set_threads
from micrographia.training.distributed import alone
from micrographia.workflows.explore_recipe import ExploreRecipe, LatentConfig
from micrographia.workflows.runfolder import RunFolder, file_fingerprint, versions
from micrographia.workflows.scale import ScaleRule, decide_scale, read_experiment
from micrographia.workflows.stages import images_key

Say = Callable[[str], None]
#: Atoms on which the checks of the latents are made, evenly spaced: enough for two digits.
CHECKED = 4000
#: Names of columns that hold what a latent model has found.
RESULT = re.compile(r"z\d+|angle_deg|shift_[xy]_px|scale|value|class|cluster|cluster_probability|std_\w+")
#: Frames of a movie differ in (measured) pixel size by less than this factor.
ALIKE = 1.1


@dataclass(frozen=True)
class Exploration:
    """Everything a run has found, and what its report shows."""

    images: list[Micrograph]
    series: bool
    sites: pd.DataFrame
    """All atoms; the latents of those whose window leaves the image are NaN."""
    patches: AtomPatches
    model: VAE | Ensemble
    codes: np.ndarray
    """``[N, D]``, as the model's `transform` returns them."""
    condition: np.ndarray | None
    history: pd.DataFrame
    """Course of the training, by ``member``."""
    rings: pd.DataFrame | None
    """Ring statistics by frame."""
    transitions: pd.DataFrame | None
    confusion: pd.DataFrame | None
    """How many of the labelled atoms with the label of a row were found to be of the class of a column."""
    metrics: dict[str, Any]
    folder: Path
    descriptors: list[Description] = field(default_factory=list)
    """The atoms of the frame that shows most of them (`crowded_frame`) by GMM, AE and rVAE; empty if not asked for."""

    @property
    def crowded_frame(self) -> int:
        """The frame with most patches."""
        return int(self.patches.sites["frame"].value_counts().idxmax())

    @property
    def first_member(self) -> VAE:
        """The model itself, or the member in whose language the ensemble speaks."""
        return self.model.members_[self.model.reference_] if isinstance(self.model, Ensemble) else self.model


def explore(
    images: Sequence[Path | str],
    recipe: ExploreRecipe,
    out: str | Path,
    sites: str | Path | None = None,
    resume: bool = False,
    say: Say = print,
) -> Exploration:
    """Find atoms, learn what varies between their surroundings, and map it back.

    Parameters
    ----------
    images : files, folders or patterns
        The frames of a movie, or single images.
    recipe : ExploreRecipe
    out : path
        The run folder. Afterwards it holds ``atoms.csv`` (every atom with its latents), ``metrics.json``,
        ``report.html``, ``latent.html`` (interactive), the model and the recipe.
    sites : path, optional
        Table of sites to use instead of finding atoms; a column ``label`` (empty = unknown) teaches the
        semi-supervised model, a column ``value`` the regression, any other can be a condition.
    resume : bool
        Continue an earlier run of the same recipe.
    say : callable
        Told what is going on.

    Raises
    ------
    UserError
        Nothing readable, no pixel size, no atoms, a window larger than the images, labels or conditions that are
        missing, or a run folder of something else.
    """
    from micrographia.workflows.explore_report import write_explore_report

    alone("explore")
    set_threads()
    device = choose_device(recipe.device)
    own_sites = None if sites is None else read_sites(sites)
    micrographs, failures = read_experiment(images, recipe.pixel_size_A, say)
    decided, without_scale = decide_scale(micrographs, ScaleRule.of(recipe), say)
    failures += without_scale
    if failures and own_sites is not None and "frame" in own_sites:
        raise UserError(
            f"{len(failures)} images could not be used, so that the column frame of {sites} no longer fits; remove them, "
            "or name the images (column image) instead."
        )
    scaled = [s.image for s in decided]
    series = _is_series(scaled, recipe)
    if recipe.patches.time_stack > 1 and not series:
        raise UserError("patches.time_stack needs the frames of a movie; set series = yes if they are.")
    if series:  # one magnification for all frames, whatever each frame's lattice says
        size_A = float(np.median([m.pixel_size_A for m in scaled]))
        scaled = [m.with_pixel_size(size_A, m.pixel_size_source) for m in scaled]
    if own_sites is not None:
        own_sites = _of_these(own_sites, scaled, say)
    _check_before(scaled, own_sites, recipe)
    run = RunFolder(out, recipe, resume)
    told = f"{len(scaled)} frames of a movie" if series else f"{len(scaled)} images"
    say(f"{told}, device {device}, run folder {run.path}")
    say(f"{scaled[0].name}: {scaled[0].pixel_size_A:.4g} Å per pixel ({scaled[0].pixel_size_source})")

    key = images_key(scaled)
    given = "" if sites is None else file_fingerprint(Path(sites))
    run.require_inputs({"images": key, "sites": given})
    table, rings = _atoms_stage(run, scaled, own_sites, recipe, series, {"images": key, "sites": given}, say)
    patches = _patches(scaled, table, recipe, series)
    dropped = f", {patches.dropped} too near the edge" if patches.dropped else ""
    dropped += f", {patches.without_next} without the frames after them" if patches.without_next else ""
    say(f"{len(patches)} patches of {patches.size_px} px ({patches.window_A:g} Å){dropped}")
    labels, condition, names = _known(patches.sites, recipe.latent)
    model, codes, history = _model_stage(run, patches, recipe, labels, condition, say)
    table = _with_latents(table, patches, model, codes, recipe, names, condition)
    confusion = None
    if labels is not None and names:
        classes = table["class"].to_numpy()[patches.rows]
        counts = pd.crosstab(labels[labels >= 0], classes[labels >= 0])
        confusion = counts.reindex(index=range(len(names)), columns=names, fill_value=0).set_axis(names)
    transitions = None
    if series and {"track", "cluster"} <= set(table):
        try:
            transitions = transition_matrix(table, "cluster", counts=True)
        except UserError as none:
            say(f"no transitions: {none}")
    metrics = judge_latents(patches, model, codes, table, condition, recipe)
    metrics |= {
        "atoms": len(table), "patches": len(patches), "dropped_at_the_edge": patches.dropped, "without_next_frames": patches.without_next,
        "frames": len(scaled), "series": series, "pixel_size_A": scaled[0].pixel_size_A,
        "images_left_out": [[str(p), reason] for p, reason in failures],
        "versions": versions(), "seed": recipe.seed,
    }  # fmt: skip
    write_sites(table, run.path / "atoms.csv")
    if rings is not None:
        run.write_text("rings.csv", rings.to_csv(index=False))
    run.write_json("metrics.json", metrics)
    found = Exploration(
        scaled,
        series,
        table,
        patches,
        model,
        codes,
        condition,
        history,
        rings,
        transitions,
        confusion,
        metrics,
        run.path,
    )
    if recipe.compare:
        found.descriptors.extend(_descriptors_stage(run, found, recipe, say))
    write_explore_report(run, found, recipe)
    say(f"{len(table)} atoms; open {run.path / 'report.html'}")
    return found


def _of_these(sites: pd.DataFrame, images: Sequence[Micrograph], say: Say) -> pd.DataFrame:
    """The sites of these images, where a table tells of others, too."""
    if "frame" in sites or "image" not in sites:
        return sites
    here = sites["image"].isin([m.name for m in images])
    if here.all() or not here.any():
        return sites
    say(f"{(~here).sum()} of {len(sites)} sites are in other images and left out")
    return sites[here].reset_index(drop=True)


def _check_before(images: Sequence[Micrograph], sites: pd.DataFrame | None, recipe: ExploreRecipe) -> None:
    """What can be known to be impossible before a run folder is begun."""
    for image in images:
        edge_A = min(image.shape) * float(image.pixel_size_A or np.nan)
        if recipe.patches.window_A > edge_A:
            raise UserError(
                f"{image.name}: the window of {recipe.patches.window_A:g} Å is larger than the image ({edge_A:.3g} Å, "
                f"{min(image.shape)} px); lower patches.window_A (--window), or check the pixel size."
            )
    if sites is not None:
        frame_numbers(sites, as_frames(images))
    if recipe.latent.model in ("semi_supervised_rvae", "regression_rvae"):
        _known(pd.DataFrame() if sites is None else sites, recipe.latent)


def _is_series(images: Sequence[Micrograph], recipe: ExploreRecipe) -> bool:
    alike = len({m.shape for m in images}) == 1
    if recipe.series == "yes" and not alike:
        raise UserError("series = yes: the frames of a movie must have one size; these differ.")
    sizes = [float(m.pixel_size_A or np.nan) for m in images]
    steady = max(sizes) < ALIKE * min(sizes)
    if recipe.series == "yes" and not steady:
        raise UserError(
            f"series = yes: the frames of a movie must have one pixel size; these have {min(sizes):.4g} to "
            f"{max(sizes):.4g} Å. Give it with --pixel-size."
        )
    return recipe.series == "yes" or (recipe.series == "auto" and alike and steady and len(images) > 2)


def _atoms_stage(
    run: RunFolder,
    images: list[Micrograph],
    own: pd.DataFrame | None,
    recipe: ExploreRecipe,
    series: bool,
    inputs: dict[str, str],
    say: Say,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Table of all sites with ``frame`` (and ``ring``, ``track``), and the ring statistics."""
    config = recipe.atoms

    def work(folder: Path) -> None:
        if own is not None:
            table = own.assign(frame=frame_numbers(own, as_frames(images)))
        elif config.find == "grid":
            grids = [cut_grid(m, recipe.patches.window_A, config.grid_A).sites for m in images]
            table = concat_sites(grid.assign(frame=i) for i, grid in enumerate(grids))
        else:
            table = find_atoms(
                images, config.scale_A, config.min_distance_A or None, method=config.find, dark=config.dark
            )
            if not len(table):
                raise UserError(
                    f"No atoms were found in {images[0].name}"
                    f"{f' and {len(images) - 1} more' if len(images) > 1 else ''}; check the pixel size and "
                    "atoms.scale_A, set atoms.dark = true for dark atoms, or cut patches on a grid (atoms.find = grid)."
                )
            if config.refine == "gaussian":
                table = refine_gaussian(images, table, dark=config.dark, shape="round")
            elif config.refine == "mass":
                table = refine_com(images, table, dark=config.dark)
        size_A = float(images[0].pixel_size_A or np.nan)
        if config.bond_A and config.find != "grid":
            # Positions at one scale, should the images have several.
            moved = _resampled(table, _zooms(images, size_A))
            labelled, rings = label_rings(moved, size_A, config.bond_A)
            table = labelled.assign(x_px=table["x_px"], y_px=table["y_px"])
            rings.to_csv(folder / "rings.csv", index=False)
        if series and recipe.track_A and config.find != "grid":
            table = link_atoms(table, recipe.track_A, size_A)
        write_sites(table, folder / "sites.csv")

    settings = {"atoms": asdict(config), "series": series, "track_A": recipe.track_A}
    if config.find == "grid":
        settings["window_A"] = recipe.patches.window_A
    folder = run.stage("atoms", inputs | settings, work, say)
    table = read_sites(folder / "sites.csv")
    if "ring_label" in table:  # "0" alone would be read as a number
        table["ring_label"] = table["ring_label"].astype(str)
    rings = folder / "rings.csv"
    return table, pd.read_csv(rings) if rings.exists() else None


def _patches(
    images: list[Micrograph], table: pd.DataFrame, recipe: ExploreRecipe, series: bool
) -> AtomPatches:
    """Cut the windows, from images brought to a sampling at which a window has about `size_px` pixels."""
    config = recipe.patches
    finest = max(float(m.pixel_size_A or 0) for m in images)
    sampling_A = max(config.window_A / config.size_px, finest)
    zoom = _zooms(images, sampling_A)
    moved = _resampled(table, zoom)
    frames: list[Micrograph] | np.ndarray
    if config.of == "positions":
        frames = _drawn(images, moved, zoom, recipe.atoms.scale_A / sampling_A)
    else:
        scaled = images
        if recipe.latent.network.loss == "gaussian":  # counts and probabilities keep their units
            # A movie by one scale: by its own, a frame in which a hole has opened would be brighter everywhere.
            whole = robust_scale(np.stack([m.data for m in images]))[1:] if series else None
            scaled = [m.with_data(_scaled(m.data, whole), "scaled") for m in images]
        frames = [m.resampled(sampling_A) for m in scaled]
    cut = cut_patches_around(
        frames,
        moved,
        config.window_A,
        config.time_stack,
        pixel_size_A=sampling_A if config.of == "positions" else None,
    )
    if recipe.latent.network.loss != "gaussian" and config.of == "image":
        # Interpolation overshoots at edges; there are no negative counts, and no probabilities above 1.
        low, high = min(m.data.min() for m in images), max(m.data.max() for m in images)
        cut = replace(cut, images=cut.images.clip(low, high))
    return replace(cut, sites=table.iloc[cut.rows].reset_index(drop=True))


def _zooms(images: Sequence[Micrograph], sampling_A: float) -> np.ndarray:
    """By what each image's pixel coordinates are multiplied to count in pixels of `sampling_A`."""
    return np.array([float(m.pixel_size_A or np.nan) / sampling_A for m in images])


def _resampled(sites: pd.DataFrame, zoom: np.ndarray) -> pd.DataFrame:
    own = zoom[sites["frame"]]
    return sites.assign(x_px=sites["x_px"] * own, y_px=sites["y_px"] * own)


def _drawn(images: list[Micrograph], sites: pd.DataFrame, zoom: np.ndarray, sigma_px: float) -> np.ndarray:
    """The atoms of all images as spots, ``[N, K, H, W]``."""
    shapes = {tuple(int(np.ceil(n * z)) for n in m.shape) for m, z in zip(images, zoom, strict=True)}
    if len(shapes) > 1:
        raise UserError("patches.of = positions needs images of one size; run the others by themselves.")
    kinds = sorted(sites["kind"].unique())
    out = np.zeros((len(images), len(kinds), *shapes.pop()), np.float32)
    for i, own in sites.groupby("frame"):
        out[i, np.isin(kinds, own["kind"])] = draw_positions(own, (out.shape[2], out.shape[3]), sigma_px)
    return out


def _scaled(image: np.ndarray, whole: tuple[float, float] | None) -> np.ndarray:
    if whole is None:
        return robust_scale(image)[0]
    offset, scale = whole
    return (image - offset) / scale


def _known(
    sites: pd.DataFrame, config: LatentConfig
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Labels (-1 = unknown) or values (NaN = unknown), and condition of each patch; the names of the classes."""
    labels, condition, names = None, None, []
    if config.model == "semi_supervised_rvae":
        if "label" not in sites:
            raise UserError(
                "semi_supervised_rvae needs micrographia explore --sites FILE with a column 'label', empty where unknown."
            )
        if pd.api.types.is_float_dtype(sites["label"]) and (sites["label"].dropna() % 1 == 0).all():
            sites = sites.assign(label=sites["label"].astype("Int64"))  # whole numbers with gaps
        known = sites["label"].notna() & (sites["label"].astype(str) != "")
        names = sorted(sites.loc[known, "label"].astype(str).unique())
        if len(names) < 2:
            raise UserError(f"The column 'label' names {len(names)} classes; at least 2 are needed.")
        labels = pd.Categorical(sites["label"].astype(str).where(known), names).codes.astype(int)
    if config.model == "regression_rvae":
        if "value" not in sites:
            raise UserError(
                "regression_rvae needs micrographia explore --sites FILE with a column 'value', empty where unknown."
            )
        labels = np.array(pd.to_numeric(sites["value"].replace("", np.nan), errors="coerce"), np.float64)
        text = sites["value"].notna() & (sites["value"].astype(str) != "") & ~np.isfinite(labels)
        if text.any():
            raise UserError(
                f"The column 'value' holds '{sites.loc[text, 'value'].iloc[0]}', which is no finite number."
            )
    if config.model.startswith("conditional"):
        if config.condition not in sites:
            raise UserError(
                f"The sites have no column '{config.condition}' for latent.condition; they have "
                f"{', '.join(map(str, sites.columns))}."
            )
        column = sites[config.condition]
        if column.isna().any():
            raise UserError(f"The column '{config.condition}' is empty for {int(column.isna().sum())} sites.")
        if pd.api.types.is_numeric_dtype(column):
            condition = column.to_numpy(np.float32)
        else:
            condition = np.unique(column.astype(str), return_inverse=True)[1]
    return labels, condition, names


def build_model(
    config: LatentConfig,
    classes: int,
    given: int,
    window_px: float,
    pixel_size_A: float,
    seed: int,
    device: str,
) -> VAE:
    """Build the latent model that a recipe names.

    Parameters
    ----------
    classes, given : int
        Classes of joint and semi-supervised models; numbers (or labels) that a conditional model is told.
    window_px, pixel_size_A : float
        Of the patches; a prior of the shift wider than a quarter of the window would move the object out of it.
    """
    prior_px = _prior_px(config, window_px, pixel_size_A)
    pose: dict[str, Any] = {"range_deg": config.range_deg, "prior_px": prior_px, "scale": config.scale}
    rest: dict[str, Any] = {"config": config.network, "seed": seed, "device": device}
    n = config.latents
    match config.model:
        case "ae":
            return presets.ae(n, **rest)
        case "vae":
            return presets.vae(n, **rest)
        case "shift_vae":
            return presets.shift_vae(n, prior_px, scale=config.scale, **rest)
        case "rvae":
            return presets.rvae(n, **pose, **rest)
        case "joint_vae":
            return presets.joint_vae(classes, n, **rest)
        case "joint_rvae":
            return presets.joint_rvae(classes, n, **pose, **rest)
        case "conditional_vae":
            return presets.conditional_vae(given, n, **rest)
        case "conditional_rvae":
            return presets.conditional_rvae(given, n, **pose, **rest)
        case "semi_supervised_rvae":
            return presets.semi_supervised_rvae(classes, n, **pose, **rest)
        case "regression_rvae":
            return presets.regression_rvae(1, n, **pose, **rest)


def _prior_px(config: LatentConfig, window_px: float, pixel_size_A: float) -> float:
    return min(config.shift_A / pixel_size_A, window_px / 4)


def _in_steps(config: LatentConfig, patches: int) -> LatentConfig:
    """The settings with as many epochs as make `config.steps` of so many patches."""
    if not config.steps:
        return config
    epochs = max(1, round(config.steps / max(patches // config.network.batch, 1)))
    return replace(config, network=replace(config.network, epochs=epochs))


def _model_stage(
    run: RunFolder,
    patches: AtomPatches,
    recipe: ExploreRecipe,
    labels: np.ndarray | None,
    condition: np.ndarray | None,
    say: Say,
) -> tuple[VAE | Ensemble, np.ndarray, pd.DataFrame]:
    """Train the model on evenly spaced patches, then encode all; the third is the course of the training."""
    config = recipe.latent
    n = min(len(patches), recipe.patches.train_on)
    some = np.linspace(0, len(patches) - 1, n).astype(int)
    if labels is not None:  # every label counts
        known = labels >= 0 if labels.dtype.kind == "i" else np.isfinite(labels)
        some = np.union1d(some, np.flatnonzero(known))
    classes = config.classes
    if labels is not None and labels.dtype.kind == "i":
        classes = int(labels.max()) + 1
    given = int(condition.max()) + 1 if condition is not None and condition.dtype.kind == "i" else 1
    config = _in_steps(config, len(some))
    model: VAE | Ensemble = build_model(
        config, classes, given, patches.size_px, patches.pixel_size_A, recipe.seed, recipe.device
    )
    narrow = [b for b in model.blocks if isinstance(b, Translation) and b.prior_px < patches.size_px / 10]
    if narrow and recipe.atoms.find == "grid":
        say(
            f"windows on a grid lie anywhere on a lattice, and latent.shift_A = {config.shift_A:g} Å takes out little "
            "of that: about a third of the lattice's period takes out most"
        )
    if config.members > 1:
        model = Ensemble(model, config.members)
    kind = type(model)

    def work(folder: Path) -> None:
        say(f"{config.model}: learns from {len(some)} patches")
        model.fit(
            patches.images[some],
            None if labels is None else labels[some],
            None if condition is None else condition[some],
            folder=folder / "training",
        )
        model.save(folder / "model.safetensors")
        np.save(folder / "codes.npy", model.transform(patches.images, condition))
        members = model.members_ if isinstance(model, Ensemble) else [model]
        courses = [member.history_.assign(member=i) for i, member in enumerate(members)]
        pd.concat(courses).to_csv(folder / "history.csv", index=False)

    inputs = {
        "patches": data_fingerprint(patches.images),
        "latent": asdict(config),
        "train_on": recipe.patches.train_on,
        "labels": None if labels is None else data_fingerprint(labels),
        "condition": None if condition is None else condition.tolist(),
        "seed": recipe.seed,
    }
    folder = run.stage(config.model.replace("_", "-"), inputs, work, say)
    loaded = kind.load(folder / "model.safetensors", recipe.device)
    loaded.save(run.path / "model.safetensors")
    return loaded, np.load(folder / "codes.npy"), pd.read_csv(folder / "history.csv")


def _descriptors_stage(
    run: RunFolder, found: Exploration, recipe: ExploreRecipe, say: Say
) -> list[Description]:
    """Describe the atoms of the most crowded frame by GMM, AE and rVAE; nothing if they are too few."""
    patches = found.patches
    own = np.flatnonzero(patches.sites["frame"].to_numpy() == found.crowded_frame)
    images = patches.images[own]
    if images.ndim == 4:  # a kind of atom may be missing from this frame
        images = images[:, np.ptp(images, axis=(0, 2, 3)) > 0]
    config = _in_steps(recipe.latent, len(own))
    classes = max(config.classes, 2)
    if len(own) < max(10 * classes, config.network.batch):
        return []
    prior_px = _prior_px(config, patches.size_px, patches.pixel_size_A) or 0.5
    window = f"{patches.window_A:g} Å"

    def work(folder: Path) -> None:
        for d in compare_descriptors(
            {window: images}, classes, config.latents, config.range_deg, prior_px, config.network,
            recipe.seed, recipe.device,
        ):  # fmt: skip
            np.savez(folder / f"{d.method}.npz", labels=d.labels, codes=d.codes, means=d.means)

    inputs = {
        "patches": data_fingerprint(images),
        "latent": asdict(config),
        "seed": recipe.seed,
    }
    folder = run.stage("descriptors", inputs, work, say)
    out = []
    for method in ("GMM", "AE", "rVAE"):
        with np.load(folder / f"{method}.npz") as kept:
            out.append(Description(method, window, kept["labels"], kept["codes"], kept["means"]))
    return out


def _with_latents(
    table: pd.DataFrame,
    patches: AtomPatches,
    model: VAE | Ensemble,
    codes: np.ndarray,
    recipe: ExploreRecipe,
    names: list[str],
    condition: np.ndarray | None,
) -> pd.DataFrame:
    """Add the latents, the class or cluster, and an ensemble's spread, to the atoms that have a patch."""
    columns = list(model.get_feature_names_out())
    latents = pd.DataFrame(codes, columns=columns).drop(columns=[c for c in columns if c.startswith("class")])
    latents = latents.rename(columns={"value1": "value"})
    chances = codes[:, columns_of(columns, "class")]
    z = codes[:, columns_of(columns, "z")]
    if chances.shape[1]:
        latents["cluster"] = chances.argmax(axis=1)
        latents["cluster_probability"] = chances.max(axis=1)
        if names:
            latents["class"] = np.array(names)[chances.argmax(axis=1)]
    elif recipe.latent.classes > 1 and len(z) >= 10 * recipe.latent.classes:
        groups = gmm(z, recipe.latent.classes, recipe.seed)
        latents["cluster"] = groups.labels
        latents["cluster_probability"] = groups.probabilities.max(axis=1)
    if isinstance(model, Ensemble):
        spread = model.uncertainty(patches.images, condition)
        names_now = {"reconstruction": "std_reconstruction", "std_value1": "std_value"}
        latents = latents.join(spread.rename(columns=names_now))
    # What a table brings along under the name of a result is not one, even where this model makes none of that name.
    clash = {c for c in table if c in latents or RESULT.fullmatch(str(c))}
    table = table.drop(columns=[f"given_{c}" for c in clash if f"given_{c}" in table])
    table = table.rename(columns={c: f"given_{c}" for c in clash})
    latents.index = table.index[patches.rows]
    table = table.join(latents)
    if "cluster" in table:
        table["cluster"] = table["cluster"].astype("Int64")  # whole numbers, and none where there is no patch
    return table


def judge_latents(
    patches: AtomPatches,
    model: VAE | Ensemble,
    codes: np.ndarray,
    table: pd.DataFrame,
    condition: np.ndarray | None,
    recipe: ExploreRecipe,
) -> dict[str, Any]:
    """Check the latents: what they explain, and whether the pose leaks into the content.

    ``explained`` is the share of the patches' variance that the model draws, beside that of as many principal
    components as the model has continuous latents; ``angle_leak_r2`` the R² of the angle predicted from the content
    by nearest neighbours (cross-validated): at or below zero, there is nothing to predict from.
    """
    some = np.linspace(0, len(patches) - 1, min(len(patches), CHECKED)).astype(int)
    images = patches.images[some]
    drawn = model.reconstruct(images, None if condition is None else condition[some])
    about = images - images.mean(axis=0)
    out: dict[str, Any] = {
        "explained": float(1 - ((images - drawn) ** 2).sum() / max(float((about**2).sum()), 1e-30)),
        "checked_patches": len(some),
    }
    if len(some) > recipe.latent.latents:
        out["explained_by_pca"] = pca(images, recipe.latent.latents).explained
    columns = list(model.get_feature_names_out())
    z = codes[some][:, columns_of(columns, "z")]
    if "angle_deg" in columns and len(some) >= 100 and z.shape[1]:
        turn = np.deg2rad(codes[some, columns.index("angle_deg")]) * recipe.latent.symmetry
        target = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        standard = z / np.maximum(z.std(axis=0), 1e-12)
        predicted = cross_val_predict(KNeighborsRegressor(15), standard, target, cv=5)
        total = ((target - target.mean(axis=0)) ** 2).sum()
        out["angle_leak_r2"] = float(1 - ((predicted - target) ** 2).sum() / max(total, 1e-30))
    if {"cluster", "ring_label", "border"} <= set(table):
        both = table[table["cluster"].notna() & ~table["border"].astype(bool)]
        if len(both) > 1:
            out["cluster_ring_mutual_information"] = float(
                adjusted_mutual_info_score(both["ring_label"], both["cluster"].astype(int))
            )
    return out
