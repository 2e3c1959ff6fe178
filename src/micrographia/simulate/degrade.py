"""From a noise-free image to what a microscope delivers, as physics with a handful of parameters.

The order is that of the experiment: the specimen carries contamination and amorphous material, the beam
visits displaced positions, electrons are counted, the detector smears and adds its own noise::

    counts = Poisson(dose * [crystal + contamination + speckle + background](r + displacement(row)))
    image  = gain_row * (afterglow * blur * counts) + read-out noise

Everything works on batches ``[N, H, W]`` with one set of conditions per image. Signals are measured in units
of the image's mean signal, so that conditions mean the same for every material. Displacements move labels:
:func:`degrade` returns them and :func:`moved` applies them to positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from micrographia.errors import UserError, did_you_mean
from micrographia.simulate.probe import Optics

Range = tuple[float, float]


@dataclass(frozen=True)
class Conditions:
    """Ranges (low, high) from which the imaging conditions of one image are drawn."""

    defocus_A: Range = (-50.0, 50.0)
    """Defocus about the set value, Å."""
    astigmatism_A: Range = (0.0, 25.0)
    """Size of the residual twofold astigmatism C12, Å; its direction is random."""
    coma_A: Range = (0.0, 500.0)
    """Size of the residual coma C21, Å; its direction is random."""
    threefold_A: Range = (0.0, 500.0)
    """Size of the residual threefold astigmatism C23, Å; its direction is random."""
    source_size_A: Range = (0.4, 1.6)
    """Full width at half maximum of the effective source, Å."""
    counts_per_A2: Range = (3.0, 3000.0)
    """Detected electrons per Å² at the image's mean signal (drawn on a log scale)."""
    background: Range = (0.0, 1.0)
    """Uniform signal under the crystal, in units of the image's mean signal."""
    readout: Range = (0.005, 0.5)
    """Standard deviation of the read-out noise per pixel, in units of the mean signal (log scale)."""
    blur_px: Range = (0.0, 1.2)
    """Standard deviation of the Gaussian by which detector, binning and resampling smooth the counts, px."""
    afterglow_px: Range = (0.0, 2.0)
    """Decay length of the detector's afterglow along the fast scan direction, px."""
    line_jitter_A: Range = (0.005, 0.4)
    """Root-mean-square displacement from one scan line to the next, Å (log scale)."""
    slow_jitter_A: Range = (0.02, 2.0)
    """Root-mean-square slow scan distortion (drift, thermal motion) across an image, Å (log scale)."""
    line_gain: Range = (0.0, 0.15)
    """Root-mean-square brightness fluctuation from line to line, in units of the mean signal."""
    contamination: Range = (0.0, 1.0)
    """Strength of the patchy long-range hydrocarbon layer, in units of the mean signal."""
    contamination_length_A: Range = (8.0, 60.0)
    """Correlation length of that layer, Å (log scale)."""
    speckle: Range = (0.0, 0.5)
    """Strength of fine-grained amorphous signal, in units of the mean signal."""
    speckle_length_A: Range = (0.6, 3.0)
    """Correlation length of the speckle, Å (log scale)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            low, high = getattr(self, f.name)
            if not (np.isfinite([low, high]).all() and low <= high):
                raise UserError(f"conditions.{f.name} = ({low}, {high}): give (low, high) with low <= high.")
            if (f.name != "defocus_A" and low < 0) or (f.name in LOG_SCALE and low <= 0):
                raise UserError(f"conditions.{f.name} = ({low}, {high}): the range must be positive.")


#: Conditions that are drawn evenly on a logarithmic scale.
LOG_SCALE = frozenset(
    {
        "counts_per_A2",
        "readout",
        "line_jitter_A",
        "slow_jitter_A",
        "contamination_length_A",
        "speckle_length_A",
    }
)
NAMES = tuple(f.name for f in fields(Conditions))
#: As far as a scan line may look from its place; images need so much more around them.
REACH_PX = 12


def from_unit(unit: np.ndarray, ranges: Conditions) -> dict[str, np.ndarray]:
    """Map points of the unit cube ``[N, P]`` to conditions, one array ``[N]`` per name."""
    out = {}
    for name, u in zip(NAMES, unit.T, strict=True):
        low, high = getattr(ranges, name)
        out[name] = low * (high / low) ** u if name in LOG_SCALE else low + (high - low) * u
    return out


def draw_conditions(ranges: Conditions, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the conditions of `n` images, independently and evenly over `ranges`."""
    return from_unit(rng.random((n, len(NAMES))), ranges)


