"""The engine: tokens in, steps out. It knows no text, no page and no file but the C library's cache.

A `Lane` (`lane.py`) draws tokens through a decoder: `reference.py`, `static/` or `native/`; `step.py` has the protocol
and the result objects. The state of a generation is its `DecodeState`; nothing of it lives on a model or a decoder.
`refresh.py` decides which steps are full, `correction.py` holds the trained part, `logits.py` computes entropy, KL,
agreement and likelihood.
"""
