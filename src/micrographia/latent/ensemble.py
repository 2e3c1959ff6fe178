"""Several trainings of one latent model: what all agree on, and how far they differ, patch by patch.

No two trainings agree on names: which class is number 0, what is upright, which way a code points. So every
member is translated into the language of one (the reference) before anything is averaged: classes are matched
by the optimal assignment (Hungarian method), angle and shift by one offset for each class, and codes by the rigid
turn that fits best (orthogonal Procrustes). The spread of what remains is the uncertainty: the entropy of the mean class
probability is all of it, its mutual information with the member the part that the trainings do not agree on
(Lakshminarayanan et al. 2017, deep ensembles; Depeweg et al. 2018, the decomposition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy
from sklearn.base import BaseEstimator, TransformerMixin, clone

from micrographia.errors import UserError
from micrographia.latent.blocks import Discrete
from micrographia.latent.vae import VAE, columns_of
from micrographia.nets.weights import built_alike, load_model, save_model

#: Patches from which members are aligned, and patches drawn at a time.
ENOUGH, AT_ONCE = 4000, 1000
#: Rotational symmetries of objects that an alignment of angles looks for.
FOLDS = (1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Alignment:
    """How one member's latents read in the reference's language; lists have one entry for each class."""

    order: list[int]
    """The member's class for each of the reference's."""
    fold: list[int]
    """Symmetry of the class's objects, modulo which two members may differ in angle."""
    turn_deg: list[float]
    """Angle of the member minus angle of the reference."""
    shift_px: list[list[float]]
    """The same for shifts, in the objects' frame."""
    log_scale: list[float]
    code: list[list[list[float]]]
    """Orthogonal matrix that turns the member's code."""
    centre: list[list[list[float]]]
    """Mean code of the member and of the reference."""


