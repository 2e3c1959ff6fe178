import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from micrographia.atoms.track import estimate_drift, link_atoms, summarise_tracks, transition_matrix
from micrographia.errors import UserError
from micrographia.sites import make_sites

PIXEL_A = 0.1


def _movie(frames=6, drift=(0.0, 0.0), jitter_px=0.8, missing=0.0, seed=0) -> pd.DataFrame:
    """A jittering square lattice (14 px) that drifts; `atom` is the true identity; rows are shuffled."""
    rng = np.random.default_rng(seed)
    x, y = (g.ravel().astype(float) for g in np.meshgrid(np.arange(10, 150, 14), np.arange(10, 150, 14)))
    tables = []
    for t in range(frames):
        table = make_sites(
            f"f{t}",
            x + t * drift[0] + rng.normal(0, jitter_px, x.size),
            y + t * drift[1] + rng.normal(0, jitter_px, x.size),
            "C",
        ).assign(frame=t, atom=np.arange(x.size))
        tables.append(table[rng.random(x.size) >= missing])
    return pd.concat(tables).sample(frac=1, random_state=seed).reset_index(drop=True)


def _pure(linked: pd.DataFrame) -> bool:
    """Whether no track holds two atoms."""
    return bool((linked.groupby("track")["atom"].nunique() == 1).all())


@settings(max_examples=15, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 1000))
def test_atoms_keep_their_track_through_drift(dx, dy, seed):
    sites = _movie(drift=(dx, dy), seed=seed)
    linked = link_atoms(sites, 0.6, PIXEL_A)
    assert len(linked) == len(sites)
    assert _pure(linked)
    assert linked["track"].nunique() == 100
    drift = linked.groupby("frame")[["drift_x_px", "drift_y_px"]].first()
    np.testing.assert_allclose(drift.to_numpy(), np.outer(np.arange(6), (dx, dy)), atol=1.0)
    assert list(linked.columns[: len(sites.columns)]) == list(sites.columns)


def test_gaps_are_bridged_up_to_the_limit():
    x = [20.0, 40.0, 60.0]
    seen = {0: [0, 1, 2], 1: [0, 1], 2: [0], 3: [0, 1, 2]}
    sites = pd.concat(
        [
            make_sites("m", [x[a] for a in atoms], [30.0] * len(atoms), "C").assign(frame=t, atom=atoms)
            for t, atoms in seen.items()
        ],
        ignore_index=True,
    )
    tracks = {gap: link_atoms(sites, 0.5, PIXEL_A, max_gap=gap) for gap in (0, 1, 2)}
    assert [tracks[gap]["track"].nunique() for gap in (0, 1, 2)] == [5, 4, 3]
    assert all(map(_pure, tracks.values()))


def test_one_lost_and_one_new_atom_do_not_shift_a_row():
    x = np.arange(10.0, 200, 10)
    sites = pd.concat(
        [
            make_sites("m", x[:-1], np.full(len(x) - 1, 50.0), "C").assign(frame=0, atom=range(len(x) - 1)),
            make_sites("m", x[1:], np.full(len(x) - 1, 50.0), "C").assign(frame=1, atom=range(1, len(x))),
        ],
        ignore_index=True,
    )
    linked = link_atoms(sites, 1.2, PIXEL_A, drift_px=np.zeros((2, 2)))
    assert _pure(linked)
    assert linked["track"].nunique() == len(x)


def test_missing_atoms_in_a_long_movie():
    linked = link_atoms(_movie(20, (1.5, -0.7), 0.5, missing=0.1), 0.6, PIXEL_A, max_gap=2)
    assert _pure(linked)
    assert linked["track"].nunique() < 130  # 100 atoms; three misses in a row break a track


