"""How good LoRA-Drop is, and how fast: measured, stored, chosen from.

What other rooms use, each from its own module, so that reading a file of results loads no torch:

- `texts`: given targets and the full model's own answers; `metrics.evaluate`: quality on them, teacher-forced
  (`decode_target` and `read_target` are its two lanes); `free.evaluate_free`: quality of a lane's own answers.
- `measure.measure`: one setting's quality, speed, bound and KV; `sweep.sweep`: a grid of them.
- `sweep_file.read_sweep`, `preset_results.measured_presets`: stored results; `recommend.recommend`: the best of them.
- `search.search`: candidates measured, the fastest within a limit and the frontier.
- `presets.measure_presets`, `samples.sample_presets`: what ships in assets/presets; `prompts`: the page's examples,
  and those that are measured on.
- `bench.bench`: speed alone, against the bound and transformers. `tasks.benchmark`: the paper's tasks.
- `adaptive.compare`, `order.drop_order`: studies of early refreshes and of which layers to skip.
- `harness`: LoRA-Drop as a model of EleutherAI's lm-evaluation-harness.
"""
