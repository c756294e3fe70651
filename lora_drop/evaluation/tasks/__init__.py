"""The paper's tasks, from local files: how each is read, asked and scored, with the full model and with LoRA-Drop.

`registry.read_tasks` reads the tasks of a data folder, `benchmark.benchmark` runs them, `table.markdown` shows the
result. A new task is a subclass of `base.Task` in the file of its family, and a place in `registry`. Only `runner` and
`benchmark` need torch.
"""
