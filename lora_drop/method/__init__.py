"""LoRA-Drop on paper: what can be set, which layers run when, what that costs. No torch, no files.

- `settings`: THE table of settings; `values`: the kinds of value that they have; `options`: what people write, read.
- `config.LoraDropConfig`: the settings of a schedule, checked; `schedule.Schedule`: the same for a model.
- `cost`: bytes, the KV formula, the bound. `presets`: named settings. `paper`: the paper's own figures.
"""
