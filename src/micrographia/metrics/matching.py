"""Predicted sites against true sites: optimal matching, precision, recall, F1, and how sure we are of them.

Two sites match when they lie in the same image, are of the same kind and are no further apart than the
tolerance. Among all one-to-one matchings the one with the most matches is taken, and among those the one with
the smallest total distance (an assignment problem, not a greedy search: the order of the rows never matters).

Conventions
-----------
* Nothing predicted: precision is NaN. Nothing to find: recall is NaN. Neither: F1 = 2 TP / (2 TP + FP + FN)
  is NaN, because an image without sites says nothing about the quality of a detector; otherwise F1 is
  defined.
* Border: a true site closer than `border_px` to the edge of its image is neither required nor punished. It
  counts in no total; a prediction left unmatched is ignored if it lies in the border itself or within the
  tolerance of such a site. A prediction in the border that matches a required site is a true positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from micrographia.errors import UserError

_COUNTS = ["tp", "fp", "fn"]
#: Beyond every image; squares of distances and the separation of groups stay exact numbers.
LARGEST_TOLERANCE = 1e9


@dataclass(frozen=True)
class DetectionScore:
    """How well predicted sites agree with the true ones.

    Parameters
    ----------
    precision, recall, f1 : float
        Pooled over all images (NaN as the module says).
    tp, fp, fn : int
        True positives, false positives, false negatives.
    rms_displacement_px : float
        Root mean square distance of the matched pairs in pixels; NaN without matches.
    intervals : dict
        ``{"precision" | "recall" | "f1": (low, high)}``, 95 % bootstrap intervals (NaN where undefined).
    interval_unit : str
        What was resampled: ``"images"``, or ``"blocks"`` of the field when there is only one image.
    per_image : DataFrame
        image, tp, fp, fn, precision, recall, f1, rms_displacement_px.
    outcomes : DataFrame
        image, x_px, y_px, kind, outcome (``tp``, ``fp``, ``fn`` or ``ignored``), distance_px. A ``tp`` is
        listed once, at the true site.
    """

    precision: float
    recall: float
    f1: float
    tp: int
    fp: int
    fn: int
    rms_displacement_px: float
    intervals: dict[str, tuple[float, float]]
    interval_unit: str
    per_image: pd.DataFrame
    outcomes: pd.DataFrame


def match_sites(
    predicted: np.ndarray, truth: np.ndarray, tolerance: float, penalty: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair predicted with true points: as many pairs as possible, then the smallest total distance.

    Parameters
    ----------
    predicted : array, ``[P, D]``
    truth : array, ``[T, D]``
    tolerance : float
        Largest distance of a pair, in the unit of the points (included).
    penalty : array ``[P]`` of 0 and 1, optional
        Among matchings with equally many pairs, prefer those that leave few points of penalty 1 unmatched.

    Returns
    -------
    i, j : int arrays
        Pairs ``predicted[i]``, ``truth[j]``, sorted by `i`.
    distance : float array

    Notes
    -----
    Only pairs within the tolerance enter (KD-tree), and every prediction may stay alone at a price higher
    than all distances together, which makes the problem a sparse full assignment (Jonker-Volgenant in SciPy).
    """
    i, j, distance = _candidates(predicted, truth, tolerance)
    if not len(i):
        return i, j, distance
    # Pairs that are each other's only choice need no optimisation, and are nearly all of them.
    alone = (np.bincount(i)[i] == 1) & (np.bincount(j)[j] == 1)
    rows, row = np.unique(i[~alone], return_inverse=True)
    columns, column = np.unique(j[~alone], return_inverse=True)
    if len(rows):
        n = len(rows)
        secondary = np.zeros(n) if penalty is None else np.asarray(penalty, float)[rows]
        # Distances are at most 1 here, +1 keeps them from vanishing in the sparse matrix.
        secondary_price = n + 1.0
        primary_price = 2.0 + (n + 1) * (secondary_price if penalty is not None else 1.0)
        weight = np.concatenate(
            [distance[~alone] / tolerance + 1, primary_price + secondary * secondary_price]
        )
        own = np.arange(n)
        graph = csr_array(
            (weight, (np.concatenate([row, own]), np.concatenate([column, len(columns) + own]))),
            shape=(n, len(columns) + n),
        )
        matched_row, matched_column = min_weight_full_bipartite_matching(graph)
        keep = matched_column < len(columns)
        chosen_i, chosen_j = rows[matched_row[keep]], columns[matched_column[keep]]
        i, j = np.concatenate([i[alone], chosen_i]), np.concatenate([j[alone], chosen_j])
        distance = np.linalg.norm(np.asarray(predicted, float)[i] - np.asarray(truth, float)[j], axis=1)
    order = np.argsort(i, kind="stable")
    return i[order], j[order], distance[order]


