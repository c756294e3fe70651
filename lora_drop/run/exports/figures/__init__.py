"""Figures of a sweep: `sweep.json` in, plotly figures out. Pure: no model, no torch.

Every number drawn is the sweep's; the paper's own (`lora_drop.method.paper`) are labelled as the paper's.
"""

from lora_drop.run.exports.figures.heatmaps import PANELS, sweep_heatmaps
from lora_drop.run.exports.figures.pages import write_figures
from lora_drop.run.exports.figures.pareto import pareto
from lora_drop.run.exports.figures.style import QUALITIES, groups

__all__ = ["PANELS", "QUALITIES", "groups", "pareto", "sweep_heatmaps", "write_figures"]
