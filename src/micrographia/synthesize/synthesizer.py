"""Learn a population of micrographs; draw new members of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from micrographia.errors import UserError
from micrographia.metrics.distances import frechet_distance, standardise
from micrographia.metrics.features import physical_features
from micrographia.nets.weights import built_alike, load_model, save_model, weights_key
from micrographia.synthesize.augment import INTERVAL, AugmentConfig
from micrographia.synthesize.gan import GAN, GanConfig, make_generator
from micrographia.synthesize.images import TrainingSet, Window
from micrographia.synthesize.latents import (
    classes_in_turn,
    codes_of,
    linear_path,
    noise_of,
    project,
    spherical_path,
)
from micrographia.synthesize.stylegan import GROUP, detail_gain, least_spread
from micrographia.training import distributed
from micrographia.training.device import autocast, choose_device
from micrographia.training.loop import (
    OutOfMemory,
    TrainConfig,
    TrainingDiverged,
    TrainResult,
    out_of_memory_explained,
    train,
)

#: Images on which the distance to the real ones is measured during training, at most.
WATCHED = 512
#: Standard deviations of the real images to which features are clipped for that distance. A young generator misses some
#: (the noise level) by hundreds; unclipped they would outweigh everything else, and noise be taken for the best state.
LIMIT = 5.0
#: Images drawn at once.
_DRAWN_AT_ONCE = 16
#: The physical features count lengths in Å; images that are only compared with each other have this pixel, which
#: spreads their frequency bands over all that 16 px and more can show.
FEATURE_PIXEL_A = 0.2


class Synthesizer:
    """A generative model of images of one size.

    Parameters
    ----------
    config : GanConfig
    """

    def __init__(self, config: GanConfig | None = None) -> None:
        self.config = config or GanConfig()
        self.generator: Any = None
        self.window = Window(-1.0, 1.0)
        self.pixel_size_A: float | None = None
        self.classes: tuple[str, ...] = ()
        self.channels = 1
        self.binning = 1
        self.scale_each = False
        self.fit_by: Literal["crop", "resize"] = "crop"
        self.shape_px = (self.config.resolution, self.config.resolution)
        self.seed = 0

    def fit(
        self,
        images: TrainingSet,
        folder: str | Path,
        seed: int = 0,
        device: str = "auto",
        watch: Callable[[int, np.ndarray], None] | None = None,
        unseen: TrainingSet | None = None,
    ) -> TrainResult:
        """Learn from a set of images; the state kept is the one nearest to them.

        Nearest by the Fréchet distance of physical features, brightness and contrast, each clipped to `LIMIT`.

        Parameters
        ----------
        images : TrainingSet
        folder : path
            For the states of the training, which goes on there when it was interrupted.
        seed : int
        device : str
        watch : callable, optional
            ``watch(step, samples [N, C, H, W])`` is shown samples at every look.
        unseen : TrainingSet, optional
            Images of the same population and window that are not learnt from: augmentation adapts to how much the
            critic knows by heart. Eight or more tell something; fewer than a group of the critic are not used.

        Raises
        ------
        UserError
            Fewer images than a batch, or of another size than the networks'.
        """
        config = self.config
        self.check(images)
        height, width = images.images.shape[-2:]
        self.window, self.pixel_size_A, self.classes, self.seed = (
            images.window, images.pixel_size_A, images.classes, seed,
        )  # fmt: skip
        self.channels, self.shape_px = images.images.shape[1], (height, width)
        self.binning, self.fit_by, self.scale_each = images.binning, images.fit, images.scale_each
        labels = images.class_numbers
        _, world = distributed.rank_and_world()
        batch = config.batch
        if world > 1 and config.network == "dcgan":
            raise UserError(
                "A DCGAN's batch normalisation needs the whole batch: train it in one process, not with torchrun."
            )
        if batch % (GROUP * world):
            raise UserError(
                f"gan.batch = {batch} cannot be shared by {world} processes in groups of {GROUP}."
            )
        rng = np.random.default_rng([seed, 5])
        some = rng.choice(len(images), min(len(images), WATCHED), replace=False)
        shown_real = images.batch(some)
        detail = detail_gain(shown_real) if config.detail and config.network == "stylegan2" else 0.0
        spread = least_spread(shown_real) if config.variety else 0.0
        model = GAN(config, self.channels, len(self.classes), self.shape_px, seed, detail, spread)

        asked = 0
        if unseen is not None and config.network == "stylegan2":
            asked = min(batch, len(unseen) // GROUP * GROUP)

        def batches(step: int) -> tuple[Tensor, ...]:
            # Every image once before any comes again.
            chosen = distributed.shard(_epochs(len(images), batch, step, seed))
            taken = images.batch(chosen), torch.from_numpy(labels[chosen])
            if not asked:
                return taken
            assert unseen is not None
            due = step % INTERVAL == 0  # asked about now and then, and only then cut and sent to the device
            others = _epochs(len(unseen), asked, step, seed) if due else np.zeros(0, int)
            return *taken, unseen.batch(others), torch.from_numpy(unseen.class_numbers[others])

        real = _features(shown_real.numpy())
        shown = rng.integers(2**31, size=WATCHED)
        shown_labels = torch.from_numpy(labels[rng.integers(len(images), size=WATCHED)])

        def look(step: int) -> dict[str, float]:
            samples = _draw(model.drawing_generator(), shown, shown_labels if self.classes else None)
            if watch is not None:
                watch(step, samples)
            known, drawn = standardise(real, _features(samples))
            return {"frechet": frechet_distance(known.clip(-LIMIT, LIMIT), drawn.clip(-LIMIT, LIMIT))}

        run = TrainConfig(
            steps=config.steps,
            seed=seed,
            device=device,  # type: ignore[arg-type]
            ema_decay=config.ema_decay,
            log_every=10,
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.evaluate_every,
            patience=config.patience,
        )
        failed: OutOfMemory | None = None
        try:
            result = train(
                model,
                batches,
                run,
                folder,
                look,
                "frechet",
                label="gan",
                inputs=[str(asdict(config)), images.images[:256]],
            )
        except TrainingDiverged:
            if (Path(folder) / "best.safetensors").exists():  # which the model then is
                self._take(model)
            raise
        except OutOfMemory as error:
            # The failed step's tensors hang on its traceback.
            for cause in (error, error.__cause__):
                if cause is not None:
                    traceback.clear_frames(cause.__traceback__)
            failed = error
            del model, batches, look
        if failed is not None:
            fits = self._largest_batch(choose_device(device), detail, spread)
            mend = f"set gan.batch = {fits}, which fits" if fits else "choose a smaller resolution or width"
            raise OutOfMemory(
                f"Out of memory with a batch of {batch} at {config.resolution} px: {mend}, or accumulate parts "
                "(gan.accumulate); another recipe takes another folder."
            ) from failed
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        self._take(model)
        return result

    def check(self, images: TrainingSet) -> None:
        """Raise `UserError` if these images cannot be learnt with these settings."""
        config = self.config
        height, width = images.images.shape[-2:]
        if not config.resolution // 2 < max(height, width) <= config.resolution:
            raise UserError(
                f"The images have {width} x {height} px, the networks {config.resolution}: read them with the networks' "
                "resolution."
            )
        if config.network == "dcgan" and (height, width) != (config.resolution, config.resolution):
            raise UserError(
                f"A dcgan draws squares of {config.resolution} px only, not {width} x {height}; choose stylegan2, or "
                "such images."
            )
        if len(images) < config.batch:
            raise UserError(
                f"{len(images)} images are fewer than a batch of {config.batch}: give more images, cut more patches "
                "of each (images.crops_per_image), or set gan.batch smaller."
            )

    def sample(
        self,
        seeds: Sequence[int],
        truncation: float = 1.0,
        label: str | int | None = None,
        device: str = "auto",
    ) -> np.ndarray:
        """Draw images, each a function of its seed.

        Parameters
        ----------
        seeds : sequence of int
        truncation : float
            Below 1, styles are drawn towards the mean one: fewer odd images, less diversity; StyleGAN2 only.
        label : str or int, optional
            The class to draw; needed if the model knows classes.

        Returns
        -------
        float32 ``[N, C, H, W]``
            In -1 ... 1, the training window; :meth:`Window.restore` gives grey levels.
        """
        return _draw(self._ready(device), list(seeds), self._labels(label, len(seeds)), truncation)

    def styles(self, seeds: Sequence[int], label: str | int | None = None, device: str = "auto") -> Tensor:
        """Styles ``[N, latent]`` of seeds; StyleGAN2 only."""
        network = self._ready(device)
        self._require_styles("styles")
        where = next(network.parameters()).device
        labels = self._labels(label, len(seeds))
        with torch.inference_mode():
            z = codes_of(list(seeds), network.latent).to(where)
            return network.mapping(z, None if labels is None else labels.to(where)).cpu()

    def interpolate(
        self,
        start: int | Tensor,
        end: int | Tensor,
        steps: int = 60,
        space: Literal["z", "w"] | None = None,
        spherical: bool | None = None,
        truncation: float = 1.0,
        label: str | int | None = None,
        device: str = "auto",
    ) -> np.ndarray:
        """Images ``[steps, C, H, W]`` on the way between two images, all with the noise of the first (see `draw_styles`).

        Parameters
        ----------
        start, end : int, or tensor ``[latent]``
            Seeds, or styles (of projected images, say; in space "w").
        space : "z" or "w", optional
            Between codes, or between styles (StyleGAN2 only); None: see `path`.
        spherical : bool, optional
            Along a great circle, or a straight line; None: see `path`.
        """
        network = self._ready(device)
        space, spherical = self.path(space, spherical)
        path = spherical_path if spherical else linear_path
        if space == "w":
            a, b = (
                given if isinstance(given, Tensor) else self.styles([given], label, device)[0]
                for given in (start, end)
            )
            noise_seed = None if isinstance(start, Tensor) else start
            return self.draw_styles(path(a, b, steps), noise_seed, truncation, label, device)
        if isinstance(start, Tensor) or isinstance(end, Tensor):
            raise UserError('interpolate: a style has no code z; the way to it lies in space "w".')
        a, b = codes_of([start, end], network.latent)
        return _draw(network, [start] * steps, self._labels(label, steps), truncation, path(a, b, steps))

    def path(self, space: Literal["z", "w"] | None, spherical: bool | None) -> tuple[Literal["z", "w"], bool]:
        """Where a path lies, and whether it follows a great circle, with what was left open filled in.

        It lies between styles where the model has some. Codes are normal and lie near a sphere, styles do not: a path
        between codes is a great circle.
        """
        if space is None:
            space = "w" if self.config.network == "stylegan2" else "z"
        if space == "w":
            self._require_styles('a path in space "w"')
        return space, space == "z" if spherical is None else spherical

    def draw_styles(
        self,
        styles: Tensor,
        noise_seed: int | None = 0,
        truncation: float = 1.0,
        label: str | int | None = None,
        device: str = "auto",
    ) -> np.ndarray:
        """Images ``[N, C, H, W]`` of styles ``[N, latent]`` or ``[N, style_count, latent]``, all with one noise.

        With None it is that of `project`: fixed in the layers, none on the image.
        With a label, truncation draws the styles towards the mean one of that class.
        """
        network = self._ready(device)
        self._require_styles("styles")
        _check_truncation(truncation)
        where = next(network.parameters()).device
        noise = None
        if noise_seed is not None:
            noise = [n.to(where) for n in noise_of([noise_seed], network.noise_shapes())]
        own = None if label is None else self._labels(label, 1)
        with torch.inference_mode():
            parts = [network.truncated(w.to(where), truncation, own) for w in styles.split(_DRAWN_AT_ONCE)]
            return torch.cat([network.synthesise(w, noise).float().clamp(-1, 1).cpu() for w in parts]).numpy()

    def project(
        self,
        image: np.ndarray,
        steps: int = 400,
        device: str = "auto",
        watch: Callable[[int, float], None] | None = None,
    ) -> tuple[Tensor, np.ndarray, float]:
        """Find the style that comes nearest to an image ``[C, H, W]`` in -1 ... 1 (see `latents.project`)."""
        network = self._ready(device)
        self._require_styles("projection")
        want = (self.channels, *self.shape_px)
        if not np.isfinite(image).all():
            raise UserError("project: the image holds NaN or infinite pixels; repair or crop them.")
        if image.shape != want:
            raise UserError(
                f"project: the image is {' x '.join(map(str, image.shape))}, the model draws "
                f"{' x '.join(map(str, want))} (channels, height, width)."
            )
        goal = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
        style, drawn, difference = project(network, goal, steps, watch=watch)
        return style, drawn.numpy(), difference

    def save(self, path: str | Path) -> None:
        """Write the generator and all settings to one ``.safetensors`` file."""
        if self.generator is None:
            raise UserError("synthesize: nothing to save, this model is not trained.")
        settings = {
            "config": asdict(self.config),
            "channels": self.channels,
            "classes": list(self.classes),
            "shape_px": list(self.shape_px),
            "window": asdict(self.window),
            "binning": self.binning,
            "fit": self.fit_by,
            "scale_each": self.scale_each,
            "pixel_size_A": self.pixel_size_A,
            "seed": self.seed,
            "weights": weights_key(self.generator),
        }
        save_model(Path(path), {"generator": self.generator}, settings, "synthesizer")

    @classmethod
    def load(cls, path: str | Path) -> Synthesizer:
        """Read what :meth:`save` wrote."""
        states, settings = load_model(Path(path), "synthesizer")
        with built_alike(path):
            config = dict(settings["config"])
            model = cls(GanConfig(**{**config, "augment": AugmentConfig(**config["augment"])}))
            model.channels, model.classes = settings["channels"], tuple(settings["classes"])
            model.shape_px = tuple(settings["shape_px"])
            model.window, model.pixel_size_A = Window(**settings["window"]), settings["pixel_size_A"]
            model.seed, model.binning, model.fit_by = settings["seed"], settings["binning"], settings["fit"]
            model.scale_each = settings.get("scale_each", False)
            network = make_generator(model.config, model.channels, len(model.classes), model.shape_px)
            network.load_state_dict(states["generator"])
        model.generator = network.eval()
        return model

    def _largest_batch(self, device: torch.device, detail: float, spread: float) -> int:
        """The largest batch, by halves, whose first step (with every penalty) fits into memory; 0 if none does."""
        if device.type == "cuda":
            torch.cuda.empty_cache()
        batch = self.config.batch
        while batch > GROUP:
            batch = max(batch // 2 // GROUP, 1) * GROUP
            config = replace(self.config, batch=batch, augment=self.config.augment.at_most)
            model = GAN(config, self.channels, len(self.classes), self.shape_px, 0, detail, spread)
            for network in model.networks.values():
                network.to(device).train()
            blank = torch.zeros(batch, self.channels, *self.shape_px, device=device)
            labels = torch.zeros(batch, dtype=torch.int64, device=device)
            try:
                with out_of_memory_explained(0), autocast(device, "auto"):
                    model.training_step((blank, labels), 0, torch.Generator(device))
            except OutOfMemory:
                continue
            return batch
        return 0

    def _ready(self, device: str) -> Any:
        if self.generator is None:
            raise UserError("synthesize: this model is not trained; call fit or load first.")
        return self.generator.to(choose_device(device)).eval()

    def _require_styles(self, what: str) -> None:
        if self.config.network != "stylegan2":
            raise UserError(f"{what}: a {self.config.network} has no style space; only StyleGAN2 has.")

    def _labels(self, label: str | int | None, n: int) -> Tensor | None:
        if not self.classes:
            if label is not None:
                raise UserError(f"This model knows no classes; leave out '{label}'.")
            return None
        number = self.classes.index(label) if label in self.classes else label
        if not isinstance(number, int) or not 0 <= number < len(self.classes):
            told = "" if label is None else f"; there is no '{label}'"
            raise UserError(
                f"Say which class to draw (label; on the command line --class): one of {', '.join(self.classes)}{told}."
            )
        return torch.full((n,), number, dtype=torch.int64)

    @torch.no_grad()
    def _take(self, model: GAN) -> None:
        """Take a trained generator; find its mean style, of each class its own."""
        self.generator = network = model.drawing_generator()
        if self.config.network == "stylegan2":
            where = next(network.parameters()).device
            z = codes_of(list(range(4096)), network.latent).to(where)
            classes = classes_in_turn(network.classes, len(z), where)
            styles = network.mapping(z, classes)
            groups = [styles] if classes is None else [styles[classes == k] for k in range(network.classes)]
            network.mean_style.copy_(torch.stack([g.mean(dim=0) for g in groups]).squeeze(0))


def _epochs(n: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Numbers of the images in a step's batch: each comes once before any comes again."""
    first = step * batch
    orders = {
        epoch: np.random.default_rng([seed, 3, epoch]).permutation(n)
        for epoch in range(first // n, (first + batch - 1) // n + 1)
    }
    return np.array([orders[i // n][i % n] for i in range(first, first + batch)])


@torch.inference_mode()
def _draw(
    network: Any,
    seeds: Sequence[int] | np.ndarray,
    labels: Tensor | None,
    truncation: float = 1.0,
    codes: Tensor | None = None,
) -> np.ndarray:
    """Images ``[N, C, H, W]``: codes (unless given) and noise by each one's seed."""
    where = next(network.parameters()).device
    styled = hasattr(network, "mapping")
    _check_truncation(truncation)
    if truncation != 1 and not styled:
        raise UserError("truncation: a DCGAN has no styles to truncate; leave it at 1.")
    out = []
    for k in range(0, len(seeds), _DRAWN_AT_ONCE):
        part = slice(k, k + _DRAWN_AT_ONCE)
        z = (codes_of(seeds[part], network.latent) if codes is None else codes[part]).to(where)
        own = None if labels is None else labels[part].to(where)
        if styled:
            noise = [n.to(where) for n in noise_of(seeds[part], network.noise_shapes())]
            images = network.synthesise(network.truncated(network.mapping(z, own), truncation, own), noise)
        else:
            images = network(z, own)
        out.append(images.float().clamp(-1, 1).cpu())
    return torch.cat(out).numpy()


def _check_truncation(truncation: float) -> None:
    if not 0 <= truncation < float("inf"):
        raise UserError(f"truncation = {truncation}: give a number from 0 (the mean image) to 1 (none).")


def _features(images: np.ndarray) -> np.ndarray:
    """Features of images ``[N, C, H, W]``: physical ones (of several channels' mean), brightness and contrast.

    The physical ones scale each image by itself; in a population that has one window, how bright an image is counts.
    """
    own = physical_features(images.mean(axis=1), FEATURE_PIXEL_A)
    return np.concatenate([own, images.mean(axis=(2, 3)), images.std(axis=(2, 3))], axis=1)