def _candidates(predicted, truth, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs within the tolerance: indices into both and their distance."""
    if not 0 < tolerance <= LARGEST_TOLERANCE:
        raise UserError(
            f"The matching tolerance must be greater than 0 and at most {LARGEST_TOLERANCE:g}, got {tolerance}; "
            "give it in pixels."
        )
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    if not len(predicted) or not len(truth):
        empty = np.zeros(0, int)
        return empty, empty, np.zeros(0)
    pairs = cKDTree(predicted).sparse_distance_matrix(cKDTree(truth), tolerance, output_type="ndarray")
    return pairs["i"].astype(int), pairs["j"].astype(int), pairs["v"]


def score_sites(
    predicted: pd.DataFrame,
    truth: pd.DataFrame,
    tolerance_px: float,
    border_px: float = 0,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    kinds: Sequence[str] | None = None,
    ignore_kind: bool = False,
    images: Sequence[str] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> DetectionScore:
    """Score predicted sites against the truth, per image and pooled.

    Parameters
    ----------
    predicted, truth : DataFrame
        Sites tables (image, x_px, y_px, kind).
    tolerance_px : float
        Largest distance of a match in pixels.
    border_px : float
        Width of the frame in which sites are not judged (see the module); needs `shapes`.
    shapes : mapping, optional
        Image name to ``(height, width)``.
    kinds : sequence of str, optional
        Judge only these kinds.
    ignore_kind : bool
        Let sites of different kinds match.
    images : sequence of str, optional
        The images to judge, those without any site included; by default every image named in either table.
    n_bootstrap, seed : int
        Resamples for the intervals and their seed.

    Raises
    ------
    UserError
        A column is missing, a position is not finite, or `border_px` is given without the shapes.
    """
    judged = _judge(predicted, truth, tolerance_px, border_px, shapes, kinds, ignore_kind, images)
    i, j, distance = match_sites(
        judged.predicted_points,
        judged.truth_points[judged.required],
        tolerance_px,
        penalty=(~judged.ignorable).astype(float) if judged.ignorable.any() else None,
    )
    j = np.flatnonzero(judged.required)[j]

    of_predicted = np.where(judged.ignorable, "ignored", "fp").astype(object)
    of_predicted[i] = "match"
    of_truth = np.where(judged.required, "fn", "ignored").astype(object)
    of_truth[j] = "tp"
    far = np.full(len(judged.truth), np.nan)
    far[j] = distance
    columns = ["image", "x_px", "y_px", "kind"]
    outcomes = pd.concat(
        [
            judged.truth[columns].assign(outcome=of_truth, distance_px=far),
            judged.predicted[columns].assign(outcome=of_predicted, distance_px=np.nan),
        ],
        ignore_index=True,
    )
    outcomes = outcomes[outcomes["outcome"] != "match"].reset_index(drop=True)
    counts = _count(outcomes, outcomes["image"], judged.images)
    square = outcomes["distance_px"].pow(2).groupby(outcomes["image"]).mean().reindex(judged.images)
    per_image = pd.DataFrame(
        {"image": judged.images, **{name: counts[:, k] for k, name in enumerate(_COUNTS)}}
    )
    per_image["precision"], per_image["recall"], per_image["f1"] = precision_recall_f1(*counts.T)
    per_image["rms_displacement_px"] = np.sqrt(square.to_numpy(float))

    if len(judged.images) == 1:
        unit, units = "blocks", _block_counts(outcomes)
    else:
        unit, units = "images", counts
    tp, fp, fn = (int(n) for n in counts.sum(0))
    precision, recall, f1 = (float(v) for v in precision_recall_f1(tp, fp, fn))
    rms = float(np.sqrt(np.mean(distance**2))) if len(distance) else float("nan")
    return DetectionScore(
        precision, recall, f1, tp, fp, fn, rms, bootstrap(units, n_bootstrap, seed), unit, per_image, outcomes
    )


def precision_recall_f1(tp, fp, fn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 from counts (scalars or arrays); NaN where the denominator is zero."""
    tp, fp, fn = (np.asarray(n, float) for n in (tp, fp, fn))

    def ratio(numerator, denominator):
        return np.divide(
            numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0
        )

    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def bootstrap(counts: np.ndarray, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of precision, recall and F1 from counts of independent units.

    Parameters
    ----------
    counts : int array, ``[units, 3]``
        tp, fp, fn of each image (or block), which are drawn with replacement. One unit alone carries no
        information about the spread: the intervals are NaN.
    """
    names = ("precision", "recall", "f1")
    counts = np.asarray(counts, float).reshape(-1, 3)
    if len(counts) < 2 or n_bootstrap < 1:
        return {name: (float("nan"), float("nan")) for name in names}
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n_bootstrap) @ counts
    intervals = {}
    for name, values in zip(names, precision_recall_f1(*draws.T), strict=True):
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def precision_recall_curve(
    predicted: pd.DataFrame,
    truth: pd.DataFrame,
    tolerance_px: float,
    border_px: float = 0,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    kinds: Sequence[str] | None = None,
    ignore_kind: bool = False,
    images: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Precision, recall and F1 of the predictions of ``confidence >= threshold``, at every confidence.

    Each row equals what `score_sites` says about the table cut at that threshold. Predictions enter in the
    order of their confidence, each along one augmenting path, so that the matching has the largest possible
    size at every threshold (Kuhn 1955; Berge 1957) without being solved anew.

    Returns
    -------
    DataFrame
        threshold (descending), precision, recall, f1, tp, fp, fn. Empty if nothing was predicted.
    """
    if "confidence" not in predicted.columns:
        raise UserError(
            "A precision-recall curve needs a column 'confidence' in the predicted sites; add it."
        )
    judged = _judge(predicted, truth, tolerance_px, border_px, shapes, kinds, ignore_kind, images)
    confidence = judged.predicted["confidence"].to_numpy(float)
    if not np.isfinite(confidence).all():
        raise UserError("The predicted sites hold a confidence that is not a number; give every row one.")
    required = np.flatnonzero(judged.required)
    i, j, _ = _candidates(judged.predicted_points, judged.truth_points[required], tolerance_px)
    near: list[list[int]] = [[] for _ in range(len(confidence))]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        near[a].append(b)

    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    matching = _GrowingMatching(near, judged.ignorable.tolist())
    for p in order.tolist():
        matching.add(p)
    last = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True)) if len(order) else np.zeros(0, int)
    tp, fp = (np.asarray(n, int)[last] for n in (matching.tp, matching.fp))
    fn = len(required) - tp
    precision, recall, f1 = precision_recall_f1(tp, fp, fn)
    return pd.DataFrame(
        {
            "threshold": ordered[last],
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "tp": tp,
            "fp": fp,
            "fn": fn,
        }
    )


