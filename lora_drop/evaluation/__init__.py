"""Quality and speed of LoRA-Drop: measured, stored, chosen from.

`measure/` measures a setting, speeds by one protocol. `sweep.py` measures a grid, `presets.py` the presets,
`rivals.py` other methods, `reproduce.py` shipped figures again, and `order.py` finds which layers are cheapest to
skip. `tasks/` has the paper's tasks for lm-eval, and the model that it runs.
"""
