"""Models: `load.py` opens the bundled one, the Hub's, a folder's and random ones.

`bundled.py` keeps the bundled model's folder, `download.py` gets its file, `gguf.py` reads it; `hub.py`, `place.py`
and `random_weights.py` serve the others; `tokens.py` turns prompts into tokens and tokens into text; `pool.py` lends
one model at a time to many visitors.
"""