def average_precision(curve: pd.DataFrame) -> float:
    """Area under the curve of `precision_recall_curve` as the step sum of precision over gains in recall.

    Returns
    -------
    float
        0 if nothing was predicted right, NaN if there was nothing to find.
    """
    if not len(curve):
        return 0.0
    recall, precision = curve["recall"].to_numpy(), curve["precision"].to_numpy()
    if not np.isfinite(recall).all():
        return float("nan")
    gain = np.diff(recall, prepend=0.0)
    return float((gain[gain > 0] * precision[gain > 0]).sum())


def best_threshold(curve: pd.DataFrame) -> float:
    """Threshold of the largest F1 of a `precision_recall_curve`; of several, the highest.

    Raises
    ------
    UserError
        The curve holds no defined F1 (nothing was predicted, or there is nothing to find).
    """
    f1 = curve["f1"].to_numpy(float)
    if not np.isfinite(f1).any() or not curve["tp"].gt(0).any():
        raise UserError("No threshold can be chosen: no prediction matches a true site within the tolerance.")
    return float(curve["threshold"].to_numpy()[np.nanargmax(f1)])


class _GrowingMatching:
    """A largest matching that is kept while predictions are added one by one.

    Parameters
    ----------
    near : list of list of int
        True sites within reach of each prediction.
    ignorable : list of bool
        Predictions that cost nothing when unmatched: they give way to others.
    """

    def __init__(self, near: list[list[int]], ignorable: list[bool]) -> None:
        self.near, self.ignorable = near, ignorable
        self.owner: dict[int, int] = {}  # true site -> its prediction
        self.owned: dict[int, int] = {}  # prediction -> its true site
        self.tp: list[int] = []  # after each addition
        self.fp: list[int] = []

    def add(self, prediction: int) -> None:
        """Add one prediction along the shortest alternating path to a free site."""
        reached: dict[int, int] = {}  # true site -> prediction from which the search came
        queue, free, yielding = [prediction], None, None
        for p in queue:
            for site in self.near[p]:
                if site in reached:
                    continue
                reached[site] = p
                if site not in self.owner:
                    free = site
                    break
                other = self.owner[site]
                if yielding is None and self.ignorable[other]:
                    yielding = site
                queue.append(other)
            if free is not None:
                break
        harmless = self.ignorable[prediction]
        if free is not None:
            self._flip(free, reached, prediction)
        elif yielding is not None and not harmless:
            del self.owned[self.owner[yielding]]
            self._flip(yielding, reached, prediction)
            harmless = True
        self.tp.append(len(self.owner))
        self.fp.append((self.fp[-1] if self.fp else 0) + (free is None and not harmless))

    def _flip(self, site: int, reached: dict[int, int], start: int) -> None:
        while True:
            p = reached[site]
            before = self.owned.get(p)
            self.owner[site], self.owned[p] = p, site
            if p == start:
                return
            assert before is not None  # every prediction on the path but the first owns a site
            site = before


