"""A virtual microscope with named days: it plays the experiment where the truth must be known.

It is deliberately not the model that is fitted to it. Beside the effects of
:mod:`micrographia.simulate.degrade` it has mains hum in the scan, X-ray spikes, a detector that saturates
gently and an afterglow of two time constants, none of which the training images know. `day-a` is the worse
day: less dose, a broader probe, more contamination; `day-b` is a good day.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from micrographia.errors import UserError, did_you_mean
from micrographia.micrograph import Micrograph
from micrographia.simulate.degrade import Conditions, draw_conditions
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series


@dataclass(frozen=True)
class Day:
    """The state of the virtual microscope on one day."""

    conditions: Conditions
    """The day's spread of conditions, much narrower than what a fit starts from."""
    hum_A: float
    """Amplitude of the scan displacement by mains hum, Å."""
    hum_lines: float
    """Its period in scan lines."""
    spikes_per_image: float
    """Mean number of X-ray spikes in an image of 256² pixels."""
    saturation: float
    """Strength of the gentle saturation: signal / (1 + saturation * signal)."""
    slow_afterglow: float
    """Share of the signal that decays slowly, over twelve pixels."""


DAYS = {
    "day-a": Day(
        Conditions(
            defocus_A=(-15.0, 25.0), astigmatism_A=(5.0, 15.0), coma_A=(50.0, 250.0),
            threefold_A=(50.0, 200.0), source_size_A=(0.85, 1.05), counts_per_A2=(100.0, 170.0),
            background=(0.25, 0.4), readout=(0.08, 0.12), blur_px=(0.2, 0.35), afterglow_px=(0.4, 0.7),
            line_jitter_A=(0.06, 0.1), slow_jitter_A=(0.15, 0.5), line_gain=(0.01, 0.03),
            contamination=(0.1, 0.4), contamination_length_A=(12.0, 30.0), speckle=(0.08, 0.16),
            speckle_length_A=(1.0, 1.8),
        ),
        hum_A=0.12, hum_lines=11.0, spikes_per_image=4.0, saturation=0.03, slow_afterglow=0.08,
    ),
    "day-b": Day(
        Conditions(
            defocus_A=(-10.0, 10.0), astigmatism_A=(0.0, 8.0), coma_A=(0.0, 120.0), threefold_A=(0.0, 100.0),
            source_size_A=(0.7, 0.85), counts_per_A2=(120.0, 200.0), background=(0.1, 0.2),
            readout=(0.04, 0.07), blur_px=(0.15, 0.3), afterglow_px=(0.2, 0.4), line_jitter_A=(0.03, 0.06),
            slow_jitter_A=(0.1, 0.3), line_gain=(0.005, 0.02), contamination=(0.0, 0.2),
            contamination_length_A=(15.0, 40.0), speckle=(0.03, 0.08), speckle_length_A=(0.8, 1.4),
        ),
        hum_A=0.05, hum_lines=17.0, spikes_per_image=2.0, saturation=0.015, slow_afterglow=0.04,
    ),
}  # fmt: skip


def record(
    day: str,
    specimen: Specimen,
    optics: Optics,
    n: int,
    shape: tuple[int, int],
    pixel_size_A: float,
    seed: int,
) -> tuple[list[Micrograph], pd.DataFrame]:
    """Record `n` images on a named day.

    Parameters
    ----------
    day : ``"day-a"`` or ``"day-b"``
    specimen, optics : what is looked at, and the microscope's nominal settings
    shape : (H, W) of an image
    pixel_size_A : float
    seed : int

    Returns
    -------
    micrographs : list of Micrograph
        Named ``day-a-00.tif`` and so on.
    truth : DataFrame
        ``image, x_px, y_px, kind, confidence`` of all defects, and of intact columns as ``column-*``.

    Raises
    ------
    UserError
        There is no such day.
    """
    if day not in DAYS:
        raise UserError(f"There is no day '{day}' on the virtual microscope.{did_you_mean(day, DAYS)}")
    state = DAYS[day]
    conditions = draw_conditions(state.conditions, n, np.random.default_rng([seed, 1]))
    specimen = replace(specimen, contrast=(1.0, 1.0), strain=0.006)
    number = int(np.random.default_rng([seed, 2]).integers(2**31))
    images, _, sites = simulate_series(specimen, optics, n, shape, pixel_size_A, number, conditions)
    names = [f"{day}-{i:02d}.tif" for i in range(n)]
    micrographs = []
    for i, image in enumerate(images):
        rng = np.random.default_rng([seed, 3, i])
        data = _instrument(image, state, pixel_size_A, rng)
        about = {
            "synthetic": True,
            "generator": "micrographia virtual microscope",
            "day": day,
            "seed": seed,
            "item": i,
        }
        micrographs.append(Micrograph(data, pixel_size_A, names[i], "file", about))
    # The hum moves whole lines to and fro about their true place: labels stay where they are on average.
    truth = sites.assign(image=[names[i] for i in sites["index"]], confidence=1.0).drop(columns="index")
    return micrographs, truth[["image", "x_px", "y_px", "kind", "confidence"]].reset_index(drop=True)


def _instrument(image: np.ndarray, day: Day, pixel_size_A: float, rng: np.random.Generator) -> np.ndarray:
    """Add what only the virtual microscope has."""
    height, width = image.shape
    phase = rng.uniform(0, 2 * np.pi)
    shift = day.hum_A / pixel_size_A * np.sin(2 * np.pi * np.arange(height) / day.hum_lines + phase)
    columns = np.arange(width)
    out = np.stack([np.interp(columns + s, columns, row) for s, row in zip(shift, image, strict=True)])
    kernel = np.exp(-np.arange(36) / 12.0)
    kernel /= kernel.sum()
    tail = np.apply_along_axis(
        lambda row: np.convolve(np.pad(row, (35, 0), mode="edge"), kernel, "valid"), 1, out
    )
    out = (1 - day.slow_afterglow) * out + day.slow_afterglow * tail
    out = out / (1 + day.saturation * np.clip(out, 0, None))
    for _ in range(rng.poisson(day.spikes_per_image * height * width / 256**2)):
        out[rng.integers(height), rng.integers(width)] += rng.exponential(4.0)
    return out.astype(np.float32)
