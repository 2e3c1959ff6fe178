"""Adaptive augmentation: what the critic sees images through, so that it cannot learn a few of them by heart.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020, sections 2 and 3 and
appendix B, for any number of channels. Every transformation happens with the same probability p, independently;
below p = 1 (0.8, to be safe) their mixture can be undone in distribution, and the generator does not learn it.

Drawing and applying are two steps: what is random is drawn for a whole batch at once, and any part of the batch
can be transformed anywhere. Everything is differentiable in the images, as often as needed. Images are in the
working range, -1 to 1, which brightness, noise and cut-outs refer to.

Against the paper: the one resampling uses a Lanczos filter of the same length in place of the symlet; the octave
bands are those of the shortest Daubechies filter but one, as there. Luma is the mean over the channels. Hue has a
meaning for three channels only, saturation for two or more: one channel leaves both alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import pi, sqrt

import torch
from torch import Tensor

from micrographia.errors import UserError, check_ranges
from micrographia.training import distributed

#: Standard deviations and ranges of the paper's appendix B. Scales are 2^N(0, σ²).
_SHIFT = 0.125
_SCALE_OCTAVES = 0.2
_BRIGHTNESS = 0.2
_CONTRAST_OCTAVES = 0.5
_SATURATION_OCTAVES = 1.0
_BAND_OCTAVES = 1.0
_NOISE = 0.1
_CUTOUT = 0.5
#: Share of the four octave bands, lowest first, in the power of natural images.
_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
#: Lobes of the Lanczos filter: 12 taps at twice the sampling.
_LOBES = 3
#: The largest p that is adapted to: beyond it, transformations begin to show in what is generated.
_MOST = 0.8
#: Images in which p can rise from 0 to 1 by unseen images, and by the sign of verdicts, which at the start of a training
#: is as high as that of a critic that knows its images by heart.
_BY_UNSEEN, _BY_SIGN = 50_000.0, 500_000.0
#: Steps between looks at unseen images, and looks between adjustments of p.
INTERVAL = 4
#: Of the adaptive probability, in checkpoints.
_STATE = ("p", "part", "whole", "images", "looks")


@dataclass(frozen=True)
class AugmentConfig:
    """What the critic sees the images through. Values of the paper stand in brackets."""

    blit: bool = True
    """Mirror, quarter turns, shifts by whole pixels: exact copies of pixels."""
    geom: bool = True
    """Scale, turn, stretch, shift by fractions of a pixel: one smooth resampling."""
    color: bool = False
    """Brightness, contrast, inversion; with three channels hue and saturation. Off, because the brightness of a
    micrograph says what is there. [true]"""
    filter: bool = False
    """Amplify or damp octaves of spatial frequency."""
    noise: bool = False
    """Add white noise."""
    cutout: bool = False
    """Blank a square of half the edge."""
    target: float = 0.6
    """Overfitting of the critic above which p rises, and below which it falls; 0 = p stays where it is. Of StyleGAN2
    with real images held out: how far from its verdicts on training images towards those on generated ones its verdicts
    on them lie, -1 to 1. Else the mean sign of its answers to training images. [0.6]"""
    adapt_images: float = 0.0
    """Images in which p can rise from 0 to 1; 0 = 50000 by held-out images, 500000 by the sign. [500000]"""
    p: float = 0.0
    """Probability of each transformation to begin with. [0]"""

    def __post_init__(self) -> None:
        if not 0 <= self.target < 1:
            raise UserError(f"augment.target = {self.target}: give a number from 0 to below 1.")
        if not self.adapt_images >= 0:
            raise UserError(f"augment.adapt_images = {self.adapt_images}: give 0 or a greater number.")
        check_ranges("augment", self, p=(0, 1))

    @property
    def acts(self) -> bool:
        """Whether any image is ever transformed."""
        some = self.blit or self.geom or self.color or self.filter or self.noise or self.cutout
        return some and (self.target > 0 or self.p > 0)

    @property
    def at_most(self) -> AugmentConfig:
        """The same, as often as it may come to act, and so as dear: for measuring time and memory."""
        return replace(self, p=max(self.p, _MOST)) if self.acts and self.target > 0 else self


@dataclass(frozen=True)
class Transforms:
    """What was drawn for n images; None for a class of transformations that is off."""

    blit: Tensor | None
    """``[n, 3, 3]``: from where in the image, in pixels (x, y, 1) from its middle, a pixel of the result comes."""
    geom: Tensor | None
    """``[n, 3, 3]``: the same, of the smooth resampling, which follows the blit."""
    color: Tensor | None
    """``[n, C, C + 1]``: matrix and offset of the channels."""
    bands: Tensor | None
    """``[n, 4]``: gain of each octave band, lowest first."""
    noise: Tensor | None
    """``[n, C, H, W]``: to be added."""
    cutout: Tensor | None
    """``[n, 4]``: first and past-the-last column, first and past-the-last row of what is blanked."""

    def _parts(self) -> tuple[Tensor | None, ...]:
        return (self.blit, self.geom, self.color, self.bands, self.noise, self.cutout)

    def __len__(self) -> int:
        return next((len(t) for t in self._parts() if t is not None), 0)

    def __getitem__(self, which: slice) -> Transforms:
        """Return the transformations of some of the images."""
        return Transforms(*(None if t is None else t[which] for t in self._parts()))


def augment(images: Tensor, p: Tensor | float, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw and apply in one: images ``[N, C, H, W]`` through random transformations of probability `p`."""
    transforms = draw_transforms(len(images), tuple(images.shape[1:]), p, config, generator)
    return apply_transforms(images, transforms)