def narrowed(ranges: Conditions, **fixed: float | Range) -> Conditions:
    """Return `ranges` with some conditions fixed to a value or to another range."""
    for name in fixed:
        if name not in NAMES:
            raise UserError(f"There is no imaging condition '{name}'.{did_you_mean(name, NAMES)}")
    pairs = {k: v if isinstance(v, tuple) else (float(v), float(v)) for k, v in fixed.items()}
    return replace(ranges, **pairs)


def aberrated(optics: Optics, conditions: dict[str, np.ndarray], rng: np.random.Generator) -> list[Optics]:
    """Return the optics of each image: `optics` with its residual aberrations and source size."""
    out = []
    for i in range(len(conditions["defocus_A"])):
        extra = dict(optics.aberrations)
        for name, order, multiplicity in (
            ("astigmatism_A", "C12", 2),
            ("coma_A", "C21", 1),
            ("threefold_A", "C23", 3),
        ):
            angle = multiplicity * rng.uniform(0, 2 * np.pi)
            for part, value in (("a", np.cos(angle)), ("b", np.sin(angle))):
                key = order + part
                extra[key] = extra.get(key, 0.0) + float(conditions[name][i] * value)
        out.append(
            replace(
                optics,
                defocus_A=optics.defocus_A + float(conditions["defocus_A"][i]),
                source_size_A=float(conditions["source_size_A"][i]),
                aberrations=extra,
            )
        )
    return out


