"""Quality and speed of LoRA-Drop: measured, stored, chosen from.

`measure/` measures a setting, `results/` stores results and chooses from them. `sweep.py` measures a grid, `search.py`
looks for the best setting, `presets.py` and `samples.py` make what ships in assets/presets, `order.py` finds which
layers are cheapest to skip. `tasks/` has the paper's tasks for lm-eval, and the model that it runs.
"""
