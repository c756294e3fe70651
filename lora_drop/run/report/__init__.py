"""Report of a run, made from its trace alone: every figure and every sentence about it. Imports no torch.

`report.py` puts the report together: `figures.py` counts while the run goes on, `speed.py` has the clocks, `parts.py`
where the time goes, `verdict.py` the sentence, `why.py` the line under each chart. `steps.py` describes single steps,
`align.py` two texts word by word, `compare.py` several runs, `commands.py` how to run it again.
"""
