"""The paper's tasks, from local files: how each is read, asked and scored, by the full model and by LoRA-Drop.

`registry.read_tasks` gives the tasks that a data folder has, `benchmark.benchmark` runs them, `table.markdown` shows
the result. A task of its own kind is a subclass of `base.Task` in the file of its family, and a place in `registry`.
Only `runner` and `benchmark` need torch.
"""
