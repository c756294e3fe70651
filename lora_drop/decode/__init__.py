"""The engine: tokens in, steps out. It knows no text, no page and no file but the C library's cache.

A `Lane` (`lane.py`) draws tokens through a decoder. `reference.py` says what a decoder does; `static/` and `native/`
do it faster. `step.py` has their results and the state of a generation; models and decoders hold none of it.
`refresh.py` decides which steps are full, `rules.py` what a skipped layer passes on, and `correction.py` holds the
trained part.
"""