@dataclass(frozen=True)
class _Judged:
    """Both tables cut to what is judged; points carry image and kind as a third coordinate."""

    images: list[str]
    predicted: pd.DataFrame
    truth: pd.DataFrame
    predicted_points: np.ndarray
    truth_points: np.ndarray
    required: np.ndarray  # true sites that count
    ignorable: np.ndarray  # predictions that are ignored if unmatched


def _judge(predicted, truth, tolerance_px, border_px, shapes, kinds, ignore_kind, images) -> _Judged:
    predicted = _checked(predicted, "predicted", ignore_kind)
    truth = _checked(truth, "true", ignore_kind)
    if images is None:
        images = sorted({*predicted["image"], *truth["image"], *map(str, shapes or ())})
    images = [str(name) for name in dict.fromkeys(images)]
    predicted = predicted[predicted["image"].isin(images)]
    truth = truth[truth["image"].isin(images)]
    if kinds is not None:
        predicted, truth = (table[table["kind"].isin(list(kinds))] for table in (predicted, truth))
    predicted, truth = predicted.reset_index(drop=True), truth.reset_index(drop=True)

    key = ["image"] if ignore_kind else ["image", "kind"]
    group = pd.concat([predicted[key], truth[key]]).groupby(key).ngroup().to_numpy()
    # Groups lie further apart than the tolerance along a third axis, so that one search serves all.
    depth = group * 4.0 * tolerance_px
    predicted_points = np.column_stack([predicted[["x_px", "y_px"]], depth[: len(predicted)]])
    truth_points = np.column_stack([truth[["x_px", "y_px"]], depth[len(predicted) :]])

    required = ~_in_border(truth, border_px, shapes)
    ignorable = _in_border(predicted, border_px, shapes)
    near_border_site, _, _ = _candidates(predicted_points, truth_points[~required], tolerance_px)
    ignorable[near_border_site] = True
    return _Judged(images, predicted, truth, predicted_points, truth_points, required, ignorable)