def draw_transforms(
    n: int,
    shape: tuple[int, ...],
    p: Tensor | float,
    config: AugmentConfig,
    generator: torch.Generator,
) -> Transforms:
    """Draw the transformations of `n` images.

    Parameters
    ----------
    n : int
    shape : (C, H, W)
    p : float or tensor
        Probability of each transformation, 0 to 1.
    config : AugmentConfig
    generator : torch.Generator
        On the device of the images. The amount drawn from it does not depend on `p`.
    """
    draw = _Draw(n, p, generator)
    return Transforms(
        _draw_blit(draw, shape) if config.blit else None,
        _draw_geom(draw, shape) if config.geom else None,
        _draw_color(draw, shape[0]) if config.color else None,
        _draw_bands(draw) if config.filter else None,
        _draw_noise(draw, shape) if config.noise else None,
        _draw_cutout(draw, shape) if config.cutout else None,
    )


def apply_transforms(images: Tensor, transforms: Transforms) -> Tensor:
    """Transform images ``[n, C, H, W]``; those for which nothing was drawn come back bit for bit.

    Images of half precision come back in float32: positions need it.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.float() if images.dtype.itemsize < 4 else images
        images = _move(images, transforms.blit, transforms.geom)
        if transforms.color is not None:
            images = recolour(images, transforms.color)
        if transforms.bands is not None:
            images = _on_some(amplify_bands, images, transforms.bands, neutral=1.0)
        if transforms.noise is not None:
            images = images + transforms.noise.to(images.dtype)
        if transforms.cutout is not None:
            images = cut_out(images, transforms.cutout)
    return images


# ------------------------------------------------------------ drawing


class _Draw:
    """Random numbers for n images, each with its neutral value where the transformation does not happen."""

    def __init__(self, n: int, p: Tensor | float, generator: torch.Generator) -> None:
        self.n, self.p, self.generator = n, p, generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.n, *shape, generator=self.generator, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)

    def happens(self, p: Tensor | float | None = None) -> Tensor:
        return self.uniform() < (self.p if p is None else p)

    def octaves(self, sigma: float) -> Tensor:
        """A factor 2^N(0, σ²), or 1."""
        return torch.where(self.happens(), torch.exp2(sigma * self.normal()), 1.0)


def _draw_blit(draw: _Draw, shape: tuple[int, ...]) -> Tensor:
    _, height, width = shape
    flip = draw.happens() & (draw.uniform() < 0.5)
    turns = torch.where(draw.happens(), (4 * draw.uniform()).long(), 0)
    moves, shift = draw.happens(), _SHIFT * (2 * draw.uniform(2) - 1)
    shift = torch.where(moves[:, None], shift, 0)
    mirror = torch.where(flip, -1.0, 1.0)
    # Exact cosines and sines of quarter turns.
    cosine = torch.tensor([1.0, 0.0, -1.0, 0.0], device=turns.device)[turns]
    sine = torch.tensor([0.0, 1.0, 0.0, -1.0], device=turns.device)[turns]
    back = _scale(mirror, torch.ones_like(mirror)) @ _rotation(cosine, -sine)
    return back @ _translation(-(shift[:, 0] * width).round(), -(shift[:, 1] * height).round())


def _draw_geom(draw: _Draw, shape: tuple[int, ...]) -> Tensor:
    _, height, width = shape
    # Before and after the stretch; either happens with probability p.
    p_rotation = 1 - (1 - torch.as_tensor(draw.p)).sqrt()

    def turn_back() -> Tensor:
        happens, angle = draw.happens(p_rotation.to(draw.generator.device)), pi * (2 * draw.uniform() - 1)
        angle = torch.where(happens, angle, 0)
        return _rotation(angle.cos(), -angle.sin())

    scale = draw.octaves(_SCALE_OCTAVES)
    back = _scale(1 / scale, 1 / scale) @ turn_back()
    stretch = draw.octaves(_SCALE_OCTAVES)
    back = back @ _scale(1 / stretch, stretch) @ turn_back()
    moves, shift = draw.happens(), _SHIFT * draw.normal(2)
    shift = torch.where(moves[:, None], shift, 0)
    return back @ _translation(-shift[:, 0] * width, -shift[:, 1] * height)


def _draw_color(draw: _Draw, channels: int) -> Tensor:
    device = draw.generator.device
    eye = torch.eye(channels, device=device)
    grey = torch.full(
        (channels, channels), 1 / channels, device=device
    )  # projects on the mean of the channels
    brightness = torch.where(draw.happens(), _BRIGHTNESS * draw.normal(), 0)
    contrast = draw.octaves(_CONTRAST_OCTAVES)
    inverts = draw.happens() & (draw.uniform() < 0.5)
    turns, angle = draw.happens(), pi * (2 * draw.uniform() - 1)
    saturation = draw.octaves(_SATURATION_OCTAVES)
    matrix = contrast[:, None, None] * (eye - 2 * inverts[:, None, None] * grey)
    if channels == 3:
        # Rodrigues' formula about the axis (1, 1, 1) / sqrt 3.
        cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / sqrt(3)
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        hue = grey + cosine * (eye - grey) + sine * cross
        matrix = torch.where(turns[:, None, None], hue @ matrix, matrix)
    if channels > 1:
        saturates = saturation[:, None, None]
        matrix = torch.where(saturates != 1, (grey + saturates * (eye - grey)) @ matrix, matrix)
    # Brightness comes first; every channel's share of it is the same, so that turning hue leaves it alone.
    offset = brightness[:, None, None] * matrix.sum(dim=2, keepdim=True)
    return torch.cat([matrix, offset], dim=2)


def _draw_bands(draw: _Draw) -> Tensor:
    power = torch.tensor(_BAND_POWER, device=draw.generator.device)
    gains = torch.ones(draw.n, len(power), device=power.device)
    for band in range(len(power)):
        one = torch.ones_like(gains)
        one[:, band] = draw.octaves(_BAND_OCTAVES)
        # The expected power of a natural image stays.
        gains = gains * torch.where(one[:, band, None] != 1, one / (one.square() @ power).sqrt()[:, None], 1)
    return gains


def _draw_noise(draw: _Draw, shape: tuple[int, ...]) -> Tensor:
    sigma = torch.where(draw.happens(), _NOISE * draw.normal().abs(), 0)
    return sigma[:, None, None, None] * draw.normal(*shape)


def _draw_cutout(draw: _Draw, shape: tuple[int, ...]) -> Tensor:
    _, height, width = shape
    happens, middle = draw.happens(), draw.uniform(2)
    size = torch.tensor([width, height], device=middle.device)
    first, past = ((middle + side * _CUTOUT / 2) * size for side in (-1, 1))
    edges = torch.stack([first, past], dim=2).round().long().flatten(1)
    return torch.where(happens[:, None], edges, 0)


def _matrices(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    return torch.stack([torch.stack([torch.zeros_like(like) + a for a in row], dim=1) for row in rows], dim=1)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def _rotation(cosine: Tensor, sine: Tensor) -> Tensor:
    """Counter-clockwise on the screen (y down)."""
    return _matrices([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], cosine)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


# ------------------------------------------------------------ applying


def _on_some(function, images: Tensor, drawn: Tensor, neutral: float | Tensor) -> Tensor:
    """Transform only the images for which something else than the neutral value was drawn."""
    changed = (drawn != neutral).flatten(1).any(dim=1)
    if images.is_cuda:  # asking how many would wait for the GPU
        return torch.where(changed[:, None, None, None], function(images, drawn), images)
    which = changed.nonzero()[:, 0]
    if len(which) == 0:
        return images
    if len(which) == len(images):
        return function(images, drawn)
    return images.index_copy(0, which, function(images[which], drawn[which]))


def _move(images: Tensor, blit: Tensor | None, geom: Tensor | None) -> Tensor:
    """Copy pixels where that is all, resample once where it is not."""
    eye = torch.eye(3, device=images.device)
    if geom is None:
        return images if blit is None else _on_some(copy_pixels, images, blit, eye)
    smooth = (geom != eye).flatten(1).any(dim=1)
    if blit is not None:
        copied = torch.where(smooth[:, None, None], eye, blit)
        images = _on_some(copy_pixels, images, copied, eye)
        geom = torch.where(smooth[:, None, None], blit @ geom, eye)
    return _on_some(resample, images, geom, eye)


def copy_pixels(images: Tensor, back: Tensor) -> Tensor:
    """Fetch every pixel from the nearest to where ``back`` ``[n, 3, 3]`` points; mirrored at the edges."""
    n, channels, height, width = images.shape
    x, y = _sources(torch.arange(height), torch.arange(width), height, width, back)
    # A hair below one half: a quarter turn of an oblong image meets halves, which all go the same way.
    column, row = (_reflect(torch.floor(q + 0.499), size) for q, size in ((x, width), (y, height)))
    index = (row * width + column).long().flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(n, channels, height, width)


def resample(images: Tensor, back: Tensor) -> Tensor:
    """Read images where ``back`` ``[n, 3, 3]`` points, mirrored at the edges, without aliasing.

    Doubled by a Lanczos filter, read linearly at twice the resolution, halved by the same filter.
    """
    height, width = images.shape[-2:]
    doubled = _doubling(height, images.dtype, images.device) @ images
    doubled = doubled @ _doubling(width, images.dtype, images.device).T
    x, y = _sources(_fine(height), _fine(width), height, width, back.to(images.dtype))
    # From pixels to the doubled image (a pixel is 1/4 px off either of its two), to the -1 to 1 of grid_sample.
    u, v = ((2 * _reflect(q, size) + 0.5) / (2 * size - 1) * 2 - 1 for q, size in ((x, width), (y, height)))
    fine = torch.nn.functional.grid_sample(doubled, torch.stack([u, v], dim=-1), align_corners=True)
    halved = _halving(height, images.dtype, images.device) @ fine
    return halved @ _halving(width, images.dtype, images.device).T


def recolour(images: Tensor, color: Tensor) -> Tensor:
    """Mix the channels by ``[n, C, C + 1]``: a matrix and an offset."""
    color = color.to(images.dtype)
    if images.shape[1] == 1:
        return images * color[:, :, :1, None] + color[:, :, 1:, None]

    def mixed(images: Tensor, color: Tensor) -> Tensor:
        return torch.einsum("nij,njhw->nihw", color[:, :, :-1], images) + color[:, :, -1, None, None]

    neutral = torch.eye(color.shape[1], color.shape[2], dtype=color.dtype, device=color.device)
    return _on_some(mixed, images, color, neutral)


def amplify_bands(images: Tensor, gains: Tensor) -> Tensor:
    """Amplify the four octave bands along either axis, lowest first, by ``[n, 4]``; mirrored at the edges."""
    gains = gains.to(images.dtype)
    for axis in (-1, -2):
        bands = _band_matrices(images.shape[axis], images.dtype, images.device)
        mixed = torch.einsum("nb,bij->nij", gains, bands)[:, None]
        images = images @ mixed.mT if axis == -1 else mixed @ images
    return images


def cut_out(images: Tensor, edges: Tensor) -> Tensor:
    """Blank the rectangles ``[n, 4]`` (first and past-the-last column, first and past-the-last row)."""
    x, y = (torch.arange(size, device=images.device) for size in (images.shape[-1], images.shape[-2]))
    left, right, top, bottom = edges[:, :, None].unbind(1)
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)


def _fine(size: int) -> Tensor:
    """Where the resampling reads, in pixels: at twice the sampling, as far as the halving filter reaches."""
    return torch.arange(2 * size + 4 * _LOBES - 2) / 2 - 0.25 - (_LOBES - 0.5)


def _sources(rows: Tensor, columns: Tensor, height: int, width: int, back: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``back`` points from all rows and columns: x and y in pixels, ``[n, rows, columns]``."""
    y = (rows.to(back) - (height - 1) / 2)[None, :, None]
    x = (columns.to(back) - (width - 1) / 2)[None, None, :]
    a = back[:, :, :, None, None]
    return (
        a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2] + (width - 1) / 2,
        a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2] + (height - 1) / 2,
    )


