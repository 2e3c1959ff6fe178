"""The networks of the translation: generators; discriminators on images and on their Fourier amplitudes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from micrographia.nets.blocks import Residual, pad_to_multiple

#: What a Fourier view takes at least for the spread of a log-amplitude (that of pure noise is 0.64, Rayleigh's), and
#: for an amplitude (white noise of a hundredth of the contrast). Beyond the information limit noise-free images
#: have next to none of either: any noise would count thousandfold, and drown all other losses.
LEAST_SPREAD, LEAST_AMPLITUDE = 0.5, 0.01


class CompactGenerator(nn.Module):
    """``G(x, z) = x + residual(x, z)`` at half the image's resolution.

    The skip carries every atom through at its place; the residual adds what a microscope adds. `z` is one
    channel of white noise, so that one input has many outputs. Input and output ``[N, 1, H, W]``.
    """

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(8, width, 5, padding=2, padding_mode="reflect")
        )
        self.body = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4, 5, padding=2, padding_mode="reflect"),
            nn.PixelShuffle(2),
        )
        last = self.head[1]
        assert isinstance(last, nn.Conv2d)
        last.weight.data.mul_(0.1)  # start near the identity: labels are right from the first step

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        both, (height, width) = pad_to_multiple(torch.cat([x, z], dim=1), 2, least=3)
        return x + self.head(self.body(self.stem(_channels_last(both))))[..., :height, :width]


class HalvingProduct(nn.Conv2d):
    """A 4x4 convolution of stride 2 as one product of matrices: all weights times all pieces of the image.

    For maps of so few positions that each weight is used but a few times: before it uses them, a convolution on the
    CPU rearranges all weights, and its gradient, once more.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        pieces = nn.functional.unfold(x, 4, padding=1, stride=2)
        out = (self.weight.flatten(1) @ pieces).unflatten(2, (x.shape[2] // 2, x.shape[3] // 2))
        return out if self.bias is None else out + self.bias[:, None, None]


class DoublingProduct(nn.ConvTranspose2d):
    """The transpose of a `HalvingProduct`: the pieces that the product makes are added up at their places.

    Beside maps of few positions it suits the last layer: one channel leaves a convolution's vectors empty.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        weight = self.weight.flatten(1).T
        if x.shape[2:].numel() > len(weight):
            # Image by image: as one product for all, PyTorch would copy the larger factor, which here is x.
            weight = weight.expand(len(x), -1, -1)
        pieces = weight @ x.flatten(2)
        out = nn.functional.fold(pieces, (2 * x.shape[2], 2 * x.shape[3]), 4, padding=1, stride=2)
        return out if self.bias is None else out + self.bias[:, None, None]


class KhanGenerator(nn.Module):
    """The U-Net of Khan et al. 2023 (after Isola et al. 2017, pix2pix) for 256² patches.

    Eight 4x4 convolutions of stride 2 down to 1x1, mirrored, with skips, instance normalisation and dropout
    in the three innermost decoder levels. Repaired: instance normalisation of a 1x1 map is the constant
    zero, so that in the published layout the innermost level (15 % of the weights) never trains; here
    that level goes unnormalised. `noise` times the noise `z` is added to the input.
    """

    def __init__(self, width: int = 64, noise: float = 0.1, dropout: float = 0.5) -> None:
        super().__init__()
        self.noise = noise
        widths = [width * min(2**i, 8) for i in range(8)]
        self.downs = nn.ModuleList()
        for i, (a, b) in enumerate(zip([1, *widths], widths, strict=False)):
            norm = nn.InstanceNorm2d(b, affine=True) if 0 < i < 7 else nn.Identity()
            halve = HalvingProduct if i > 3 else _halve  # to 8x8 and smaller
            self.downs.append(nn.Sequential(halve(a, b, bias=i in (0, 7)), norm, nn.LeakyReLU(0.3)))
        self.ups = nn.ModuleList()
        for i in range(6, -1, -1):
            a = widths[7] if i == 6 else 2 * widths[i + 1]
            double = DoublingProduct if i > 2 else _double  # from 8x8 and smaller
            layers = [double(a, widths[i], bias=False), nn.InstanceNorm2d(widths[i], affine=True)]
            if i > 3:
                layers.append(nn.Dropout(dropout))
            self.ups.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
        self.last = DoublingProduct(2 * widths[0], 1)
        self.apply(_small_normal)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x, (height, width) = pad_to_multiple(x + self.noise * z, 256)
        skips = []
        for shrink in self.downs:
            x = shrink(x)
            skips.append(x)
        for grow, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = torch.cat([grow(x), skip], dim=1)
        # tanh would clip what lies outside the scaled range of +-1: one wide tanh keeps bright atoms apart.
        return 2 * torch.tanh(self.last(x) / 2)[..., :height, :width]


class PatchDiscriminator(nn.Module):
    """Judge overlapping pieces of ``[N, C, H, W]``: ``[N, 1, h, w]`` scores (Isola et al. 2017).

    Spectral normalisation bounds its slope (Miyato et al. 2018), so the generator always sees a gradient.
    """

    def __init__(self, channels: int = 1, width: int = 32, halvings: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, halvings):
            a, b = width * min(2 ** (i - 1), 4), width * min(2**i, 4)
            layers += [spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        b = width * min(2 ** (halvings - 1), 4)
        layers += [spectral_norm(nn.Conv2d(b, 2 * b, 3, padding=1)), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(2 * b, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1:](_channels_last(self.layers[0](x)))


class KhanDiscriminator(nn.Module):
    """The 70 px PatchGAN of the paper: 64-128-256-512, instance-normalised."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def block(a: int, b: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(a, b, 4, stride=stride, padding=1, bias=False)
            return [conv, nn.InstanceNorm2d(b, affine=True), nn.LeakyReLU(0.3)]

        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.3),
            *block(width, 2 * width, 2),
            *block(2 * width, 4 * width, 2),
            *block(4 * width, 8 * width, 1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )
        self.apply(_small_normal)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class FourierView(nn.Module):
    """``[N, 1, H, W]`` -> ``[N, 1, H, W // 2]`` standardised log-amplitude of the windowed patch.

    A Hann window takes away the cross that an edge leaves; mean and standard deviation over the real patches
    at each frequency take away the dynamic range of many decades; the half-plane holds all of a real
    image's spectrum. The raw, unwindowed log-power of the published code lets its discriminator win at
    once, after which the generator has no gradient.
    """

    window: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, patch_px: int) -> None:
        super().__init__()
        window = torch.hann_window(patch_px, periodic=False)
        self.register_buffer("window", window[:, None] * window[None, :])
        self.register_buffer("mean", torch.zeros(patch_px, patch_px // 2))
        self.register_buffer("std", torch.ones(patch_px, patch_px // 2))

    @torch.no_grad()
    def standardise_by(self, real: Tensor) -> None:
        """Set the statistics from real patches ``[N, 1, H, W]`` and their mirror images."""
        both = torch.cat([real, real.flip(-1), real.flip(-2), real.transpose(-1, -2)])
        spectra = torch.cat([self._log_amplitude(part) for part in both.split(64)])
        self.mean.copy_(spectra.mean(dim=(0, 1)))
        self.std.copy_(spectra.std(dim=(0, 1)).clamp_min(LEAST_SPREAD))

    def _log_amplitude(self, x: Tensor) -> Tensor:
        x = x.float()
        x = (x - x.mean(dim=(-2, -1), keepdim=True)) * self.window
        spectrum = torch.fft.rfft2(x, norm="ortho")[..., :-1]
        return torch.fft.fftshift(
            0.5 * torch.log(spectrum.real**2 + spectrum.imag**2 + LEAST_AMPLITUDE**2), dim=-2
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self._log_amplitude(x) - self.mean) / self.std


def _halve(channels_in: int, channels_out: int, bias: bool) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)


def _double(channels_in: int, channels_out: int, bias: bool) -> nn.Module:
    return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)


def _channels_last(x: Tensor) -> Tensor:
    """Lay a pixel's channels side by side, which all layers after this one keep.

    On the CPU a few dozen channels do not fill the blocks of 16 in which convolutions are computed otherwise.
    """
    return x.contiguous(memory_format=torch.channels_last)


def _small_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
