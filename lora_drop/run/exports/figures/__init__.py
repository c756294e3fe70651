"""Figures of a sweep or of a search: results in, plotly figures out. Pure: no model, no torch.

Every number drawn is the results'; the paper's own (`lora_drop.method.paper`) are labelled as the paper's.
"""

from lora_drop.run.exports.figures.frontier import frontier_figure
from lora_drop.run.exports.figures.heatmaps import PANELS, sweep_heatmaps
from lora_drop.run.exports.figures.pages import write_figures, write_frontier
from lora_drop.run.exports.figures.pareto import pareto
from lora_drop.run.exports.figures.style import QUALITIES, Group, group_of, groups, is_baseline, value_of

__all__ = [
    "PANELS",
    "QUALITIES",
    "Group",
    "frontier_figure",
    "group_of",
    "groups",
    "is_baseline",
    "pareto",
    "sweep_heatmaps",
    "value_of",
    "write_figures",
    "write_frontier",
]
