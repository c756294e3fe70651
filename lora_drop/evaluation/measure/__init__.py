"""Measuring: quality on given texts, own answers and free text; speed.

`metrics.py` scores teacher-forced text, `free.py` a lane's own answers, `texts.py` and `prompts.py` have what is
scored; `timing.py` and `bench.py` measure speed; `point.py` measures one setting, quality, speed, bound and K/V.
"""
