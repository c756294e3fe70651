"""Report of a run, made from its records alone: every figure and every sentence. Imports no torch.

`report.py` counts the figures, also while the run goes on. `speed.py` says what a speedup allows to claim, `parts.py`
where the time goes, `why.py` has the line under each chart, `verdict.py` the verdict and all conclusions together.
`words.py` has settings in words, `steps.py` single steps, `align.py` two texts word by word, `compare.py` several
runs, `commands.py` how to run it again.
"""
