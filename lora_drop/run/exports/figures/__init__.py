"""Figures of a sweep or of a search: results in, plotly figures out. Pure: no model, no torch.

Every number drawn comes from the results; the paper's own (`lora_drop.method.paper`) are labelled as the paper's.
"""
