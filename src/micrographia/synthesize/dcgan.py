"""DCGAN: the convolutional generator and discriminator that GANs are taught with.

Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional GANs" (2015); at 64² and
three channels the layout of P. Pelz, "Data Science in Electron Microscopy". Convolutions of 4x4 double or halve
the edge, no other layers; batch normalisation everywhere but at the generator's output and the discriminator's
input (where it made samples oscillate, section 3 of the paper); weights start as N(0, 0.02).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micrographia.synthesize.resolution import check_resolution

#: Standard deviation of the weights at the start.
_SPREAD = 0.02


class DCGenerator(nn.Module):
    """Codes to images: a 4x4 transposed convolution, then as many that double the edge as it takes.

    At 64² and ``base=64`` the channels are 512-256-128-64. Larger images have more layers of ``8 * base``
    channels at the coarse end, smaller ones fewer.

    Parameters
    ----------
    resolution : int
        Edge of the images, a power of two from 16 to 1024.
    channels : int
        Of the images.
    latent : int
        Numbers in a code.
    base : int
        Channels of the finest layer before the image.
    classes : int
        0 = none; otherwise each class has a learnt vector, as long as a code, that is appended to it.
    """

    def __init__(
        self, resolution: int, channels: int = 1, latent: int = 100, base: int = 64, classes: int = 0
    ) -> None:
        super().__init__()
        self.latent = latent
        widths = _widths(resolution, base)[::-1]
        self.classes = nn.Embedding(classes, latent) if classes else None
        self.first = nn.ConvTranspose2d(latent * (2 if classes else 1), widths[0], 4, 1, 0, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.doubling = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)
            for a, b in zip(widths, [*widths[1:], channels], strict=True)
        )
        _start(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Codes ``[N, latent]``, and classes ``[N]`` where there are some, to images ``[N, C, R, R]`` in -1 ... +1."""
        if self.classes is not None:
            if labels is None:
                raise ValueError("this generator draws classes: give labels")
            z = torch.cat([z, self.classes(labels)], dim=1)
        x = self.first(z[:, :, None, None])
        for norm, double in zip(self.norms, self.doubling, strict=True):
            x = double(F.relu(norm(x)))
        return torch.tanh(x)


class DCDiscriminator(nn.Module):
    """Images to one logit each, high for real ones: convolutions that halve the edge down to 4x4, then one more.

    Parameters
    ----------
    resolution, channels : int
        Of the images.
    base : int
        Channels of the first layer; at 64² and 64 they are 64-128-256-512.
    slope : float
        Of the leaky rectifiers below zero; 0 makes them plain, which is an exercise of the lecture: where a
        rectifier is shut the generator gets no gradient.
    classes : int
        0 = none; otherwise the logit gains the agreement of the image's features, summed over all places, with
        a learnt direction of its class (projection; Miyato and Koyama 2018).

    Notes
    -----
    Batch normalisation compares the images of a batch: real and generated ones are best judged in batches
    of their own, as the lecture does.
    """

    def __init__(
        self, resolution: int, channels: int = 1, base: int = 64, slope: float = 0.2, classes: int = 0
    ) -> None:
        super().__init__()
        self.shape = (channels, resolution, resolution)
        self.slope = slope
        widths = _widths(resolution, base)
        self.halving = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1, bias=False)
            for a, b in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width) if k else nn.Identity() for k, width in enumerate(widths)
        )
        self.judge = nn.Conv2d(widths[-1], 1, 4, bias=False)
        self.classes = nn.Embedding(classes, widths[-1]) if classes else None
        _start(self)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, 0, _SPREAD)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``[N, C, R, R]``, and classes ``[N]`` where there are some, to logits ``[N]``."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images {tuple(images.shape)} for a discriminator of {self.shape}")
        x = images
        for halve, norm in zip(self.halving, self.norms, strict=True):
            x = F.leaky_relu(norm(halve(x)), self.slope)
        logits = self.judge(x).flatten()
        if self.classes is None:
            return logits
        if labels is None:
            raise ValueError("this discriminator judges classes: give labels")
        return logits + (x.sum(dim=(2, 3)) * self.classes(labels)).sum(dim=1)


@torch.no_grad()
def measure_batch_norm(
    network: nn.Module, codes: Tensor, labels: Tensor | None = None, batch: int = 64
) -> None:
    """Measure anew, from `codes` ``[N, latent]``, the means and variances by which a generator draws.

    Averaged weights need it: the statistics that batch normalisation collected while training are those of the
    weights of the last steps, not of their average.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    for start in range(0, len(codes), batch):
        part = slice(start, start + batch)
        network(codes[part], None if labels is None else labels[part])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)


def _widths(resolution: int, base: int) -> list[int]:
    """Channels of the layers from the finest, of half the resolution, to 4x4."""
    check_resolution(resolution)
    halvings = resolution.bit_length() - 3
    return [base * min(2**k, 8) for k in range(halvings)]


def _start(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, _SPREAD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, _SPREAD)
            nn.init.zeros_(module.bias)
