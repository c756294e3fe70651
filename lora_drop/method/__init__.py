"""LoRA-Drop on paper: settings, which layers run when, and what that costs. No torch, no files.

- `config.LoraDropConfig`: the settings of a schedule, checked; `schedule.Schedule`: the same for one model.
- `settings`: the table of all settings; `fields`: a setting as a field of a class; `kinds`: kinds of value.
- `cost`: bytes, the KV formula, the bound. `presets`: named configs. `paper`: the paper's own figures.
- `quality`: how a text reads. `interval`: bootstrap intervals. `frontier`: the best of speed and quality.
"""