def degrade(
    images: Tensor,
    conditions: dict[str, np.ndarray],
    pixel_size_A: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Degrade noise-free images.

    Parameters
    ----------
    images : float32 ``[N, H, W]``
        Noise-free signal, any unit, not negative.
    conditions : dict of arrays ``[N]``
        As from :func:`draw_conditions`.
    pixel_size_A : float
    generator : torch.Generator
        On the device of `images`.

    Returns
    -------
    degraded : float32 ``[N, H, W]``
        In units of each image's mean signal, a hole in the crystal included.
    displacement_px : float32 ``[N, H, 2]``
        Where each scan line really looked: ``(dx, dy)`` in pixels, see :func:`moved`; at most `REACH_PX` away, the
        whole image's displacement is reduced where it would be more.
    """
    n, height, width = images.shape
    c = {k: torch.as_tensor(v, dtype=torch.float32, device=images.device) for k, v in conditions.items()}

    def column(name: str) -> Tensor:
        return c[name][:, None, None]

    signal = images / images.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    patchy = _random_field(n, height, width, c["contamination_length_A"] / pixel_size_A, generator)
    speckle = _random_field(n, height, width, c["speckle_length_A"] / pixel_size_A, generator)
    signal = signal + column("contamination") * patchy.clamp_min(0)
    signal = (signal + column("speckle") * speckle + column("background")).clamp_min(0)

    displacement = _scan_displacement(n, height, c, pixel_size_A, generator)
    signal = sample_displaced(signal, displacement)

    dose = column("counts_per_A2") * pixel_size_A**2
    signal = torch.poisson(signal.clamp_min(0) * dose, generator=generator) / dose
    signal = _detector_response(signal, c["blur_px"], c["afterglow_px"])
    line_gain = torch.randn((n, height, 1), generator=generator, device=images.device)
    noise = torch.randn((n, height, width), generator=generator, device=images.device)
    return signal + column("line_gain") * line_gain + column("readout") * noise, displacement


def moved(x_px: np.ndarray, y_px: np.ndarray, displacement_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where features at ``(x_px, y_px)`` appear after the scan displacement ``[H, 2]``.

    A line `r` shows what lies at ``(c + dx[r], r + dy[r])``, so a feature at `(x, y)` appears on the line
    that solves ``r + dy[r] = y``, at ``c = x - dx[r]``.
    """
    lines = np.arange(len(displacement_px))
    dx, dy = displacement_px[:, 0], displacement_px[:, 1]
    # An atom covers many lines: it appears at the mean of their displacements (about 1 Å = 5 lines).
    kernel = np.hanning(9)[1:-1] / np.hanning(9).sum()
    dx = np.convolve(np.pad(dx, 3, mode="edge"), kernel, mode="valid")
    dy = np.convolve(np.pad(dy, 3, mode="edge"), kernel, mode="valid")
    row = y_px.astype(float)
    for _ in range(20):
        row = y_px - np.interp(row, lines, dy)
    return x_px - np.interp(row, lines, dx), row


def _random_field(n: int, height: int, width: int, length_px: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian random fields ``[N, H, W]`` of zero mean and unit variance, correlated over a length.

    The correlation falls to 1/e at a distance of `length_px` ``[N]``.
    """
    noise = torch.randn((n, height, width), generator=generator, device=length_px.device)
    qy = torch.fft.fftfreq(height, device=noise.device)[:, None]
    qx = torch.fft.rfftfreq(width, device=noise.device)[None, :]
    sigma = length_px[:, None, None] / 2
    transfer = torch.exp(-2 * (torch.pi * sigma) ** 2 * (qx**2 + qy**2))
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * transfer, s=(height, width))
    # The expected variance, not the one of this draw: a patch smaller than the length shows part of a slope.
    full = torch.fft.fftfreq(width, device=noise.device)[None, :]
    power = torch.exp(-4 * (torch.pi * sigma) ** 2 * (full**2 + qy**2)).mean(dim=(1, 2), keepdim=True)
    return smooth / power.sqrt().clamp_min(1e-6)


def _scan_displacement(
    n: int, height: int, c: dict[str, Tensor], pixel_size_A: float, generator: torch.Generator
) -> Tensor:
    """Displacement ``[N, H, 2]`` of each scan line in px: white line jitter plus a slow random walk."""
    device = c["line_jitter_A"].device
    fast = torch.randn((n, height, 2), generator=generator, device=device)
    walk = torch.randn((n, height, 2), generator=generator, device=device).cumsum(dim=1)
    walk = (walk - walk.mean(dim=1, keepdim=True)) / height**0.5 * 2.4  # unit rms over the image on average
    # Instruments drift smoothly: low-pass the walk over some ten lines so that it does not add line jitter.
    size = max(1, min(15, height // 4))
    kernel = torch.hann_window(size + 2, periodic=False, device=device)[1:-1]
    padded = torch.nn.functional.pad(walk.transpose(1, 2), (size // 2, (size - 1) // 2), mode="replicate")
    smooth = torch.nn.functional.conv1d(padded.reshape(2 * n, 1, -1), (kernel / kernel.sum())[None, None])
    slow = smooth.reshape(n, 2, height).transpose(1, 2)
    # The slow axis moves in steps of whole lines: less high-frequency noise than the fast axis.
    fast[..., 1] *= 0.5
    jitter, drift = c["line_jitter_A"][:, None, None], c["slow_jitter_A"][:, None, None]
    out = (jitter * fast + drift * slow) / pixel_size_A
    # Farther lines would look beyond what is rendered, where no label is true.
    return out * (REACH_PX / out.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-9)).clamp(max=1.0)


def sample_displaced(images: Tensor, displacement: Tensor) -> Tensor:
    """Read ``[N, H, W]`` images at ``(column + dx[row], row + dy[row])``."""
    _, height, width = images.shape
    x = torch.arange(width, device=images.device) + displacement[:, :, :1]
    y = torch.arange(height, device=images.device)[None, :, None] + displacement[:, :, 1:]
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, (2 * y / max(height - 1, 1) - 1).expand_as(x)], dim=-1)
    sampled = torch.nn.functional.grid_sample(
        images[:, None], grid, mode="bicubic", padding_mode="reflection", align_corners=True
    )
    return sampled[:, 0]


def _detector_response(images: Tensor, blur_px: Tensor, afterglow_px: Tensor) -> Tensor:
    """Convolve with an isotropic Gaussian and with an exponential decay towards larger columns."""
    _, height, width = images.shape
    pad = 8
    padded = torch.nn.functional.pad(images[:, None], (pad, pad, pad, pad), mode="reflect")[:, 0]
    qy = torch.fft.fftfreq(height + 2 * pad, device=images.device)[:, None]
    qx = torch.fft.rfftfreq(width + 2 * pad, device=images.device)[None, :]
    transfer = torch.exp(-2 * (torch.pi * blur_px[:, None, None]) ** 2 * (qx**2 + qy**2))
    # Discrete exponential: weights (1 - a) a^k with a = exp(-1 / length).
    a = torch.exp(-1 / afterglow_px.clamp_min(1e-3))[:, None, None]
    decay = (1 - a) / (1 - a * torch.exp(-2j * torch.pi * qx))
    out = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer * decay, s=padded.shape[1:])
    return out[:, pad:-pad, pad:-pad]
