"""The paper's tasks, from local files: how each is read, asked and scored, with the full model and with LoRA-Drop.

`registry.read_tasks` reads the tasks of a data folder, `benchmark.benchmark` runs them and writes the table. A new
task is a subclass of `base.Task` in `registry`, and a place in `TASKS`. Only `runner` and `benchmark` need torch.
"""