class Ensemble(TransformerMixin, BaseEstimator):
    """`members` trainings of one latent model with different seeds.

    A scikit-learn estimator with the methods of :class:`VAE`: means over the members where the model gives one answer,
    and :meth:`uncertainty`.

    Parameters
    ----------
    model : VAE
        The model to train; it is left untouched. Member i has the seed ``model.seed + i``.
    members : int
    """

    def __init__(self, model: VAE, members: int = 5) -> None:
        self.model = model
        self.members = members

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        folder: str | Path | None = None,
        resume: bool = True,
    ) -> Ensemble:
        """Train all members, one after the other; arguments as of :meth:`VAE.fit`.

        Each member has a folder of its own in `folder`; one that is finished is not trained again.

        Raises
        ------
        UserError
            Fewer than two members, or anything that :meth:`VAE.fit` refuses.
        """
        if self.members < 2:
            raise UserError(f"An ensemble of {self.members} shows no spread; give at least 2 members.")
        self.members_ = [clone(self.model).set_params(seed=self.model.seed + i) for i in range(self.members)]
        for i, member in enumerate(self.members_):
            own = None if folder is None else Path(folder) / f"member-{i}"
            member.fit(X, y, condition, folder=own, resume=resume)
        some = np.linspace(0, len(X) - 1, min(len(X), ENOUGH)).astype(int)
        images = np.asarray(X, dtype=np.float32)[some]
        given = None if condition is None else np.asarray(condition)[some]
        errors = [_squared_error(member, images, given) for member in self.members_]
        self.reference_ = int(np.argmin(errors))
        tables = [_table(member, images, given) for member in self.members_]
        free = any(isinstance(block, Discrete) for block in self.model.blocks)
        self.alignments_ = [_align(table, tables[self.reference_], free) for table in tables]
        return self

    def transform(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the mean latents ``[N, D]`` in the language of the reference; columns as of :meth:`VAE.transform`."""
        return self._mean_and_spread(X, condition)[0].to_numpy(np.float32)

    def predict_proba(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the mean probability of each class, ``[N, k]``."""
        return self._probabilities(X, condition).mean(axis=0)

    def predict(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the class with the largest mean probability, int ``[N]``, or the mean of the members' values."""
        members = self._fitted()
        if members[0].network.blocks.values is not None:
            return np.mean([member.predict(X, condition) for member in members], axis=0)
        return self.predict_proba(X, condition).argmax(axis=1)

    def inverse_transform(self, Z: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Draw the patches of latents as the reference does; see :meth:`VAE.inverse_transform`."""
        return self._fitted()[self.reference_].inverse_transform(Z, condition)

    def reconstruct(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the mean of the members' reconstructions."""
        return np.mean([member.reconstruct(X, condition) for member in self._fitted()], axis=0)

    def uncertainty(self, X: np.ndarray, condition: np.ndarray | None = None) -> pd.DataFrame:
        """How far the members differ, patch by patch.

        Returns
        -------
        DataFrame
            ``entropy`` of the mean class probability and ``mutual_information`` of class and member, in nats (with
            classes); ``reconstruction``, root mean square over the pixels of the standard deviation between members,
            in units of `X`; ``std_NAME`` between members of every latent NAME that is not a class, after alignment.
        """
        members = self._fitted()
        _, spread = self._mean_and_spread(X, condition)
        out = spread.add_prefix("std_")
        drawn = np.empty(len(X), np.float32)
        for start in range(0, len(X), AT_ONCE):  # bounds the memory
            part = slice(start, start + AT_ONCE)
            given = None if condition is None else np.asarray(condition)[part]
            images = np.stack([member.reconstruct(X[part], given) for member in members])
            drawn[part] = np.sqrt(images.var(axis=0).reshape(images.shape[1], -1).mean(axis=1))
        out.insert(0, "reconstruction", drawn)
        if columns_of(self.get_feature_names_out(), "class"):
            p = self._probabilities(X, condition).astype(np.float64)
            p /= p.sum(axis=2, keepdims=True)  # to the last digit: one minus a probability may be tiny
            entropy = -xlogy(p.mean(axis=0), p.mean(axis=0)).sum(axis=1)
            own = -xlogy(p, p).sum(axis=2).mean(axis=0)
            out.insert(0, "mutual_information", np.maximum(entropy - own, 0))
            out.insert(0, "entropy", entropy)
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`."""
        return self._fitted()[0].get_feature_names_out()

    def save(self, path: str | Path) -> None:
        """Write all members to one ``.safetensors`` file."""
        members = self._fitted()
        settings = {
            "members": [member.settings() for member in members],
            "reference": self.reference_,
            "alignments": [asdict(alignment) for alignment in self.alignments_],
        }
        networks = {f"member-{i}": member.network for i, member in enumerate(members)}
        save_model(Path(path), networks, settings, "vae ensemble")

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Ensemble:
        """Read what :meth:`save` wrote."""
        states, settings = load_model(Path(path), "vae ensemble")
        with built_alike(path):
            members = [
                VAE.restored(own, states[f"member-{i}"], device) for i, own in enumerate(settings["members"])
            ]
            ensemble = cls(clone(members[0]), len(members))
            ensemble.members_, ensemble.reference_ = members, settings["reference"]
            ensemble.alignments_ = [Alignment(**values) for values in settings["alignments"]]
        return ensemble

    def _fitted(self) -> list[VAE]:
        if not hasattr(self, "members_"):
            raise UserError("This ensemble is not trained; call fit or load first.")
        return self.members_

    def _probabilities(self, X: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        """Class probabilities of all members in the reference's order, ``[M, N, k]``."""
        each = [member.predict_proba(X, condition) for member in self._fitted()]
        return np.stack([p[:, a.order] for p, a in zip(each, self.alignments_, strict=True)])

    def _mean_and_spread(
        self, X: np.ndarray, condition: np.ndarray | None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Means over members of all latents, and standard deviations of those that are not classes."""
        tables = [_table(member, X, condition) for member in self._fitted()]
        classes = _class_columns(tables[0])
        mean = tables[self.reference_].copy()
        for name in classes:
            mean[name] = 0.0
        if classes:
            for table, alignment in zip(tables, self.alignments_, strict=True):
                mean[classes] += table[classes].to_numpy()[:, alignment.order] / len(tables)
        kind = mean[classes].to_numpy().argmax(axis=1) if classes else np.zeros(len(mean), int)
        reference = tables[self.reference_]
        others = [c for c in mean if c not in classes]
        # Differences to the reference, so that angles do not jump at half a turn.
        differences = np.stack(
            [
                _differences(table, reference, a, kind)[others].to_numpy()
                for table, a in zip(tables, self.alignments_, strict=True)
            ]
        )
        mean[others] = reference[others].to_numpy() + differences.mean(axis=0)
        if "angle_deg" in mean:
            mean["angle_deg"] = (mean["angle_deg"] + 180) % 360 - 180
        return mean, pd.DataFrame(differences.std(axis=0), columns=others)


def uncertainty_by_classes(
    model: VAE,
    X: np.ndarray,
    numbers: Sequence[int],
    members: int = 3,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Train an ensemble for each number of classes: where the members stop agreeing, there are too many.

    Parameters
    ----------
    model : VAE
        With a `Discrete` block, whose number of classes is replaced.
    X : array ``[N, H, W]`` or ``[N, C, H, W]``
    numbers : sequence of int
        Numbers of classes to try.
    members : int
    folder : path, optional
        Keeps the trainings; what is there is not trained again.

    Returns
    -------
    DataFrame
        By number: ``classes``; ``entropy`` and ``mutual_information``, means over the patches in nats;
        ``agreement``, share of all votes of members that are for the class of the mean; ``error``, mean squared
        error of the mean reconstruction.
    """
    if not any(isinstance(block, Discrete) for block in model.blocks):
        raise UserError("The number of classes can be varied in a model with a Discrete block only.")
    rows = []
    for k in numbers:
        blocks = [replace(b, k=k) if isinstance(b, Discrete) else b for b in model.blocks]
        own = None if folder is None else Path(folder) / f"classes-{k}"
        ensemble = Ensemble(clone(model).set_params(blocks=blocks), members).fit(X, folder=own)
        p = ensemble._probabilities(X, None)
        votes = (p.argmax(axis=2) == p.mean(axis=0).argmax(axis=1)).mean()
        spread = ensemble.uncertainty(X)
        error = np.mean((ensemble.reconstruct(X) - np.asarray(X, np.float32)) ** 2)
        rows.append(
            {
                "classes": k,
                "entropy": spread["entropy"].mean(),
                "mutual_information": spread["mutual_information"].mean(),
                "agreement": float(votes),
                "error": float(error),
            }
        )
    return pd.DataFrame(rows)


def _table(member: VAE, X: np.ndarray, condition: np.ndarray | None) -> pd.DataFrame:
    return pd.DataFrame(np.asarray(member.transform(X, condition)), columns=member.get_feature_names_out())


def _class_columns(table: pd.DataFrame) -> list[str]:
    return [table.columns[i] for i in columns_of(table.columns, "class")]


def _squared_error(member: VAE, X: np.ndarray, condition: np.ndarray | None) -> float:
    parts = []
    for start in range(0, len(X), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        given = None if condition is None else condition[part]
        parts.append(((member.reconstruct(X[part], given) - X[part]) ** 2).reshape(len(X[part]), -1).mean(1))
    return float(np.concatenate(parts).mean())


def _align(table: pd.DataFrame, reference: pd.DataFrame, free: bool) -> Alignment:
    """Find what turns a member's latents into the reference's; `free`: classes have no names."""
    names = _class_columns(table)
    k, n = max(len(names), 1), len(table)
    order, kind, own = list(range(k)), np.zeros(n, int), np.zeros(n, int)
    if names:
        mine, theirs = table[names].to_numpy(), reference[names].to_numpy()
        if free:
            order = [int(i) for i in linear_sum_assignment(-(theirs.T @ mine))[1]]
        kind, own = theirs.argmax(axis=1), mine[:, order].argmax(axis=1)
    codes = _code_columns(table)
    entries: list[tuple[int, float, list[float], float, list, list]] = []
    for c in range(k):
        both = (kind == c) & (own == c)
        a, b = table[both], reference[both]
        fold, turn, shift, log_scale = 1, 0.0, [0.0, 0.0], 0.0
        matrix, centre = np.eye(len(codes)), np.zeros((2, len(codes)))
        if len(a) > 2 * len(codes) + 3:
            if "angle_deg" in a:
                fold, turn = _common_turn((a["angle_deg"] - b["angle_deg"]).to_numpy())
            if "shift_x_px" in a:
                mean = (_shift_in_own_frame(a, b)).mean()
                shift = [float(mean.real), float(mean.imag)]
            if "scale" in a:
                log_scale = float(np.log(a["scale"] / b["scale"]).mean())
            if codes:
                centre = np.stack([a[codes].mean(), b[codes].mean()])
                matrix, _ = orthogonal_procrustes(a[codes] - centre[0], b[codes] - centre[1])
        entries.append((fold, turn, shift, log_scale, matrix.tolist(), centre.tolist()))
    return Alignment(order, *(list(column) for column in zip(*entries, strict=True)))


def _differences(
    table: pd.DataFrame, reference: pd.DataFrame, alignment: Alignment, kind: np.ndarray
) -> pd.DataFrame:
    """Latents of a member minus those of the reference, aligned; `kind`: class of each patch."""
    out = table - reference
    codes = _code_columns(table)
    fold, turn = np.array(alignment.fold)[kind], np.array(alignment.turn_deg)[kind]
    if "angle_deg" in out:
        period = 360 / fold
        out["angle_deg"] = (out["angle_deg"] - turn + period / 2) % period - period / 2
    if "shift_x_px" in out:
        offset = np.array(alignment.shift_px)[kind] @ [1, 1j]
        back = (_shift_in_own_frame(table, reference) - offset) * _turned(reference, -1)
        out["shift_x_px"], out["shift_y_px"] = back.real, back.imag
    if "scale" in out:
        ratio = table["scale"] / reference["scale"] * np.exp(-np.array(alignment.log_scale)[kind])
        out["scale"] = (ratio - 1) * reference["scale"]
    if codes:
        centre = np.array(alignment.centre)[kind]
        turned = np.einsum("ni,nij->nj", table[codes] - centre[:, 0], np.array(alignment.code)[kind])
        out[codes] = turned + centre[:, 1] - reference[codes].to_numpy()
    return out


def _code_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name[0] == "z"]


def _turned(table: pd.DataFrame, sign: int) -> np.ndarray:
    """Complex factor that turns screen vectors (x + iy, y down) into the objects' frame; -1: back."""
    if "angle_deg" not in table:
        return np.ones(len(table), complex)
    return np.exp(sign * 1j * np.deg2rad(table["angle_deg"].to_numpy()))


def _shift_in_own_frame(table: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    columns = ["shift_x_px", "shift_y_px"]
    return (table[columns].to_numpy() - reference[columns].to_numpy()) @ [1, 1j] * _turned(reference, 1)


def _common_turn(difference_deg: np.ndarray) -> tuple[int, float]:
    """Symmetry of the objects and offset of the angles between two members.

    Where the objects are symmetric, two members differ by any multiple of its angle; so the least fold under which the
    differences agree well is taken (mean resultant length above 0.8), else none.
    """
    for fold in FOLDS:
        resultant = np.exp(1j * np.deg2rad(fold * difference_deg)).mean()
        if abs(resultant) > 0.8:
            return fold, float(np.rad2deg(np.angle(resultant)) / fold)
    return 1, float(np.rad2deg(np.angle(np.exp(1j * np.deg2rad(difference_deg)).mean())))