def _reflect(q: Tensor, size: int) -> Tensor:
    """Fold positions into the image, mirrored at the centres of its outermost pixels."""
    last = size - 1
    return last - ((q % max(2 * last, 1)) - last).abs() if last else torch.zeros_like(q)


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < _LOBES, torch.sinc(t) * torch.sinc(t / _LOBES), 0)


@lru_cache(maxsize=16)
def _doubling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[2 size, size]``: samples at a quarter of a pixel left and right of every pixel, mirrored at the edges."""
    place = (torch.arange(2 * size, dtype=torch.float64) - 0.5) / 2
    source = torch.arange(-_LOBES, size + _LOBES, dtype=torch.float64)
    weight = _lanczos(place[:, None] - source)
    matrix = torch.zeros(2 * size, size, dtype=torch.float64)
    matrix.index_add_(1, _reflect(source, size).long(), weight)
    return (matrix / matrix.sum(dim=1, keepdim=True)).to(device, dtype)


@lru_cache(maxsize=16)
def _halving(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[size, 2 size + 10]``: from the positions of `_fine` to pixels."""
    weight = _lanczos(_fine(size).double() - torch.arange(size, dtype=torch.float64)[:, None])
    return (weight / weight.sum(dim=1, keepdim=True)).to(device, dtype)


