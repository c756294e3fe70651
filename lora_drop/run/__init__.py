"""A run: a request in, lanes that take turns on one device, the records of its trace out.

`request.py` checks a request; `run.py` is the run, `generate.py` the library's two calls. `trace/` has the records,
`report/` every figure of a run, `results/` files of measured settings, `wire.py` the lines that the page reads,
`exports/` files for others.
"""
