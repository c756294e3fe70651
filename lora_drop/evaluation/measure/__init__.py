"""Measure quality and speed.

`metrics.py` scores teacher-forced text, `free.py` a lane's own answers; `texts.py` and `pairs.py` provide the texts.
`timing.py` and `bench.py` measure speed; `point.py` measures one setting: quality, speed, bound and K/V.
"""