@lru_cache(maxsize=16)
def _band_matrices(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[4, size, size]``: the octave bands of a line of pixels, mirrored at its ends; they add up to the line.

    The half-band filter is the autocorrelation of Daubechies' of four taps (-1, 0, 9, 16, 9, 0, -1) / 32; each
    octave below uses it with twice the spacing.
    """
    half = torch.tensor([-1.0, 0, 9, 16, 9, 0, -1], dtype=torch.float64) / 32
    steps = torch.arange(-3, 4)
    low = torch.eye(size, dtype=torch.float64)
    lows = [low]
    reach = 3 * (1 + 2 + 4)
    kernel = torch.zeros(2 * reach + 1, dtype=torch.float64)
    kernel[reach] = 1
    source = _reflect(torch.arange(-reach, size + reach), size)
    for spacing in (1, 2, 4):
        kernel = sum(w * kernel.roll(int(spacing * step)) for w, step in zip(half, steps, strict=True))
        low = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            low[row].index_add_(0, source[row : row + 2 * reach + 1], kernel)
        lows.append(low)
    bands = [lows[3], lows[2] - lows[3], lows[1] - lows[2], lows[0] - lows[1]]
    return torch.stack(bands).to(device, dtype)


# ------------------------------------------------------------ how often


class AdaptiveProbability:
    """The probability of augmentation, raised while the critic knows the real images too well.

    Its measure is one of the two of the paper (section 3.1), 0 for a critic that treats all alike, 1 for one that has
    learnt the training images by heart: r_v = (E[D(x)] - E[D(unseen)]) / (E[D(x)] - E[D(G z)]), or, where no real
    images are held out, the mean sign of its answers to training images, r_t = E[sign D(x)]. The latter is as
    large at the start of a short training, when the critic is ahead of the generator but knows no image by heart.
    Every few looks p takes one step of fixed size towards more or less.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.p = config.p
        self._part: float | Tensor = 0.0
        self._whole: float | Tensor = 0.0
        self._images = self._looks = 0.0

    def update(
        self,
        part: float | Tensor,
        whole: float | Tensor,
        images: int,
        device: torch.device,
        by_unseen: bool = False,
    ) -> float | None:
        """Take in what one look at the critic tells; every process calls it.

        Parameters
        ----------
        part, whole : float or tensor
            Numerator and denominator of the measure, of this process's images; 1 below a mean sign.
        images : int
            Training images that all processes together have seen since the last call.
        device : torch.device
            Over which the processes talk.
        by_unseen : bool
            Whether the measure is r_v, by which p may rise quickly.

        Returns
        -------
        float or None
            The measure over the last `INTERVAL` looks, -1 to 1, after so many. It is one of means: ratios of single
            looks would be noise where critic and generator are near their balance. 0 where the whole is not positive:
            a critic that is wrong knows nothing by heart.
        """
        # The state is the same in all processes: one saves it for all.
        if distributed.rank_and_world()[1] > 1:
            part, whole = distributed.mean_over_processes([float(part), float(whole)], device)
        # A GPU is waited for only where the numbers are needed.
        self._part, self._whole = self._part + part, self._whole + whole
        self._images += images
        self._looks += 1
        if self._looks < INTERVAL:
            return None
        part, whole = float(self._part), float(self._whole)
        overfit = min(1.0, max(-1.0, part / whole)) if whole > 0 else 0.0
        if self.config.target > 0:
            rise = self.config.adapt_images or (_BY_UNSEEN if by_unseen else _BY_SIGN)
            step = self._images / rise
            self.p = min(_MOST, max(0.0, self.p + (step if overfit > self.config.target else -step)))
        self._part = self._whole = self._images = self._looks = 0.0
        return overfit

    def state(self) -> dict[str, Tensor]:
        """What a resumed training needs."""
        own = (self.p, self._part, self._whole, self._images, self._looks)
        values = dict(zip(_STATE, own, strict=True))
        return {f"augment_{name}": torch.tensor(float(v), dtype=torch.float64) for name, v in values.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state`."""
        self.p, self._part, self._whole, self._images, self._looks = (
            float(state[f"augment_{name}"]) for name in _STATE
        )
