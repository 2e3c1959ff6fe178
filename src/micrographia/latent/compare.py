"""Descriptors to compare latent models with: linear components, mixtures, embeddings; and scores of classes.

scikit-learn does the work. "Features" are arrays ``[N, ...]`` with one row per atom: patches, or latent codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA, FastICA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from micrographia.errors import UserError
from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import ae, rvae
from micrographia.latent.vae import columns_of

#: Above this many numbers per atom a mixture is given diagonal covariances: full ones cannot be estimated.
FULL_COVARIANCE_UP_TO = 16


@dataclass(frozen=True)
class Components:
    """Patches as weighted sums of a few pictures."""

    codes: np.ndarray
    """Weights ``[N, n]``."""
    pictures: np.ndarray
    """The components ``[n, ...]``, shaped as a patch."""
    mean: np.ndarray
    """What the sums are added to, shaped as a patch: the mean patch, for NMF zero."""
    explained: float
    """Share of the variance about the mean patch that the sums reproduce (R²)."""


@dataclass(frozen=True)
class Grouping:
    """Atoms sorted into classes, numbered from the most to the least frequent."""

    labels: np.ndarray
    """int ``[N]``."""
    probabilities: np.ndarray
    """``[N, k]``; of k-means 0 or 1."""
    means: np.ndarray
    """Mean features of each class ``[k, ...]``, shaped as one atom's features."""


def pca(patches: np.ndarray, n: int = 4) -> Components:
    """Principal components, by falling variance."""
    flat = _flat(patches, n, "pca", "components")
    model = PCA(n, svd_solver="randomized" if n < min(flat.shape) / 4 else "full", random_state=0)
    codes = model.fit_transform(flat)
    return _components(flat, codes, model.components_, model.mean_, np.shape(patches))


def nmf(patches: np.ndarray, n: int = 4, seed: int = 0) -> Components:
    """Non-negative components with non-negative weights.

    Patches with negative values are lifted by their common least value, which is then part of the mean.
    """
    flat = _flat(patches, n, "nmf", "components")
    floor = np.full(flat.shape[1], min(flat.min(), 0.0), flat.dtype)
    model = NMF(n, init="nndsvda", max_iter=600, tol=1e-4, random_state=seed)
    codes = model.fit_transform(flat - floor)
    return _components(flat, codes, model.components_, floor, np.shape(patches))


def ica(patches: np.ndarray, n: int = 4, seed: int = 0) -> Components:
    """Statistically independent components (FastICA); their order and signs mean nothing."""
    flat = _flat(patches, n, "ica", "components")
    model = FastICA(n, whiten="unit-variance", max_iter=1000, tol=1e-3, random_state=seed)
    codes = model.fit_transform(flat)
    return _components(flat, codes, model.mixing_.T, model.mean_, np.shape(patches))


def gmm(features: np.ndarray, k: int, seed: int = 0) -> Grouping:
    """Gaussian mixture of `k` classes on patches or codes, the best of five starts.

    Covariances are full up to `FULL_COVARIANCE_UP_TO` numbers per atom, diagonal above. Codes are standardised
    first; patches are not, for their pixels have one unit.
    """
    flat = _flat(features, k, "gmm", "classes")
    small = flat.shape[1] <= FULL_COVARIANCE_UP_TO
    if np.ndim(features) == 2:
        flat = (flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-12)
    model = GaussianMixture(
        k, covariance_type="full" if small else "diag", n_init=5, random_state=seed,
        reg_covar=1e-3 * float(flat.var(axis=0).mean()) + 1e-12,
    ).fit(flat)  # fmt: skip
    return _grouping(model.predict_proba(flat), features)


