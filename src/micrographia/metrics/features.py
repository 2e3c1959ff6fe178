"""What an image looks like, as a vector: inputs of every distance between sets of images.

`physical_features` needs no network and no weights: every number has a name and a physical meaning
(`PHYSICAL_FEATURE_NAMES`). Networks can take its place through `FeatureExtractor`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from micrographia.errors import UserError

#: Number of radial frequency bands and their limits in 1/Å (the upper one is lowered to the Nyquist frequency).
N_BANDS = 24
FREQUENCY_RANGE_PER_A = (0.1, 2.5)
#: Quantiles of the intensity, after the median was set to 0 and half the 16-to-84 % range to 1.
QUANTILES = (0.005, 0.02, 0.05, 0.1, 0.25, 0.75, 0.9, 0.95, 0.98, 0.995)
#: Edges in Å of the blocks in which local statistics are taken.
BLOCKS_A = (1.0, 2.5, 6.0)

#: Name of each column of `physical_features`, in order:
#:
#: - power_b: log10 of the Hann-windowed power spectrum averaged over frequency band b (of 24, 0.1 to 2.5 1/Å)
#: - correlation_x1 ...: correlation of pixels one or two apart along the fast scan axis (x) and across scan lines (y)
#: - anisotropy_1, _2: log ratio of the mean square differences across and along lines: above 0 with line jitter
#: - line_offset_y, _x: log spread of the differences of successive row (column) means: whole lines brighter or darker
#: - quantile_q: intensity quantiles
#: - local_std_A, local_spread_A: log mean and relative spread of the standard deviation in blocks of A Å
#: - gradient_kurtosis, laplacian_kurtosis: log kurtosis; noise gives log 3, isolated sharp features much more
#: - background: log spread of the means of blocks of 6 Å: contamination, thickness, uneven dark level
#: - noise_level: log robust noise estimate from the mixed second difference (Immerkaer 1996)
#: - noise_correlation_x, _y: correlation of that noise between neighbours, less the -2/3 that white noise gives
#: - noise_signal: log ratio of the noise in the brighter half of the pixels to that in the darker half
PHYSICAL_FEATURE_NAMES: tuple[str, ...] = (
    *(f"power_{band:02d}" for band in range(N_BANDS)),
    *("correlation_x1", "correlation_y1", "correlation_x2", "correlation_y2"),
    *("anisotropy_1", "anisotropy_2", "line_offset_y", "line_offset_x"),
    *(f"quantile_{q:g}" for q in QUANTILES),
    *(f"{name}_{size:g}A" for size in BLOCKS_A for name in ("local_std", "local_spread")),
    *("gradient_kurtosis", "laplacian_kurtosis", "background", "noise_level"),
    *("noise_correlation_x", "noise_correlation_y", "noise_signal"),
)

_TINY = (
    1e-6  # floor of powers and variances of images whose spread is about 1: noise-free images have no noise
)


def check_images(images: np.ndarray, smallest: int = 16) -> np.ndarray:
    """Return `images` as float32 ``[N, H, W]``.

    Raises
    ------
    UserError
        Not a stack of finite images of at least `smallest` pixels each way.
    """
    images = np.asarray(images)
    if images.ndim != 3 or not len(images) or min(images.shape[1:]) < smallest:
        raise UserError(
            f"Expected a stack of images [N, H, W], N >= 1, of at least {smallest} x {smallest} pixels, "
            f"got shape {images.shape}; stack patches of one size with numpy.stack."
        )
    images = np.ascontiguousarray(images, dtype=np.float32)
    finite = np.isfinite(images).all(axis=(1, 2))
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(images)} images hold NaN or infinite pixels, the first is "
            f"number {int(np.flatnonzero(~finite)[0])}; repair or drop them."
        )
    return images


def check_pixel_size(pixel_size_A: float) -> None:
    """Raise `UserError` unless the pixel size is a positive number."""
    if not (pixel_size_A is not None and np.isfinite(pixel_size_A) and pixel_size_A > 0):
        raise UserError(
            f"The pixel size must be a positive number of Å, got {pixel_size_A}; give --pixel-size."
        )


def band_centres(pixel_size_A: float) -> np.ndarray:
    """Centres of the frequency bands in 1/Å, ``[N_BANDS]``.

    The bands are the same for every image whose Nyquist frequency reaches 2.5 1/Å; coarser sampling keeps
    their number and lowers the limits, so compare images of one pixel size.
    """
    low, high = FREQUENCY_RANGE_PER_A
    high = min(high, 0.5 / pixel_size_A)
    return np.linspace(min(low, high / 10), high, N_BANDS)


def band_powers(images: np.ndarray, pixel_size_A: float) -> np.ndarray:
    """Hann-windowed power spectrum averaged over the bands of `band_centres`.

    Parameters
    ----------
    images : float32 array, ``[N, H, W]``

    Returns
    -------
    float64 array, ``[N, N_BANDS]``
        Mean of ``|FFT|^2`` per pixel, normalised so that white noise of variance v has power v in every band.
    """
    images = check_images(images)
    return np.concatenate([_band_powers(b, pixel_size_A).numpy().astype(float) for b in _batches(images)])


def physical_features(images: np.ndarray, pixel_size_A: float) -> np.ndarray:
    """Named statistics of each image that need no weights.

    Parameters
    ----------
    images : array, ``[N, H, W]``
        Patches, at least 16 x 16. Each is standardised by its own median and quantiles, so that detector gain
        and offset do not matter.
    pixel_size_A : float

    Returns
    -------
    float64 array, ``[N, D]``
        Columns as in `PHYSICAL_FEATURE_NAMES`. Always finite, also for constant images.
    """
    images = check_images(images)
    check_pixel_size(pixel_size_A)
    return np.concatenate([_features(b, pixel_size_A).numpy().astype(float) for b in _batches(images)])


def _batches(images: np.ndarray, pixels: int = 2**20):
    """Slices that fit the cache: more than twice as fast as everything at once."""
    step = max(1, pixels // images[0].size)
    return (torch.from_numpy(images[k : k + step]) for k in range(0, len(images), step))


@torch.no_grad()
def _features(batch: torch.Tensor, pixel_size_A: float) -> torch.Tensor:
    # Every second row and column is enough for quantiles, and sorting is the dearest step.
    sample = batch[:, ::2, ::2] if batch[0].numel() > 8192 else batch
    ordered = torch.from_numpy(np.sort(sample.flatten(1).numpy(), axis=1))
    at = [round(q * (ordered.shape[1] - 1)) for q in (0.5, 0.16, 0.84, *QUANTILES)]
    median, low, high, *quantiles = ordered[:, at].unbind(1)
    scale = (high - low) / 2
    # A mostly empty image has no central spread: fall back to the standard deviation; constant becomes zero.
    scale = torch.where(scale > 0, scale, batch.std(dim=(1, 2)))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    z = (batch - median[:, None, None]) / scale[:, None, None]
    columns = [(q - median) / scale for q in quantiles]

    power = (_band_powers(z, pixel_size_A) + _TINY).log10()
    return torch.cat(
        [
            power,
            torch.stack(_scan(z), dim=1),
            torch.stack(columns, dim=1),
            torch.stack(_local(z, pixel_size_A), dim=1),
        ],
        dim=1,
    )


def _band_powers(batch: torch.Tensor, pixel_size_A: float) -> torch.Tensor:
    n, height, width = batch.shape
    window = torch.outer(torch.hann_window(height, periodic=False), torch.hann_window(width, periodic=False))
    # Without its (weighted) mean the windowed image does not leak into the lowest bands.
    mean = (batch * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    spectrum = torch.fft.rfft2((batch - mean) * window)
    power = (spectrum.real**2 + spectrum.imag**2) / window.square().sum()
    return power.reshape(n, -1) @ _band_weights(height, width, pixel_size_A)


def _band_weights(height: int, width: int, pixel_size_A: float) -> torch.Tensor:
    """Triangular bands over the half plane, ``[H * (W // 2 + 1), N_BANDS]``; no band is empty."""
    qy = np.fft.fftfreq(height, pixel_size_A)[:, None]
    qx = np.fft.rfftfreq(width, pixel_size_A)[None]
    twice = np.where((qx == 0) | (np.arange(qx.size) * 2 == width), 1.0, 2.0)
    q = np.hypot(qy, qx).ravel()[:, None]
    centres = band_centres(pixel_size_A)
    half_width = max(centres[1] - centres[0], 1.01 / (pixel_size_A * min(height, width)))
    weights = np.clip(1 - np.abs(q - centres) / half_width, 0, None)
    weights *= np.broadcast_to(twice, (height, qx.size)).reshape(-1, 1) * (q > 0)
    return torch.from_numpy((weights / weights.sum(0)).astype(np.float32))


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).mean(1)


def _log(x: torch.Tensor) -> torch.Tensor:
    return (x + _TINY).log()


def _scan(z: torch.Tensor) -> list[torch.Tensor]:
    """Correlations along and across scan lines."""
    variance = z.var(dim=(1, 2), correction=0) + _TINY
    correlations, anisotropies = [], []
    for lag in (1, 2):
        along = _mean((z[:, :, lag:] - z[:, :, :-lag]).square()) + _TINY
        across = _mean((z[:, lag:] - z[:, :-lag]).square()) + _TINY
        correlations += [1 - along / (2 * variance), 1 - across / (2 * variance)]
        anisotropies.append((across / along).log())
    offsets = [_log(z.mean(axis).diff(dim=1).var(dim=1, correction=0)) / 2 for axis in (2, 1)]
    return [*correlations, *anisotropies, *offsets]


def _local(z: torch.Tensor, pixel_size_A: float) -> list[torch.Tensor]:
    """Block statistics, kurtosis of derivatives, background and noise."""
    out, shortest = [], min(z.shape[1:])
    background = z.new_zeros(len(z))
    for size_A in BLOCKS_A:
        size = int(np.clip(round(size_A / pixel_size_A), 3, shortest // 4))
        mean = F.avg_pool2d(z[:, None], size)
        std = (F.avg_pool2d(z[:, None].square(), size) - mean.square()).clamp_min(0).sqrt()
        level = _mean(std)
        out += [_log(level), std.flatten(1).std(1) / (level + _TINY)]
        background = _log(mean.flatten(1).var(1)) / 2

    along = z[:, :, 2:] - z[:, :, :-2]
    bend = z[:, :, 2:] - 2 * z[:, :, 1:-1] + z[:, :, :-2]  # second difference in x
    laplacian = bend[:, 1:-1] + z[:, 2:, 1:-1] - 2 * z[:, 1:-1, 1:-1] + z[:, :-2, 1:-1]
    noise = (bend[:, 2:] - 2 * bend[:, 1:-1] + bend[:, :-2]) / 6  # white noise keeps its standard deviation
    magnitude = noise.abs()
    variance = _mean(noise.square()) + _TINY
    level = F.avg_pool2d(z[:, None], 3, stride=1)[:, 0]
    bright = (level > 0).float()
    half = [_mean(magnitude * m) / (_mean(m) + _TINY) for m in (bright, 1 - bright)]
    return [
        *out,
        _kurtosis(along),
        _kurtosis(laplacian),
        background,
        _log(_mean(magnitude) * np.sqrt(np.pi / 2)),
        _mean(noise[:, :, 1:] * noise[:, :, :-1]) / variance + 2 / 3,
        _mean(noise[:, 1:] * noise[:, :-1]) / variance + 2 / 3,
        _log(half[0]) - _log(half[1]),
    ]


def _kurtosis(x: torch.Tensor) -> torch.Tensor:
    square = x.square()
    return _log(_mean(square.square()) / (_mean(square).square() + _TINY))


@dataclass(frozen=True)
class FeatureExtractor:
    """A way to turn images into feature vectors.

    Parameters
    ----------
    name : str
        States what the features are; printed beside every distance.
    function : callable
        ``(images [N, H, W] float32, window (low, high)) -> [N, D] float64``. `window` is the one intensity
        range, taken from the real set, that extractors with a bounded input map to their range, for real and
        other images.
    standardise : bool
        Divide each feature by its standard deviation over the real set before distances are taken (features
        of different units); networks with a published scale leave it off.
    """

    name: str
    function: Callable[[np.ndarray, tuple[float, float]], np.ndarray]
    standardise: bool = False


def physical_extractor(pixel_size_A: float) -> FeatureExtractor:
    """The default: `physical_features`, standardised."""
    name = f"physical ({len(PHYSICAL_FEATURE_NAMES)} statistics, {pixel_size_A:.4g} Å/px)"
    return FeatureExtractor(name, lambda images, window: physical_features(images, pixel_size_A), True)


def module_extractor(module: torch.nn.Module, name: str, channels: int = 1) -> FeatureExtractor:
    """Any network as extractor, for example a MicroNet encoder.

    Parameters
    ----------
    module : nn.Module
        Takes ``[N, channels, H, W]`` float32 with the window mapped to [0, 1] (not clipped); whatever else it
        needs belongs into the module. Maps ``[N, C, h, w]`` are averaged over the pixels.
    """

    @torch.no_grad()
    def function(images: np.ndarray, window: tuple[float, float]) -> np.ndarray:
        low, high = window
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        training = module.training
        module.eval()
        try:
            outputs = []
            for batch in _batches(check_images(images)):
                x = ((batch - low) / (high - low))[:, None].expand(-1, channels, -1, -1)
                y = module(x.to(device)).float().cpu()
                outputs.append(y.mean(dim=(2, 3)) if y.ndim == 4 else y.flatten(1))
        finally:
            module.train(training)
        return torch.cat(outputs).double().numpy()

    return FeatureExtractor(name, function)


#: SHA-256 of the FID Inception weights; their publisher put its first eight digits into the file name.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def to_8bit(images: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map the window to 0...255 and clip: the only way images become 8-bit here."""
    low, high = window
    scaled = np.clip((np.asarray(images, np.float32) - low) / (high - low), 0, 1)
    return np.round(scaled * 255).astype(np.uint8)


def inception_extractor(weights_path: str | Path) -> FeatureExtractor:
    """The Inception-v3 of the original FID (2048 features) through torch-fidelity.

    Parameters
    ----------
    weights_path : path
        ``weights-inception-2015-12-05-6726825d.pth`` as published with torch-fidelity; nothing is downloaded.

    Raises
    ------
    UserError
        The file is missing or another one, or torch-fidelity cannot be imported.
    """
    path = Path(weights_path)
    if not path.is_file():
        raise UserError(
            f"The Inception weights {path} do not exist; download them first (see torch-fidelity)."
        )
    # Checked before anything unpickles it.
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != INCEPTION_SHA256:
        raise UserError(
            f"{path} is not the Inception network of FID (SHA-256 {digest[:16]}..., expected "
            f"{INCEPTION_SHA256[:16]}...); download weights-inception-2015-12-05-6726825d.pth anew."
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a broken torchvision raises RuntimeError
        raise UserError(
            f"torch-fidelity cannot be imported ({error}); install micrographia[metrics] and a torchvision "
            "that fits this PyTorch, or use the physical features."
        ) from error
    network = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    ).eval()

    @torch.no_grad()
    def function(images: np.ndarray, window: tuple[float, float]) -> np.ndarray:
        grey = torch.from_numpy(to_8bit(check_images(images), window))
        outputs = [network(b[:, None].expand(-1, 3, -1, -1).contiguous())[0] for b in grey.split(32)]
        return torch.cat(outputs).double().numpy()

    return FeatureExtractor("Inception-v3 pool3 (2048 features, torch-fidelity weights 6726825d)", function)
