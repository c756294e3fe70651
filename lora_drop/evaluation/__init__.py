"""How good LoRA-Drop is, and how fast: measured, stored, chosen from.

What other rooms use, each from its own module, so that reading a file of results loads no torch:

- `metrics.evaluate`: teacher-forced quality; `metrics.decode_target` and `read_target` are its two lanes.
- `measure.measure`: one setting's quality, speed, bound and KV; `sweep.sweep`: a grid of them.
- `sweep_file.read_sweep`, `preset_results.measured_presets`: stored results; `recommend.recommend`: the best of them.
- `presets.measure_presets`, `samples.sample_presets`: what ships in assets/presets; `prompts`: the page's examples.
- `bench.bench`: speed alone, against the bound and transformers. `tasks.benchmark`: the paper's tasks.
- `adaptive.compare`, `order.drop_order`: studies of early refreshes and of which layers to skip.
- `harness`: LoRA-Drop as a model of EleutherAI's lm-evaluation-harness.
"""