def kmeans(features: np.ndarray, k: int, seed: int = 0) -> Grouping:
    """k-means on patches or (standardised) codes, the best of ten starts."""
    flat = _flat(features, k, "kmeans", "classes")
    if np.ndim(features) == 2:
        flat = (flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-12)
    labels = KMeans(k, n_init=10, random_state=seed).fit_predict(flat)
    return _grouping(np.eye(k)[labels], features)


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE embedding ``[N, 2]``; distances between far groups mean nothing."""
    flat = _flat(features, 4, "tsne", "atoms")
    return TSNE(
        2, perplexity=min(perplexity, (len(flat) - 1) / 3), init="pca", random_state=seed
    ).fit_transform(flat)


def umap(features: np.ndarray, neighbours: int = 15, seed: int = 0) -> np.ndarray:
    """UMAP embedding ``[N, 2]`` (extra `umap`).

    Raises
    ------
    UserError
        umap-learn is not installed, or does not load.
    """
    flat = _flat(features, 4, "umap", "atoms")
    try:
        from umap import UMAP
    except (ImportError, RuntimeError, AttributeError) as error:  # numba refuses some versions of numpy
        raise UserError(
            f"UMAP needs the package umap-learn ({error}); pip install 'micrographia[umap]', or use tsne."
        ) from error
    # One thread: umap-learn is only then repeatable, and says so in a warning otherwise.
    return UMAP(n_neighbors=min(neighbours, len(flat) - 1), random_state=seed, n_jobs=1).fit_transform(flat)


def clustering_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of atoms in the right class when found classes are paired with true ones in the best way.

    The pairing is one to one (Kuhn-Munkres); found classes without a partner count as wrong.

    Parameters
    ----------
    labels, truth : ``[N]``
        Any hashable kind; their numbers of classes may differ.
    """
    counts = match_classes(labels, truth)[0]
    return float(np.trace(counts) / counts.sum())


