"""Every figure of the reports, under one name: functions that take arrays or tables and return a `Figure`.

No pyplot state is touched; colours tell apart for the colour-blind; every image has a scale bar.
"""

from __future__ import annotations

from micrographia.plots.curves import (
    conditions_figure,
    histogram_figure,
    loss_figure,
    precision_recall_figure,
    radial_spectrum_figure,
    reliability_figure,
    score_bars,
)
from micrographia.plots.pictures import comparison_sheet, detections_figure

__all__ = [
    "comparison_sheet",
    "conditions_figure",
    "detections_figure",
    "histogram_figure",
    "loss_figure",
    "precision_recall_figure",
    "radial_spectrum_figure",
    "reliability_figure",
    "score_bars",
]
