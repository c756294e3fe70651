"""Measure quality and speed.

`metrics.py` scores teacher-forced text and what a lane writes; `texts.py` and `pairs.py` provide the texts. `bench.py`
measures speed, `calibrate.py` that of the presets on this machine; `point.py` measures one setting: quality, speed,
bound and K/V.
"""
