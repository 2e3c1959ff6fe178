"""Images of specimens that are given atom by atom, with the truth moved to where the images show it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from micrographia.simulate.degrade import aberrated, degrade, moved
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import MARGIN_PX, Scene, render_scenes

#: Images rendered at once.
_BATCH = 8


def acquire(
    scenes: Sequence[Scene],
    optics: Optics,
    conditions: dict[str, np.ndarray],
    shape: tuple[int, int],
    pixel_size_A: float,
    seed: int,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Take one image of each scene.

    All are measured in units of the first scene's mean signal (a hole takes electrons away; it does not make
    what is left brighter). Image `i` depends on the seed, on `i` and on the first scene only.

    Parameters
    ----------
    scenes : n scenes
        In Å from the first pixel of the image. Atoms should reach some 6 Å beyond it.
    conditions : dict of arrays ``[n]``
        As from `draw_conditions`.

    Returns
    -------
    images : float32 ``[n, H, W]``
    positions : n tuples (x_px, y_px)
        Where the images show the sites of each scene.
    """
    margin_A = MARGIN_PX * pixel_size_A
    big = (shape[0] + 2 * MARGIN_PX, shape[1] + 2 * MARGIN_PX)
    images = np.empty((len(scenes), *shape), np.float32)
    positions = []
    first_mean = 0.0
    for start in range(0, len(scenes), _BATCH):
        part = range(start, min(start + _BATCH, len(scenes)))
        rngs = [np.random.default_rng([seed, i]) for i in part]
        own = [{name: v[i : i + 1] for name, v in conditions.items()} for i in part]
        settings = [aberrated(optics, c, rng)[0] for c, rng in zip(own, rngs, strict=True)]
        group = [
            Scene(s.x_A + margin_A, s.y_A + margin_A, s.number, s.site_x_A, s.site_y_A, s.site_kind)
            for s in (scenes[i] for i in part)
        ]
        clean = render_scenes(group, settings, np.ones(len(group)), big, pixel_size_A)
        first_mean = first_mean or max(float(clean[0].mean()), 1e-12)
        for k, i in enumerate(part):
            # `degrade` measures in units of each image's own mean.
            share = max(float(clean[k].mean()) / first_mean, 1e-3)
            c = own[k] | {"counts_per_A2": own[k]["counts_per_A2"] * share}
            for name in ("background", "readout", "line_gain", "contamination", "speckle"):
                c[name] = own[k][name] / share
            generator = torch.Generator().manual_seed(int(rngs[k].integers(2**62)))
            image, displacement = degrade(clean[k : k + 1], c, pixel_size_A, generator)
            images[i] = share * image[0, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX].numpy()
            scene = scenes[i]
            x, y = scene.site_x_A / pixel_size_A + MARGIN_PX, scene.site_y_A / pixel_size_A + MARGIN_PX
            x, y = moved(x, y, displacement[0].numpy())
            positions.append((x - MARGIN_PX, y - MARGIN_PX))
    return images, positions
