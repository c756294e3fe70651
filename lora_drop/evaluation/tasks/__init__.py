"""The paper's tasks, from local files, by lm-eval: a YAML file a task, whose functions are in `utils`.

`benchmark` runs them with the full model and with LoRA-Drop and writes the table; `model` is the model that lm-eval
runs. A new task is a YAML file, a reader in `utils` and a place in `utils.TASKS`. Only `benchmark` and `model` need
the extra `benchmark`.
"""
