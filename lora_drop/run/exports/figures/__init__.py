"""Figures as SVG: of a run (`run`), and of a sweep or a search (`sweep`). Pure: no model, no torch, no library."""
