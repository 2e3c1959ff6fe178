"""Every figure of the reports, under one name: functions that take arrays or tables and return a `Figure`.

No pyplot state is touched; colours tell apart for the colour-blind; every micrograph has a scale bar.
"""

from __future__ import annotations

from micrographia.plots.comparison import comparison_figure
from micrographia.plots.courses import populations_figure, time_histograms
from micrographia.plots.curves import (
    classes_figure,
    conditions_figure,
    histogram_figure,
    loss_figure,
    precision_recall_figure,
    radial_spectrum_figure,
    reliability_figure,
    score_bars,
)
from micrographia.plots.latent import latent_scatter, manifold_figure, reconstruction_sheet, traversal_figure
from micrographia.plots.maps import movie_sheet, site_map
from micrographia.plots.matrices import confusion_figure, transition_figure
from micrographia.plots.microstructure import microstructure_figure, neighbours_figure
from micrographia.plots.pictures import comparison_sheet, detections_figure

__all__ = [
    "classes_figure",
    "comparison_figure",
    "comparison_sheet",
    "conditions_figure",
    "confusion_figure",
    "detections_figure",
    "histogram_figure",
    "latent_scatter",
    "loss_figure",
    "manifold_figure",
    "microstructure_figure",
    "movie_sheet",
    "neighbours_figure",
    "populations_figure",
    "precision_recall_figure",
    "radial_spectrum_figure",
    "reconstruction_sheet",
    "reliability_figure",
    "score_bars",
    "site_map",
    "time_histograms",
    "transition_figure",
    "traversal_figure",
]
