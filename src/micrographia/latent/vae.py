"""The estimator: fit, transform, inverse_transform, predict, save, load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from micrographia.errors import UserError
from micrographia.latent import blocks as blocks_module
from micrographia.latent.blocks import Block, Blocks, Capacity, Classes, Condition, gather
from micrographia.latent.model import (
    LatentNetwork,
    LatentTraining,
    Term,
    VaeConfig,
    classified,
    responsibilities,
)
from micrographia.latent.pose import Pose
from micrographia.nets.weights import built_alike, load_model, save_model
from micrographia.training.device import choose_device
from micrographia.training.loop import TrainConfig, TrainResult, train

#: Hypotheses weighed at a time when encoding: bounds the memory, whatever the size of the stack.
AT_ONCE = 4096


class VAE(TransformerMixin, BaseEstimator):
    """Variational autoencoder whose latent space is a list of blocks.

    A scikit-learn estimator. The named models of the literature are presets: `micrographia.latent.presets`.

    Parameters
    ----------
    blocks : sequence of blocks
        See `micrographia.latent.blocks`; at most one of each kind, in any order.
    config : VaeConfig, optional
    seed : int
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    terms : sequence of callables
        What physics knows beyond the patches, in nats that the training adds to its loss; see
        `micrographia.latent.terms`. Not part of a saved model.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        config: VaeConfig | None = None,
        seed: int = 0,
        device: str = "auto",
        terms: Sequence[Term] = (),
    ) -> None:
        self.blocks = blocks
        self.config = config
        self.seed = seed
        self.device = device
        self.terms = terms

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        folder: str | Path | None = None,
        resume: bool = True,
    ) -> VAE:
        """Learn from patches.

        Parameters
        ----------
        X : array ``[N, H, W]`` or ``[N, C, H, W]``
        y : array ``[N]``, optional
            Labels for a `Classes` block, -1 = unknown; or numbers ``[N]`` or ``[N, n]`` for a `Values` block,
            NaN = unknown. Ignored without one of them.
        condition : array ``[N]`` or ``[N, n]``, optional
            For a `Condition` block: values (float), or labels 0 to n - 1 (int).
        folder : path, optional
            Where the training keeps its state; one that was interrupted goes on from there, bit for bit.
        resume : bool
            False starts over in a folder that holds a training.

        Raises
        ------
        UserError
            Patches that are not finite, all constant, fewer than a batch, or out of the loss's range; labels
            or conditions that are missing or do not fit.
        KeyboardInterrupt
            After Ctrl-C; the state is kept in `folder`.
        """
        latent, config = gather(self.blocks), self.config or VaeConfig()
        images, flat = _as_stack(X)
        n = len(images)
        _check_training(images, config)
        labels = _labels(y, latent, n)
        known, value_scale = _values(y, latent, n)
        given, given_scale = _conditions(condition, latent.condition, n, None)
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        per_epoch = n // config.batch
        steps = per_epoch * config.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = LatentNetwork(latent, shape, config)
        mean, std = (torch.from_numpy(f(images, axis=(0, 2, 3), dtype=np.float64)) for f in (np.mean, np.std))
        network.learn_scale(mean.float(), std.float())
        mean_, std_ = (t.float()[:, None, None] for t in (mean, std))
        model = LatentTraining(network, steps, self.terms)
        labelled = np.flatnonzero((labels >= 0) | np.isfinite(known).any(axis=1))
        order: dict[int, np.ndarray] = {}

        def batches(step: int) -> tuple[Tensor, ...]:
            epoch, place = divmod(step, per_epoch)
            if epoch not in order:
                order.clear()
                order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(n)
            which = order[epoch][place * config.batch : (place + 1) * config.batch]
            if len(labelled):  # a quarter of every batch, however few there are
                draw = np.random.default_rng([self.seed, epoch, place])
                which = np.concatenate([which[config.batch // 4 :], draw.choice(labelled, config.batch // 4)])
            which = np.sort(which)
            standard = (torch.from_numpy(images[which]) - mean_) / std_
            return (
                standard,
                *(torch.from_numpy(a[which]) for a in (given, labels, known)),
                torch.from_numpy(which),
            )

        run = TrainConfig(
            steps=steps,
            seed=self.seed,
            device=self.device,  # type: ignore[arg-type]
            precision="fp32",
            log_every=min(per_epoch, 50),
            checkpoint_every=max(steps // 5, 1),
        )
        with tempfile.TemporaryDirectory() as temporary:
            result: TrainResult = train(
                model, batches, run, folder or temporary, resume=resume, label="latent model",
                inputs=[images, labels, known, given, repr((list(self.blocks), config)), *map(_identity, self.terms)],
            )  # fmt: skip
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        # Only now: a fit that fails leaves what was learnt before.
        self._network, self.history_ = network.eval(), result.history
        self.shape_, self._flat, self._given_scale, self._value_scale = shape, flat, given_scale, value_scale
        return self

    def transform(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Encode patches to ``[N, D]``, columns as `get_feature_names_out` names them."""
        return self._encode(X, condition)[0]

    def fit_transform(self, X: np.ndarray, y: np.ndarray | None = None, **fit_params: Any) -> np.ndarray:
        """Fit, then encode the same patches."""
        return self.fit(X, y, **fit_params).transform(X, fit_params.get("condition"))

    def predict(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the most probable class of each patch, int ``[N]``; with a `Values` block the values.

        Values are float ``[N]``, or ``[N, n]`` for several.
        """
        if (block := self.network.blocks.values) is None:
            return self.predict_proba(X, condition).argmax(axis=1)
        table, names = self._encode(X, condition)[0], self.get_feature_names_out()
        values = table[:, columns_of(names, "value")]
        return values[:, 0] if block.n == 1 else values

    def predict_proba(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Return the probability of each class, ``[N, k]``."""
        if self.network.blocks.discrete is None:
            raise UserError("This model has no classes to predict; add a Discrete or a Classes block.")
        return self._encode(X, condition)[1]

    def inverse_transform(self, Z: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Draw the patches of codes ``[N, D]`` (columns as `transform` returns them), in the units of X.

        Of class probabilities the largest counts. Drop the pose (set shift and angle to 0, scale to 1) to
        see the content alone.
        """
        network = self.network
        names, blocks = list(self.get_feature_names_out()), network.blocks
        Z = np.asarray(Z, dtype=np.float32)
        if Z.ndim != 2 or Z.shape[1] != len(names) or not np.isfinite(Z).all():
            raise UserError(
                f"Codes must be finite numbers [N, {len(names)}] ({', '.join(names)}), got {list(Z.shape)}."
            )
        given, _ = _conditions(condition, blocks.condition, len(Z), self._given_scale)
        column = {name: Z[:, i] for i, name in enumerate(names)}
        zeros, half = np.zeros(len(Z), np.float32), max(self.shape_[1:]) / 2
        shift = np.stack([column.get("shift_x_px", zeros), column.get("shift_y_px", zeros)], axis=1) / half
        scale = np.log(np.maximum(column["scale"], 1e-3)) if blocks.scale else zeros
        angle = np.deg2rad(column.get("angle_deg", zeros))
        lie = [torch.from_numpy(np.asarray(a, np.float32)) for a in (angle, shift, scale)]
        code = Z[:, columns_of(names, "z")]
        if blocks.values:
            values = Z[:, columns_of(names, "value")]
            centre, width = self.value_scale
            code = np.concatenate([code, (values - centre) / width], axis=1)
        one_hot = np.zeros((len(Z), 0), np.float32)
        if blocks.discrete:
            p = Z[:, columns_of(names, "class")]
            one_hot = np.eye(blocks.classes, dtype=np.float32)[p.argmax(axis=1)]
        network.to("cpu").eval()
        with torch.inference_mode():
            parts = [torch.from_numpy(a) for a in (code, one_hot, given)]
            drawn = []
            for start in range(0, max(len(Z), 1), 256):  # bounds the memory
                some = slice(start, start + 256)
                pose = Pose(*(t[some] for t in lie))
                drawn.append(network.draw(parts[0][some], parts[1][some], parts[2][some], pose))
            images = network.in_units(torch.cat(drawn)).numpy()
        return images[:, 0] if self._flat else images

    def reconstruct(self, X: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        """Encode and draw again."""
        return self.inverse_transform(self.transform(X, condition), condition)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`."""
        blocks = self.network.blocks
        names = ["angle_deg"] if blocks.rotation else []
        names += ["shift_x_px", "shift_y_px"] if blocks.translation else []
        names += ["scale"] if blocks.scale else []
        names += [f"z{i + 1}" for i in range(blocks.continuous.n)] if blocks.continuous else []
        names += [f"value{i + 1}" for i in range(blocks.values.n)] if blocks.values else []
        names += [f"class{i}" for i in range(blocks.classes)] if blocks.discrete else []
        return np.array(names, dtype=object)

    def save(self, path: str | Path) -> None:
        """Write the model to one ``.safetensors`` file."""
        save_model(Path(path), {"vae": self.network}, self.settings(), "vae")

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> VAE:
        """Read what :meth:`save` wrote."""
        states, settings = load_model(Path(path), "vae")
        with built_alike(path):
            return cls.restored(settings, states["vae"], device)

    def settings(self) -> dict[str, Any]:
        """What rebuilds this model beside the weights of :attr:`network`, as plain values."""
        return {
            "blocks": [_block_to_dict(block) for block in self.blocks],
            "config": asdict(self.network.config),
            "seed": self.seed,
            "shape": list(self.shape_),
            "flat": self._flat,
            "given_scale": self._given_scale,
            "value_scale": self._value_scale,
        }

    @classmethod
    def restored(cls, settings: dict[str, Any], state: dict[str, Tensor], device: str = "auto") -> VAE:
        """Rebuild a model from its :meth:`settings` and the state of its network."""
        blocks = [_block_from_dict(block) for block in settings["blocks"]]
        vae = cls(blocks, VaeConfig(**settings["config"]), settings["seed"], device)
        vae.shape_, vae._flat = tuple(settings["shape"]), settings["flat"]
        vae._given_scale, vae._value_scale = settings["given_scale"], settings.get("value_scale")
        vae._network = LatentNetwork(gather(blocks), vae.shape_, VaeConfig(**settings["config"]))
        vae._network.load_state_dict(state)
        vae._network.eval()
        return vae

    @property
    def value_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the values that were told, of a model with a `Values` block."""
        centre, width = np.array(self._value_scale, np.float32)
        return centre, width

    @property
    def network(self) -> LatentNetwork:
        """The trained network; complains where there is none."""
        if not hasattr(self, "_network"):
            raise UserError("This latent model is not trained; call fit or load first.")
        return self._network

    @torch.inference_mode()
    def _encode(self, X: np.ndarray, condition: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Columns of `transform`, and class probabilities ``[N, C]``."""
        network = self.network
        images, _ = _as_stack(X)
        if images.shape[1:] != self.shape_:
            raise UserError(
                f"This model was trained on patches of {_describe(self.shape_)}, got {_describe(images.shape[1:])}; "
                "cut the patches alike, or train another model."
            )
        blocks, device = network.blocks, choose_device(self.device)
        given, _ = _conditions(condition, blocks.condition, len(images), self._given_scale)
        network.to(device).eval()
        step = max(AT_ONCE // (blocks.candidates * blocks.classes), 1)
        with network.at_rest():
            parts = [
                self._encoded(
                    torch.from_numpy(images[i : i + step]).to(device),
                    torch.from_numpy(given[i : i + step]).to(device),
                )
                for i in range(0, len(images), step)
            ]
        tables, chances = zip(*parts, strict=True)
        return np.concatenate(tables), np.concatenate(chances)

    def _encoded(self, images: Tensor, given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The same of one batch."""
        network, blocks = self.network, self.network.blocks
        standard = network.standardised(images)
        candidates = network.candidates(len(standard))
        cost = classified(*network.weigh(standard, candidates, given))
        r = responsibilities(cost.flatten(1), np.inf).view(-1, blocks.candidates, blocks.classes)
        angle = candidates.gather(1, r.sum(2).argmax(1, keepdim=True))[:, 0]
        seen = network.seen(standard)
        found = network.infer(seen, angle, given)
        if blocks.rotation:  # once more from where the first pass ended
            found = network.infer(seen, found.pose.angle, given)
        columns = []
        if blocks.rotation:
            turned = torch.rad2deg(found.pose.angle)[:, None]
            columns.append((turned + 180) % 360 - 180)
        if blocks.translation:
            columns.append(found.pose.shift * max(self.shape_[1:]) / 2)
        if blocks.scale:
            columns.append(found.pose.log_scale.exp()[:, None])
        code = found.code
        if blocks.values:
            centre, width = torch.tensor(self._value_scale, device=images.device)
            values = code[:, -blocks.values.n :] * width + centre
            code = torch.cat([code[:, : -blocks.values.n], values], dim=1)
        columns.append(code)
        classes = r.sum(1)
        if blocks.discrete:
            columns.append(classes)
        return torch.cat(columns, dim=1).cpu().numpy(), classes.cpu().numpy()


def columns_of(names: Iterable[str], *starts: str) -> list[int]:
    """Where the columns of a latent stand among the names of `get_feature_names_out`: "z", "value" or "class"."""
    return [i for i, name in enumerate(names) if name.startswith(starts)]


def _identity(term: Term) -> list[Any]:
    """What tells a term from others: its name, and the numbers and arrays that it was made with."""
    cells = [cell.cell_contents for cell in getattr(term, "__closure__", None) or ()]
    told = [c for c in cells if isinstance(c, int | float | str | np.ndarray | Tensor)]
    return [getattr(term, "__qualname__", type(term).__qualname__), *told]


def _as_stack(X: Any) -> tuple[np.ndarray, bool]:
    """Patches as float32 ``[N, C, H, W]``, and whether they came without a channel axis."""
    if isinstance(X, list | tuple) and len({np.shape(x) for x in X}) > 1:
        shapes = sorted({np.shape(x) for x in X})
        raise UserError(
            f"The patches differ in size: {', '.join(map(_describe, shapes[:4]))}; cut them all with one window."
        )
    try:
        images = np.asarray(X, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Patches must be an array of numbers [N, H, W] or [N, C, H, W] ({error})."
        ) from error
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"Patches must be [N, H, W] or [N, C, H, W] and not empty, got {list(images.shape)}.")
    bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(images)} patches hold NaN or infinite values (first: patch {bad[0]}); "
            "leave them out or fill the gaps."
        )
    flat = images.ndim == 3
    return np.ascontiguousarray(images[:, None] if flat else images), flat


def _check_training(images: np.ndarray, config: VaeConfig) -> None:
    if min(images.shape[2:]) < 6:
        raise UserError(
            f"Patches of {_describe(images.shape[1:])} show too little; use a window of at least 6 px."
        )
    if len(images) < config.batch:
        raise UserError(
            f"{len(images)} patches are fewer than a batch of {config.batch}; set batch to at most {len(images)}, "
            "or give more patches."
        )
    flat = np.flatnonzero(np.ptp(images.reshape(len(images), -1), axis=1) == 0)
    if len(flat):
        raise UserError(
            f"{len(flat)} of {len(images)} patches are constant (first: patch {flat[0]}): there is nothing to "
            "learn from them; leave them out."
        )
    for channel in range(images.shape[1]):
        if np.ptp(images[:, channel]) == 0:
            raise UserError(f"Channel {channel} of the patches is constant; leave it out.")
    low, high = float(images.min()), float(images.max())
    if config.loss == "bernoulli" and (low < 0 or high > 1):
        raise UserError(
            f"The Bernoulli loss needs intensities from 0 to 1, these run from {low:.4g} to {high:.4g}; "
            "rescale them or use the Gaussian loss."
        )
    if config.loss == "poisson" and low < 0:
        raise UserError(
            f"The Poisson loss needs counts, but the least value is {low:.4g}; use the Gaussian loss."
        )


def _labels(y: Any, latent: Blocks, n: int) -> np.ndarray:
    unknown = np.full(n, -1, dtype=np.int64)
    if not isinstance(latent.discrete, Classes):
        return unknown
    k = latent.discrete.k
    if y is None:
        raise UserError(f"Classes({k}) needs labels y [N]: 0 to {k - 1}, -1 = unknown; or use Discrete({k}).")
    try:
        labels = np.asarray(y)
    except ValueError as error:
        raise UserError(f"Labels must be {n} whole numbers, one for each patch ({error}).") from error
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.number) or not np.isfinite(labels).all():
        raise UserError(
            f"Labels must be {n} whole numbers, one for each patch (-1 = unknown); number your classes from 0."
        )
    labels = labels.astype(np.int64)
    if (np.asarray(y) != labels).any():
        raise UserError("Labels must be whole numbers (-1 = unknown).")
    strange = sorted(set(labels.tolist()) - set(range(-1, k)))
    if strange:
        raise UserError(f"Labels {strange[:5]} are not among the classes 0 to {k - 1} (-1 = unknown).")
    missing = sorted(set(range(k)) - set(labels.tolist()))
    if len(missing) == k:
        raise UserError(
            f"All labels are missing; label at least one patch of each class, or use Discrete({k})."
        )
    if missing:
        raise UserError(
            f"No patch is labelled with class {missing[0]}; label one, or lower k to those present."
        )
    return labels


def _values(y: Any, latent: Blocks, n: int) -> tuple[np.ndarray, list[list[float]] | None]:
    """Known values ``[N, v]``, standardised, NaN = unknown; and their means and deviations."""
    if latent.values is None:
        return np.full((n, 0), np.nan, np.float32), None
    size = latent.values.n
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"Values must be numbers [{n}, {size}], NaN = unknown ({error}).") from error
    values = values[:, None] if values.ndim == 1 else values
    if y is None or values.shape != (n, size) or np.isinf(values).any():
        raise UserError(
            f"Values({size}) needs y: finite numbers [{n}, {size}], NaN = unknown; got {list(values.shape)}."
        )
    for column in range(size):
        if len(np.unique(values[np.isfinite(values[:, column]), column])) < 2:
            raise UserError(
                f"Fewer than two different values of number {column + 1} are known; give more, or use Continuous."
            )
    scale = [np.nanmean(values, axis=0), np.nanstd(values, axis=0)]
    return ((values - scale[0]) / scale[1]).astype(np.float32), [s.tolist() for s in scale]


def _conditions(
    values: Any, block: Condition | None, n: int, scale: list[Any] | None
) -> tuple[np.ndarray, list[Any] | None]:
    """Given numbers ``[N, n]`` (labels one-hot, values standardised), and how they were scaled."""
    if block is None:
        if values is not None:
            raise UserError("A condition was given, but the latent space has no Condition block; add one.")
        return np.zeros((n, 0), np.float32), None
    if values is None:
        raise UserError(
            f"This model needs a condition for every patch: [{n}] labels or [{n}, {block.n}] values."
        )
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.integer) and array.shape == (n,):
        if array.min() < 0 or array.max() >= block.n:
            raise UserError(
                f"Condition labels must be 0 to {block.n - 1}, got {array.min()} to {array.max()}."
            )
        if scale not in (None, ["labels"]):
            raise UserError("This model was trained on values as conditions; give floating-point numbers.")
        return np.eye(block.n, dtype=np.float32)[array], ["labels"]
    if scale == ["labels"]:
        raise UserError("This model was trained on labels as conditions; give integers.")
    array = array[:, None] if array.ndim == 1 else array
    if array.shape != (n, block.n) or not np.issubdtype(array.dtype, np.number):
        raise UserError(
            f"Conditions must be numbers [{n}, {block.n}] or whole-number labels [{n}], got {list(array.shape)} of "
            f"{array.dtype}; number classes from 0."
        )
    if not np.isfinite(array).all():
        bad = (~np.isfinite(array)).sum()
        raise UserError(f"{bad} of the conditions are NaN or infinite; leave those patches out.")
    if scale is None:
        scale = [array.mean(axis=0).tolist(), np.maximum(array.std(axis=0), 1e-12).tolist()]
    return ((array - np.array(scale[0])) / np.array(scale[1])).astype(np.float32), scale


def _describe(shape: Sequence[int]) -> str:
    *channels, height, width = [1, *shape] if len(shape) > 1 else [1, *shape, 1]
    count = f"{channels[-1]} channels of " if channels[-1] > 1 else ""
    return f"{count}{height} x {width} px"


def _block_to_dict(block: Block) -> dict[str, Any]:
    return {"block": type(block).__name__, **asdict(block)}


def _block_from_dict(values: dict[str, Any]) -> Block:
    values = dict(values)
    kind = getattr(blocks_module, values.pop("block"))
    if values.get("capacity"):
        values["capacity"] = Capacity(**values["capacity"])
    return kind(**values)