def test_drift_of_images_is_measured_to_a_fifth_of_a_pixel():
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.standard_normal((260, 260)), 3)
    true = np.array([[0, 0], [2.4, -1.3], [5.1, -3.0], [4.0, -6.2]])
    movie = [ndimage.shift(scene, step[::-1], order=3)[60:200, 60:200] for step in true]
    movie = np.stack(movie) / scene.std() + 0.5 * rng.standard_normal((4, 140, 140))
    np.testing.assert_allclose(estimate_drift(movie), true, atol=0.2)


def test_summary_of_a_known_walk():
    sites = pd.concat(
        [
            make_sites("m", [10.0 + 3 * t, 40.0, 70.0], [20.0 + 4 * t, 40.0, 60.0], "C").assign(frame=t)
            for t in range(3)
        ],
        ignore_index=True,
    )
    linked = link_atoms(sites.drop(index=8), 0.6, PIXEL_A, drift_px=np.zeros((3, 2)))
    table = summarise_tracks(linked, PIXEL_A).set_index("track")
    walker = table.loc[linked["track"][0]]
    assert walker["net_A"] == pytest.approx(1.0)
    assert walker["path_A"] == pytest.approx(1.0)
    assert walker["rms_step_A"] == pytest.approx(0.5)
    assert table["lifetime_frames"].tolist() == [3, 3, 2]
    assert table["observations"].sum() == 8
    drifting = link_atoms(_movie(5, (2.0, 1.0), 0.0), 0.5, PIXEL_A)
    assert summarise_tracks(drifting, PIXEL_A)["path_A"].max() < 0.01


def test_transitions_of_a_markov_chain_are_recovered():
    rng = np.random.default_rng(0)
    truth = np.array([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])
    state = rng.integers(0, 2, 400)
    tables = []
    for t in range(30):
        tables.append(
            pd.DataFrame(
                {"frame": t, "track": np.arange(400), "ring": np.array(["555", "566", "666"])[state]}
            )
        )
        state = np.array([rng.choice(3, p=truth[s]) for s in state])
    sites = pd.concat(tables).sample(frac=1, random_state=1)
    found = transition_matrix(sites, "ring")
    assert list(found.index) == list(found.columns) == ["555", "566", "666"]
    np.testing.assert_allclose(found.to_numpy(), truth, atol=0.03)
    counts = transition_matrix(sites, "ring", counts=True)
    assert counts.to_numpy().sum() == 400 * 29


def test_transitions_skip_gaps_and_missing_classes():
    sites = pd.DataFrame(
        {"frame": [0, 1, 3, 0, 1, 2], "track": [0, 0, 0, 1, 1, 1], "c": [1.0, 2.0, 1.0, 2.0, np.nan, 2.0]}
    )
    counts = transition_matrix(sites, "c", counts=True)
    assert counts.to_numpy().tolist() == [[0, 1], [0, 0]]
    assert transition_matrix(sites, "c").loc[2.0].isna().all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda s: link_atoms(s.drop(columns="frame"), 1, 0.1), "frame"),
        (lambda s: link_atoms(s.iloc[:0], 1, 0.1), "empty"),
        (lambda s: link_atoms(s, 0, 0.1), "greater than 0"),
        (lambda s: link_atoms(s, 1, 0.1, max_gap=-1), "max_gap"),
        (lambda s: link_atoms(s, 1, 0.1, drift_px=np.zeros((2, 2))), "drift_px"),
        (lambda s: link_atoms(s.assign(frame=0.5), 1, 0.1), "whole numbers"),
        (lambda s: link_atoms(s.assign(x_px=np.nan), 1, 0.1), "finite"),
        (lambda s: summarise_tracks(s, 0.1), "track"),
        (lambda s: transition_matrix(s, "atom"), "track"),
        (lambda s: transition_matrix(s.assign(track=0), "ring"), "no column 'ring'"),
        (lambda s: transition_matrix(s.assign(track=range(len(s))), "atom"), "no transitions"),
        (lambda s: estimate_drift(np.zeros((3, 2, 2)) * np.nan), "NaN"),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(UserError, match=told):
        call(_movie(3))
