from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.latent.compare import (
    adjusted_rand_index,
    clustering_accuracy,
    compare_descriptors,
    gmm,
    ica,
    kmeans,
    match_classes,
    nmf,
    pca,
    tsne,
    umap,
)
from micrographia.latent.model import VaeConfig
from micrographia.simulate.shapes import cards, motifs

PICTURES = np.stack([np.eye(8), np.fliplr(np.eye(8)), np.outer(np.hanning(8), np.hanning(8))]).astype(
    np.float32
)


def mixed(n: int = 300, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.exponential(1, (n, 3))
    return np.einsum("nk,khw->nhw", weights, PICTURES) + noise * rng.standard_normal((n, 8, 8)), weights


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1, 2], [100, 60, 30])
    centres = np.array([[0, 0], [6, 0], [0, 6]])
    return centres[truth] + 0.5 * rng.standard_normal((190, 2)), truth


@pytest.mark.parametrize("method", [pca, nmf, ica])
def test_components_reproduce_a_mixture_of_three_pictures(method):
    patches, _ = mixed()
    found = method(patches, 3)
    assert found.codes.shape == (300, 3)
    assert found.pictures.shape == (3, 8, 8)
    assert found.explained > 0.99
    drawn = found.mean + np.einsum("nk,khw->nhw", found.codes, found.pictures)
    assert np.abs(drawn - patches).mean() < 0.02


@pytest.mark.parametrize("method", [nmf, ica])
def test_nmf_and_ica_find_the_pictures_themselves(method):
    patches, weights = mixed()
    found = method(patches, 3)
    agreement = np.abs(np.corrcoef(found.codes.T, weights.T)[:3, 3:])
    assert agreement.max(axis=0).min() > 0.95


def test_nmf_of_patches_with_negative_values_has_non_negative_parts():
    patches, _ = mixed()
    found = nmf(patches - 1.0, 3)
    assert found.codes.min() >= 0
    assert found.pictures.min() >= 0
    assert found.explained > 0.97


def test_components_of_several_channels_keep_their_shape():
    patches, _ = mixed(40)
    assert pca(np.stack([patches, patches], axis=1), 2).pictures.shape == (2, 2, 8, 8)


@pytest.mark.parametrize("method", [gmm, kmeans])
def test_classes_in_latent_space_are_found_and_sorted_by_size(method):
    codes, truth = blobs()
    found = method(codes, 3)
    assert clustering_accuracy(found.labels, truth) > 0.99
    assert list(np.bincount(found.labels)) == [100, 60, 30]
    assert found.probabilities.shape == (190, 3)
    assert np.allclose(found.means, [[0, 0], [6, 0], [0, 6]], atol=0.3)


def test_gmm_on_patches_sorts_what_differs_in_pixels():
    kind = np.arange(90) % 3
    patches = PICTURES[kind] + 0.05 * np.random.default_rng(0).standard_normal((90, 8, 8))
    found = gmm(patches, 3)
    assert clustering_accuracy(found.labels, kind) == 1
    assert found.means.shape == (3, 8, 8)


def test_embeddings_keep_groups_apart():
    codes, truth = blobs()
    assert clustering_accuracy(kmeans(tsne(codes[::2]), 3).labels, truth[::2]) > 0.95


def test_umap_embeds_or_says_what_to_install(monkeypatch):
    codes, truth = blobs()
    monkeypatch.setitem(sys.modules, "umap", None)  # as if not installed
    with pytest.raises(UserError, match=r"micrographia\[umap\].*tsne"):
        umap(codes)
    monkeypatch.undo()
    pytest.importorskip("umap")
    assert clustering_accuracy(kmeans(umap(codes), 3).labels, truth) > 0.95


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.permutations(range(5)))
def test_accuracy_does_not_depend_on_the_names_of_classes(truth, names):
    truth = np.array(truth)
    renamed = np.array(names)[truth]
    assert clustering_accuracy(renamed, truth) == 1
    assert adjusted_rand_index(renamed, truth) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_accuracy_is_that_of_the_best_pairing(pairs):
    from itertools import permutations

    found, truth = np.array(pairs).T
    best = max((np.array(p)[found] == truth).mean() for p in permutations(range(4)))
    assert clustering_accuracy(found, truth) == pytest.approx(best)


def test_one_class_for_all_scores_the_largest_class():
    assert clustering_accuracy(np.zeros(10), np.array(list("aaaaaabbbb"))) == 0.6
    assert adjusted_rand_index(np.zeros(10), np.array(list("aaaaaabbbb"))) == 0


def test_matched_counts_put_partners_on_the_diagonal():
    truth = np.array(list("aaabbc"))
    found = np.array([7, 7, 7, 2, 2, 9])
    counts, true_names, found_names = match_classes(found, truth)
    assert counts.tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert list(true_names) == ["a", "b", "c"]
    assert list(found_names) == [7, 2, 9]


def test_comparison_by_gmm_ae_and_rvae_with_two_windows():
    truth = motifs(120, 16, rotation_deg=90)
    windows = {"small": truth.images[:, 3:13, 3:13], "large": truth.images}
    found = compare_descriptors(windows, classes=3, config=VaeConfig(epochs=1, hidden=16), seed=1)
    assert [(d.method, d.window) for d in found] == [
        (method, window) for window in windows for method in ("GMM", "AE", "rVAE")
    ]
    for description in found:
        assert description.labels.shape == (120,)
        assert set(description.labels) <= {0, 1, 2}
        assert description.means.shape == (3, *windows[description.window].shape[1:])
        assert description.codes.shape == (120, 3 if description.method == "GMM" else 2)
        assert (description.angle_deg is not None) == (description.method == "rVAE")


def test_pixels_do_not_know_a_turned_card_again():
    """The reason for all this: rotated by up to 180 degrees, suits are not clusters of pixels."""
    truth = cards(300, 24, rotation_deg=180)
    assert clustering_accuracy(gmm(truth.images, 4).labels, truth.kind) < 0.75
    upright = cards(300, 24, rotation_deg=0, noise=0.1)
    assert clustering_accuracy(gmm(upright.images, 4).labels, upright.kind) > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gmm(np.zeros((3, 8, 8)), 4), "at most 3"),
        (lambda: pca(np.zeros((3, 8, 8)), 0), "at least 1"),
        (lambda: nmf(np.full((5, 4, 4), np.nan), 2), "NaN"),
        (lambda: kmeans(np.zeros(5), 2), "one row per atom"),
        (lambda: clustering_accuracy(np.zeros(3), np.zeros(4)), "one length"),
        (lambda: clustering_accuracy(np.zeros(0), np.zeros(0)), "one length"),
        (lambda: compare_descriptors({"a": np.zeros((3, 8, 8)), "b": np.zeros((4, 8, 8))}), "a: 3, b: 4"),
        (lambda: compare_descriptors({}), "none"),
    ],
)
def test_what_cannot_be_compared_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
