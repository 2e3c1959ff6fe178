"""Time of a CycleGAN step, against a plain implementation of the same networks and losses.

The plain one is what tutorials teach: PyTorch's own layers in its default memory format, one forward pass per term
of the loss, one optimizer (not fused) per discriminator, real and translated images judged one after the other.
About three minutes on two cores.
"""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import torch
from common import clock, publish, table
from torch import Tensor, nn

from micrographia.training.device import set_threads
from micrographia.translate import networks
from micrographia.translate.cyclegan import CycleGAN, TranslateConfig

CRITICS = ("image_experiment", "fourier_experiment", "image_simulation", "fourier_simulation")


class PlainCycleGAN:
    """The textbook's step on the networks of a `CycleGAN`.

    `frozen`: take the discriminators out of the graph while the generators learn, as the better tutorials do.
    """

    def __init__(self, model: CycleGAN, frozen: bool) -> None:
        self.networks, self.config, self.frozen = model.networks, model.config, frozen
        for layer in (layer for network in self.networks.values() for layer in network.modules()):
            if isinstance(layer, networks.HalvingProduct | networks.DoublingProduct):
                layer.__class__ = type(layer).__base__  # PyTorch's own, with the same weights

        def adam(*names: str) -> torch.optim.Optimizer:
            parameters = itertools.chain(*(self.networks[n].parameters() for n in names))
            return torch.optim.Adam(parameters, self.config.learning_rate, betas=(self.config.beta1, 0.99))

        self.generators = adam("to_experiment", "to_simulation")
        self.critics = {name: adam(name) for name in CRITICS}

    @mock.patch.object(networks, "_channels_last", nn.Identity())
    def training_step(self, batch: tuple[Tensor, Tensor], step: int, generator: torch.Generator) -> None:
        x, y = batch
        to_y, to_x = self.networks["to_experiment"], self.networks["to_simulation"]
        l1, mse = torch.nn.L1Loss(), torch.nn.MSELoss()

        def noise() -> Tensor:
            return torch.randn(x.shape, generator=generator)

        self._critics_learn(not self.frozen)
        fake_y, fake_x = to_y(x, noise()), to_x(y, noise())
        identity = l1(to_y(y, noise()), y) + l1(to_x(x, noise()), x)
        cycle = l1(to_x(fake_y, noise()), x) + l1(to_y(fake_x, noise()), y)
        adversarial = torch.zeros(())
        for name in CRITICS:
            scores = self.networks[name](fake_y if name.endswith("experiment") else fake_x)
            adversarial = adversarial + mse(scores, torch.ones_like(scores)) / 2
        loss = adversarial + self.config.cycle / 2 * cycle + self.config.identity / 2 * identity
        self.generators.zero_grad()
        loss.backward()
        self.generators.step()

        self._critics_learn(True)
        for name, optimizer in self.critics.items():
            real, fake = (y, fake_y) if name.endswith("experiment") else (x, fake_x)
            optimizer.zero_grad()
            on_real, on_fake = self.networks[name](real), self.networks[name](fake.detach())
            loss = (mse(on_real, torch.ones_like(on_real)) + mse(on_fake, torch.zeros_like(on_fake))) / 2
            loss.backward()
            optimizer.step()

    def _critics_learn(self, learn: bool) -> None:
        for name in CRITICS:
            self.networks[name].requires_grad_(learn)


def compare(config: TranslateConfig, steps: int) -> list[list[object]]:
    """Interleave the steps of all implementations, so that other load on the machine hits them alike."""
    rng = np.random.default_rng(0)
    shape = (config.batch, 1, config.patch_px, config.patch_px)
    batch = tuple(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) / 2 for _ in range(2))
    models = {
        "plain": PlainCycleGAN(CycleGAN(config, *batch, seed=0), frozen=False),
        "plain, discriminators frozen": PlainCycleGAN(CycleGAN(config, *batch, seed=0), frozen=True),
        "this package": CycleGAN(config, *batch, seed=0),
    }
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for step in range(steps + 1):
        for name, model in models.items():
            with clock() as t:
                model.training_step(batch, step, generator)
            if step:  # the first step fills caches
                seconds[name].append((t["wall"], t["cpu"]))
    median = {name: np.median(values, axis=0) for name, values in seconds.items()}
    return [
        [
            config.layout,
            f"{config.patch_px}²",
            config.batch,
            name,
            f"{spent[0]:.3f}",
            f"{median['plain'][0] / spent[0]:.2f}",
            f"{spent[1]:.3f}",
            f"{median['plain'][1] / spent[1]:.2f}",
        ]
        for name, spent in median.items()
    ]


def main() -> None:
    set_threads()
    rows = compare(TranslateConfig(), 10)
    rows += compare(TranslateConfig(layout="khan2023", patch_px=256, batch=1), 2)
    text = (
        "Same networks, same terms of the loss, same batch, steps of the three taken in turn in one process; "
        f"medians, {torch.get_num_threads()} thread(s). *plain*: PyTorch's own layers in its default memory "
        "format, one forward pass per term, an unfused Adam per discriminator, all gradients computed. "
        "*frozen*: without the discriminators' gradients in the generators' step. *This package* also fuses Adam, "
        "passes what comes back and what is left alone through a generator together, and with more than one thread "
        "computes both directions (`compact`), and all discriminators, side by side. Its `compact` networks lay a "
        "pixel's channels side by side (`channels_last`); its `khan2023` generators compute layers of few positions, "
        "and the last, as products of matrices: the same sums, up to rounding.\n\n"
    )
    section = text + table(
        [
            "layout",
            "patch",
            "batch",
            "implementation",
            "wall s per step",
            "times faster",
            "CPU s",
            "times less",
        ],
        rows,
    )
    publish("translation", "CycleGAN training", [section], ["torch"])


if __name__ == "__main__":
    main()