def _checked(table: pd.DataFrame, what: str, ignore_kind: bool) -> pd.DataFrame:
    needed = ["image", "x_px", "y_px", "kind"]
    if ignore_kind and "kind" not in table.columns:
        table = table.assign(kind="site")
    missing = [name for name in needed if name not in table.columns]
    if missing:
        hint = " or ignore the kinds (ignore_kind)" if missing == ["kind"] else ""
        raise UserError(
            f"The table of {what} sites lacks the column(s) {', '.join(missing)}; add them{hint}."
        )
    table = table.assign(image=table["image"].astype(str), kind=table["kind"].astype(str))
    bad = ~np.isfinite(table[["x_px", "y_px"]].to_numpy(float)).all(axis=1)
    if bad.any():
        raise UserError(
            f"The table of {what} sites holds {bad.sum()} position(s) that are not finite, the first in row "
            f"{int(np.flatnonzero(bad)[0])}; remove those rows."
        )
    return table


def _in_border(table: pd.DataFrame, border_px: float, shapes) -> np.ndarray:
    """True for sites closer than `border_px` to the edge of their image (at -0.5 and n - 0.5)."""
    if border_px <= 0 or not len(table):
        return np.zeros(len(table), bool)
    known = {str(name): shape for name, shape in (shapes or {}).items()}
    unknown = sorted(set(table["image"]) - set(known))
    if unknown:
        raise UserError(
            f"A border of {border_px} px needs the size of every image; it is unknown for "
            f"{', '.join(unknown[:3])}. "
            "Give shapes={image: (height, width)} or border_px=0."
        )
    height, width = np.array([known[name][:2] for name in table["image"]], float).T
    x, y = table["x_px"].to_numpy(float) + 0.5, table["y_px"].to_numpy(float) + 0.5
    return np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)) < border_px


def _count(outcomes: pd.DataFrame, unit: pd.Series, units: Sequence) -> np.ndarray:
    """tp, fp, fn of each unit, ``[units, 3]``."""
    table = pd.crosstab(unit, outcomes["outcome"]) if len(outcomes) else pd.DataFrame()
    return table.reindex(index=units, columns=_COUNTS, fill_value=0).to_numpy(int)


def _block_counts(outcomes: pd.DataFrame, n: int = 4) -> np.ndarray:
    """Counts in `n` x `n` blocks of the field: neighbouring sites share their fate more than distant ones."""
    code = np.zeros(len(outcomes), int)
    for axis in ("x_px", "y_px"):
        value = outcomes[axis].to_numpy(float)
        low, span = (value.min(), np.ptp(value)) if len(value) else (0.0, 0.0)
        code = code * n + np.clip(((value - low) / (span or 1.0) * n).astype(int), 0, n - 1)
    unit = pd.Series(code, index=outcomes.index)
    return _count(outcomes, unit, sorted(unit.unique()))