def match_classes(labels: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair found classes with true ones.

    Returns
    -------
    counts : int array ``[true classes, found classes]``
        Found classes in the order of their true partners, those without a partner last.
    true_names, found_names : arrays
        What the rows and columns are.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.shape != truth.shape or labels.ndim != 1 or not len(labels):
        raise UserError(
            f"Labels and truth must be two lists of one length, got {list(labels.shape)} and {list(truth.shape)}."
        )
    found_names, found = np.unique(labels, return_inverse=True)
    true_names, true = np.unique(truth, return_inverse=True)
    counts = np.zeros((len(true_names), len(found_names)), np.int64)
    np.add.at(counts, (true, found), 1)
    rows, columns = linear_sum_assignment(-counts)
    lone_rows = np.setdiff1d(np.arange(len(true_names)), rows)
    lone = np.setdiff1d(np.arange(len(found_names)), columns)
    rows, columns = np.concatenate([rows, lone_rows]), np.concatenate([columns, lone])
    return counts[np.ix_(rows, columns)], true_names[rows], found_names[columns]


def adjusted_rand_index(labels: np.ndarray, truth: np.ndarray) -> float:
    """Agreement of two groupings: 1 if alike, about 0 by chance, whatever the class sizes."""
    return float(adjusted_rand_score(truth, labels))


@dataclass(frozen=True)
class Description:
    """What one method says about the atoms, with one window."""

    method: str
    """``GMM``, ``AE`` or ``rVAE``."""
    window: str
    labels: np.ndarray
    """Classes int ``[N]``: of the GMM on the patches, else of a GMM in latent space."""
    codes: np.ndarray
    """Latent codes ``[N, n]``; of the GMM the class probabilities."""
    means: np.ndarray
    """Mean patch of each class ``[k, ...]``; of the rVAE drawn upright at the mean code of the class."""
    angle_deg: np.ndarray | None = None
    """Of the rVAE, ``[N]``."""


def compare_descriptors(
    windows: Mapping[str, np.ndarray],
    classes: int = 6,
    latents: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
) -> list[Description]:
    """Describe the same atoms by GMM, AE and rVAE, with each window.

    The comparison of Kalinin, Dyck, Jesse, Ziatdinov, Sci. Adv. 7, eabd5084 (2021), Fig. 5.

    Parameters
    ----------
    windows : mapping of name to patches ``[N, H, W]`` or ``[N, C, H, W]``
        The same atoms in the same order, cut with a small and a large window (any number of them).
    classes : int
        Of every mixture.
    latents : int
        Size of both codes.
    range_deg, prior_px
        Of the rVAE.

    Returns
    -------
    list of Description
        By window, then GMM, AE, rVAE.
    """
    if len({len(patches) for patches in windows.values()}) != 1:
        told = ", ".join(f"{name}: {len(patches)}" for name, patches in windows.items()) or "none"
        raise UserError(f"Every window needs patches of the same atoms; their numbers are {told}.")
    found = []
    for window, patches in windows.items():
        patches = np.asarray(patches, np.float32)
        mixture = gmm(patches, classes, seed)
        found.append(Description("GMM", window, mixture.labels, mixture.probabilities, mixture.means))
        plain = ae(latents, config, seed, device)
        codes = plain.fit_transform(patches)
        labels = gmm(codes, classes, seed).labels
        found.append(Description("AE", window, labels, codes, _class_means(patches, labels, classes)))
        invariant = rvae(latents, range_deg, prior_px, config, seed, device)
        table = invariant.fit_transform(patches)
        names = list(invariant.get_feature_names_out())
        content = columns_of(names, "z")
        codes = table[:, content]
        labels = gmm(codes, classes, seed).labels
        means = np.zeros((classes, len(names)))
        means[:, content] = _class_means(codes, labels, classes)
        drawn = invariant.inverse_transform(means)
        angle = table[:, names.index("angle_deg")]
        found.append(Description("rVAE", window, labels, codes, drawn, angle))
    return found


def _flat(features: Any, least: int, caller: str, unit: str) -> np.ndarray:
    """Features as float ``[N, D]``, checked."""
    array = np.asarray(features, np.float32)
    if array.ndim < 2 or 0 in array.shape:
        raise UserError(f"{caller}: give one row per atom ([N, ...]), got shape {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise UserError(f"{caller}: the features hold NaN or infinite values; leave those atoms out.")
    flat = array.reshape(len(array), -1)
    if least < 1:
        raise UserError(f"{caller}: {least} {unit} is not possible; ask for at least 1.")
    most = min(flat.shape) if unit == "components" else len(flat)
    if most < least:
        raise UserError(
            f"{caller}: {least} {unit} need more than {len(flat)} atoms of {flat.shape[1]} numbers each; "
            f"give more, or ask for at most {most}."
        )
    return flat.astype(np.float64) if unit == "classes" else flat


def _components(
    flat: np.ndarray, codes: np.ndarray, pictures: np.ndarray, mean: np.ndarray, shape: tuple[int, ...]
) -> Components:
    residual = float(((flat - mean - codes @ pictures) ** 2).sum())
    about_mean = float(((flat - flat.mean(axis=0)) ** 2).sum())
    explained = 1 - residual / about_mean if about_mean > 0 else float("nan")
    as_patch = shape[1:]
    return Components(
        codes.astype(np.float32), pictures.reshape(-1, *as_patch).astype(np.float32),
        mean.reshape(as_patch).astype(np.float32), explained,
    )  # fmt: skip


def _grouping(probabilities: np.ndarray, features: Any) -> Grouping:
    order = np.argsort(
        -np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1]), kind="stable"
    )
    probabilities = probabilities[:, order]
    labels = probabilities.argmax(axis=1)
    features = np.asarray(features, np.float32)
    return Grouping(labels, probabilities, _class_means(features, labels, probabilities.shape[1]))


def _class_means(features: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Mean of each class; an empty class is given the mean of all."""
    groups = (features[labels == c] for c in range(k))
    return np.stack([(some if len(some) else features).mean(axis=0) for some in groups])
