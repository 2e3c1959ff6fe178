"""Learn to make simulated images look like mine; apply it to images of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from micrographia.errors import UserError
from micrographia.metrics.distances import frechet_distance, histogram_kl, standardise
from micrographia.metrics.features import physical_features
from micrographia.micrograph import robust_scale
from micrographia.nets.weights import built_alike, load_model, save_model
from micrographia.patches import apply_tiled, random_crops
from micrographia.training.device import choose_device
from micrographia.training.distributed import shard
from micrographia.training.loop import TrainConfig, TrainResult, train
from micrographia.translate.cyclegan import CycleGAN, TranslateConfig, generator

#: Patches on which the distance to the experiment is measured during training.
WATCHED = 48


@dataclass
class Watch:
    """What a training looks like from outside: sample pictures of the last look."""

    simulated: np.ndarray
    translated: np.ndarray
    experimental: np.ndarray


class Translator:
    """CycleGAN between simulated and experimental images at one sampling.

    Parameters
    ----------
    pixel_size_A : float
        The working sampling of both domains.
    config : TranslateConfig
    """

    def __init__(self, pixel_size_A: float, config: TranslateConfig | None = None) -> None:
        self.pixel_size_A = float(pixel_size_A)
        self.config = config or TranslateConfig()
        self.to_experiment: nn.Module | None = None
        self.to_simulation: nn.Module | None = None

    def fit(
        self,
        simulated: np.ndarray,
        experimental: np.ndarray,
        folder: str | Path,
        seed: int = 0,
        device: str = "auto",
        watch: Callable[[int, Watch], None] | None = None,
    ) -> TrainResult:
        """Learn from unpaired images ``[N, H, W]`` and ``[M, H', W']`` at the working sampling.

        The state kept is the one whose translations have the smallest Fréchet distance (physical features) to
        the experiment: no label is involved.

        Raises
        ------
        UserError
            Either set holds no patch of the configured size.
        """
        config = self.config
        sim, exp = (
            _prepared(simulated, config.patch_px, "simulated"),
            _prepared(experimental, config.patch_px, "experimental"),
        )
        rng = np.random.default_rng([seed, 5])
        fixed_sim, fixed_exp = (_crops(t, config.patch_px, WATCHED, rng) for t in (sim, exp))
        model = CycleGAN(
            config, _crops(sim, config.patch_px, 128, rng), _crops(exp, config.patch_px, 128, rng), seed
        )
        real = physical_features(fixed_exp[:, 0].numpy(), self.pixel_size_A)

        def batches(step: int) -> tuple[Tensor, Tensor]:
            draw = np.random.default_rng([seed, step])
            return shard(tuple(_crops(t, config.patch_px, config.batch, draw) for t in (sim, exp)))

        def look(step: int) -> dict[str, float]:
            network = model.ema.get("to_experiment", model.networks["to_experiment"]).eval()
            translated = _translate_patches(network, fixed_sim, seed)
            features = physical_features(translated.numpy(), self.pixel_size_A)
            if watch is not None:
                watch(step, Watch(fixed_sim[:, 0].numpy(), translated.numpy(), fixed_exp[:, 0].numpy()))
            return {
                "frechet": float(frechet_distance(*standardise(real, features))),
                "kl": histogram_kl(fixed_exp[:, 0].numpy(), translated.numpy()),
            }

        run = TrainConfig(
            steps=config.steps,
            seed=seed,
            device=device,  # type: ignore[arg-type]
            ema_decay=config.ema_decay,
            log_every=10,
            evaluate_every=config.evaluate_every,
            checkpoint_every=max(config.steps // 6, 1),
            patience=config.patience,
        )
        result = train(model, batches, run, folder, look, "frechet", label="cyclegan")
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        averages = model.ema or model.networks
        self.to_experiment, self.to_simulation = (averages[n].eval() for n in CycleGAN.ema_networks)
        return result

    def apply(
        self, images: np.ndarray, seed: int = 0, device: str = "auto", reverse: bool = False
    ) -> np.ndarray:
        """Translate images ``[N, H, W]`` of any size, seamlessly; `reverse` from experiment to simulation.

        Returns
        -------
        float32 ``[N, H, W]`` in the units of :func:`robust_scale`
        """
        network = self.to_simulation if reverse else self.to_experiment
        if network is None:
            raise UserError("translate: this translator is not trained; call fit or load first.")
        where = choose_device(device)
        network = network.to(where).eval()

        def function(tiles: Tensor) -> Tensor:
            x, z = tiles.to(where).split(1, dim=1)
            return network(x, z).float().cpu()

        out = []
        for i, image in enumerate(images):
            noise = np.random.default_rng([seed, i]).standard_normal(image.shape, dtype=np.float32)
            # The noise is cut into tiles together with the image: where tiles overlap they agree.
            both = torch.from_numpy(np.stack([robust_scale(image)[0], noise]))
            tile = self.config.patch_px if self.config.layout == "khan2023" else 256
            out.append(apply_tiled(function, both, tile, tile // 4)[0].numpy())
        return np.stack(out)

    def save(self, path: str | Path) -> None:
        """Write both generators and all settings to one ``.safetensors`` file."""
        if self.to_experiment is None or self.to_simulation is None:
            raise UserError("translate: nothing to save, this translator is not trained.")
        settings = {"pixel_size_A": self.pixel_size_A, "config": asdict(self.config)}
        networks = {"to_experiment": self.to_experiment, "to_simulation": self.to_simulation}
        save_model(Path(path), networks, settings, "translator")

    @classmethod
    def load(cls, path: str | Path) -> Translator:
        """Read what :meth:`save` wrote."""
        states, settings = load_model(Path(path), "translator")
        with built_alike(path):
            translator = cls(settings["pixel_size_A"], TranslateConfig(**settings["config"]))
            for name in CycleGAN.ema_networks:
                network = generator(translator.config)
                network.load_state_dict(states[name])
                setattr(translator, name, network.eval())
        return translator


def _prepared(images: np.ndarray, patch_px: int, what: str) -> Tensor:
    if images.ndim != 3 or not len(images) or min(images.shape[1:]) < patch_px:
        raise UserError(
            f"translate: the {what} images ({' x '.join(map(str, images.shape))}) hold no patch of "
            f"{patch_px} x {patch_px} px; use a smaller translate.patch_px or a finer sampling."
        )
    return torch.from_numpy(np.stack([robust_scale(image)[0] for image in images]))[:, None]


def _crops(images: Tensor, size: int, count: int, rng: np.random.Generator) -> Tensor:
    return random_crops(images, images[:, :0], size, count, rng)[0]


@torch.inference_mode()
def _translate_patches(network: nn.Module, patches: Tensor, seed: int) -> Tensor:
    device = next(network.parameters()).device
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(seed))
    parts = zip(patches.split(8), noise.split(8), strict=True)
    return torch.cat([network(x.to(device), z.to(device)).float().cpu()[:, 0] for x, z in parts])
