"""Atoms through a movie: drift, tracks, how far and how long, and how a class changes along the way.

Frames are linked one after the other by the assignment of least total squared displacement, in which leaving an
atom alone costs as much as the largest displacement allowed (Jaqaman et al., Nat. Methods 5, 695 (2008)): an
atom that vanishes here and one that appears there do not make a whole row move up. The drift of the specimen is
taken out first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from skimage.registration import phase_cross_correlation

from micrographia.atoms.frames import Images, as_frames
from micrographia.errors import UserError


def estimate_drift(images: Images, pixel_size_A: float | None = None) -> np.ndarray:
    """Estimate the specimen's drift from the images, by phase correlation of neighbouring frames.

    Parameters
    ----------
    images : sequence of Micrographs, or array ``[N, H, W]``
        Frames of one size and pixel size.

    Returns
    -------
    float array ``[N, 2]``
        Where (x, y) the specimen of the first frame lies in frame t, in px from where it lay (to a tenth).

    Notes
    -----
    A perfect lattice looks the same one lattice vector further, so that a drift of more than half of one per
    frame cannot be told there.
    """
    frames = as_frames(images, pixel_size_A or 1.0)
    steps = np.zeros((len(frames), 2))
    window, before = None, None
    for i in range(len(frames)):
        data = frames[i].sum(axis=0)
        if before is None:
            window = np.outer(np.hanning(data.shape[0]), np.hanning(data.shape[1]))
        elif data.shape != before.shape:
            raise UserError("The frames of a movie must have one shape to estimate its drift.")
        data = (data - data.mean()) * window
        if before is not None:
            # normalization=None: plain cross-correlation, which noise does not break as it does the phases.
            steps[i] = -phase_cross_correlation(before, data, upsample_factor=10, normalization=None)[0][::-1]
        before = data
    return steps.cumsum(axis=0)


def link_atoms(
    sites: pd.DataFrame,
    max_displacement_A: float,
    pixel_size_A: float,
    max_gap: int = 1,
    drift_px: np.ndarray | None = None,
) -> pd.DataFrame:
    """Link the atoms of a movie to tracks.

    Parameters
    ----------
    sites : DataFrame
        Sites table with the column ``frame``.
    max_displacement_A : float
        Largest displacement from one observation to the next, drift taken out. In a lattice, less than half the
        distance of neighbours.
    pixel_size_A : float
    max_gap : int
        Frames for which an atom may be missing within its track.
    drift_px : array ``[frames, 2]``, optional
        Of :func:`estimate_drift`. If not given, the drift from each frame to the next is the median displacement
        of mutual nearest neighbours, repeated until it rests, which holds for steps below half the distance of atoms.

    Returns
    -------
    DataFrame
        Copy of `sites` with the columns ``track`` (0, 1, ... in order of first appearance), and ``drift_x_px``,
        ``drift_y_px``: the drift at that frame since the first.

    Raises
    ------
    UserError
        No column ``frame``, no sites, a displacement or pixel size that is not positive, or drift for too few
        frames.
    """
    number = _frames_of(sites)
    if not (max_displacement_A > 0 and pixel_size_A > 0):
        raise UserError(
            f"max_displacement_A = {max_displacement_A} and pixel_size_A = {pixel_size_A} must be greater than 0."
        )
    if max_gap < 0:
        raise UserError(f"max_gap = {max_gap} is not possible; give 0 or more frames.")
    reach = max_displacement_A / pixel_size_A
    xy = sites[["x_px", "y_px"]].to_numpy(float)
    if not np.isfinite(xy).all():
        raise UserError("The sites hold positions that are not finite; remove them.")
    last = int(number.max())
    frame_rows = [np.flatnonzero(number == t) for t in range(last + 1)]
    if drift_px is None:
        drift_px = _drift_of_sites([xy[rows] for rows in frame_rows])
    drift_px = np.asarray(drift_px, float)
    if drift_px.shape[1:] != (2,) or len(drift_px) <= last or not np.isfinite(drift_px).all():
        raise UserError(f"drift_px must be finite, [{last + 1} frames, 2]; got shape {drift_px.shape}.")
    steady = xy - drift_px[number]

    track = np.full(len(sites), -1)
    ends = np.zeros(0, dtype=int)  # the last observation (row) of every track that may go on
    tracks = 0
    for t, rows in enumerate(frame_rows):
        ends = ends[number[ends] >= t - 1 - max_gap]
        i, j = _assign(steady[ends], steady[rows], reach)
        track[rows[j]] = track[ends[i]]
        fresh = rows[track[rows] < 0]
        track[fresh] = np.arange(tracks, tracks + len(fresh))
        tracks += len(fresh)
        ends = np.concatenate([np.delete(ends, i), rows])
    drift = drift_px[number]
    return sites.assign(track=track, drift_x_px=drift[:, 0], drift_y_px=drift[:, 1])


def summarise_tracks(sites: pd.DataFrame, pixel_size_A: float) -> pd.DataFrame:
    """Summarise each track: how long it lasts and how far it goes, drift taken out.

    Parameters
    ----------
    sites : DataFrame
        Of :func:`link_atoms`.

    Returns
    -------
    DataFrame, one row per track
        ``track``, ``first_frame``, ``last_frame``, ``observations``, ``lifetime_frames`` (last - first + 1; a
        track at an end of the movie may last longer), ``net_A`` (first to last), ``path_A`` (sum of the steps),
        ``rms_step_A`` (per observation; NaN for one observation).
    """
    _frames_of(sites)
    _with_track(sites)
    ordered = sites.sort_values(["track", "frame"], kind="stable")
    drift = [
        ordered[name].to_numpy(float) if name in ordered else 0.0 for name in ("drift_x_px", "drift_y_px")
    ]
    x, y = ordered["x_px"] - drift[0], ordered["y_px"] - drift[1]
    table = ordered.assign(x=x * pixel_size_A, y=y * pixel_size_A)
    step = table.groupby("track")[["x", "y"]].diff()
    table["step"] = np.hypot(step["x"], step["y"])
    table["square"] = table["step"] ** 2
    groups = table.groupby("track")
    first, final = groups[["x", "y"]].first(), groups[["x", "y"]].last()
    out = groups.agg(
        first_frame=("frame", "first"),
        last_frame=("frame", "last"),
        observations=("frame", "size"),
        path_A=("step", "sum"),
        rms_step_A=("square", "mean"),
    )
    out["rms_step_A"] = np.sqrt(out["rms_step_A"])
    out["lifetime_frames"] = out["last_frame"] - out["first_frame"] + 1
    out["net_A"] = np.hypot(final["x"] - first["x"], final["y"] - first["y"])
    order = ["first_frame", "last_frame", "observations", "lifetime_frames", "net_A", "path_A", "rms_step_A"]
    return out[order].reset_index()


def transition_matrix(sites: pd.DataFrame, column: str, counts: bool = False) -> pd.DataFrame:
    """Return how often atoms of one class are of another in the next frame.

    Parameters
    ----------
    sites : DataFrame
        Of :func:`link_atoms`, with a column of classes.
    column : str
        For example ``cluster`` or ``ring``. Rows without a class (NaN, None) are left out.
    counts : bool
        Return numbers of transitions instead of probabilities.

    Returns
    -------
    DataFrame, from (rows) to (columns)
        Each row sums to 1; NaN where a class was never left or kept. Only observations of a track in consecutive
        frames count.

    Raises
    ------
    UserError
        The table has no tracks or not that column, or no atom is seen in two consecutive frames.
    """
    _frames_of(sites)
    _with_track(sites)
    if column not in sites.columns:
        raise UserError(f"The table of sites has no column '{column}'; it has {', '.join(sites.columns)}.")
    known = sites[sites[column].notna()].sort_values(["track", "frame"], kind="stable")
    codes, classes = pd.factorize(known[column], sort=True)
    track, frame = known["track"].to_numpy(), known["frame"].to_numpy()
    follows = (track[1:] == track[:-1]) & (frame[1:] == frame[:-1] + 1)
    if not follows.any():
        raise UserError(f"No atom has a '{column}' in two consecutive frames: there are no transitions.")
    table = np.zeros((len(classes), len(classes)))
    np.add.at(table, (codes[:-1][follows], codes[1:][follows]), 1)
    if not counts:
        with np.errstate(invalid="ignore"):
            table = table / table.sum(axis=1, keepdims=True)
    values = table.astype(int) if counts else table
    return pd.DataFrame(values, pd.Index(classes, name="from"), pd.Index(classes, name="to"))


def _frames_of(sites: pd.DataFrame) -> np.ndarray:
    if "frame" not in sites.columns:
        raise UserError("The table of sites has no column 'frame'; number the frames of the movie from 0.")
    if not len(sites):
        raise UserError("The table of sites is empty: there are no atoms to follow.")
    number = sites["frame"].to_numpy(float)
    if not (np.isfinite(number).all() and (number >= 0).all() and (number == np.rint(number)).all()):
        raise UserError("The column 'frame' must hold whole numbers, counted from 0.")
    return number.astype(int)


def _with_track(sites: pd.DataFrame) -> None:
    if "track" not in sites.columns:
        raise UserError("The table of sites has no column 'track'; link_atoms makes it.")


def _drift_of_sites(points: list[np.ndarray]) -> np.ndarray:
    """Cumulative drift: the median displacement of mutual nearest neighbours from frame to frame."""
    total = np.zeros((len(points), 2))
    previous = np.zeros((0, 2))
    for t, here in enumerate(points):
        step = np.zeros(2)
        if len(here) and len(previous):
            tree = cKDTree(here)
            for _ in range(20):
                nearest = tree.query(previous + step)[1]
                back = cKDTree(previous + step).query(here)[1]
                mutual = back[nearest] == np.arange(len(previous))  # not those that vanished
                new = np.median((here[nearest] - previous)[mutual], axis=0)
                done = np.abs(new - step).max() < 1e-3
                step = new
                if done:
                    break
        total[t] = (total[t - 1] if t else 0) + step
        if len(here):
            previous = here
    return total


def _assign(old: np.ndarray, new: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i of old, j of new) of least total squared distance; staying alone costs reach²."""
    if not len(old) or not len(new):
        return np.zeros(0, int), np.zeros(0, int)
    pairs = cKDTree(old).sparse_distance_matrix(cKDTree(new), reach, output_type="ndarray")
    i, j, cost = pairs["i"].astype(int), pairs["j"].astype(int), (pairs["v"] / reach) ** 2
    # Pairs that are each other's only choice need no optimisation, and are nearly all of them.
    alone = (np.bincount(i)[i] == 1) & (np.bincount(j)[j] == 1) if len(i) else np.zeros(0, bool)
    rows, row = np.unique(i[~alone], return_inverse=True)
    columns, column = np.unique(j[~alone], return_inverse=True)
    if not len(rows):
        return i[alone], j[alone]
    own = np.arange(len(rows))
    # 1 more for all keeps a distance of zero from vanishing in the sparse matrix.
    weight = np.concatenate([cost[~alone] + 1, np.full(len(rows), 2.0)])
    graph = csr_array(
        (weight, (np.concatenate([row, own]), np.concatenate([column, len(columns) + own]))),
        shape=(len(rows), len(columns) + len(rows)),
    )
    matched_row, matched_column = min_weight_full_bipartite_matching(graph)
    linked = matched_column < len(columns)
    return (
        np.concatenate([i[alone], rows[matched_row[linked]]]),
        np.concatenate([j[alone], columns[matched_column[linked]]]),
    )
